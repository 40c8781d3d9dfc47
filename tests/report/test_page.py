"""The page as a file: it stands alone, it is small, its text stays text, and the same run gives the same bytes."""

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest
from synthetic import write_run

from shard.errors import ShardError
from shard.report.page import write_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028"


class Outline(html.parser.HTMLParser):
    """What a browser would see of tags, and the text in scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open, []).append(data)


def test_it_stands_alone(tmp_path: Path) -> None:
    path = write_report([write_run(tmp_path / "run")])
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text(encoding="utf-8")
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 2
    assert not [
        attributes
        for tag, attributes in outline.tags
        if tag in ("script", "img", "iframe", "object", "base") and attributes.get("src")
    ]
    assert [a["href"] for tag, a in outline.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "@import" not in page and "url(" not in "".join(outline.texts["style"])


def test_the_policy_allows_its_own_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    outline = Outline(write_report([write_run(tmp_path / "run")]).read_text(encoding="utf-8"))
    (policy,) = [a["content"] for tag, a in outline.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:; ")
    script, style = "".join(outline.texts["script"][1:]), "".join(outline.texts["style"])
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", source=EVIL)
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"Made up."', json.dumps(EVIL, ensure_ascii=False)), encoding="utf-8")
    events = run / "pretrain" / "events.jsonl"
    sample = {"event": "sample", "step": 7, "prompt": EVIL, "text": EVIL + "\ud800"}
    events.write_text(events.read_text() + json.dumps(sample) + "\n")
    page = write_report([run]).read_text(encoding="utf-8")
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 2 and "img" not in [tag for tag, _ in outline.tags]
    content = json.loads(outline.texts["script"][0])
    assert content["runs"][0]["description"] == EVIL
    assert EVIL in content["runs"][0]["stages"][0]["heldout"]["values"]
    script = "".join(outline.texts["script"][1:])
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script and "document.write" not in script


def test_a_name_is_escaped_in_the_title(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="<b>&")
    page = write_report([run]).read_text(encoding="utf-8")
    assert "<title>&lt;b&gt;&amp;</title>" in page


def test_the_same_run_gives_the_same_bytes_and_the_file_is_left_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = write_report([run])
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert write_report([run]) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    (run / "benchmark.json").unlink()
    write_report([run])
    assert path.read_bytes() != before[0]


def test_out_and_what_stands_in_its_way(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name=name) for name in ("a", "b")]
    out = tmp_path / "pages" / "both.html"
    assert write_report(runs, out) == out and "<title>a, b</title>" in out.read_text()
    assert not (runs[0] / "report.html").exists()
    with pytest.raises(ShardError, match="is a folder: give --out a file"):
        write_report(runs, tmp_path)


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    """20,000 steps are thinned as 100,000 are: the curves of both have at most 2,000 buckets a stage."""
    path = write_report([write_run(tmp_path / "run", steps=20_000, anneal=4_000)])
    assert path.stat().st_size < 1_500_000
    content = json.loads(Outline(path.read_text(encoding="utf-8")).texts["script"][0])
    curves = content["runs"][0]["stages"][0]["every_step"]
    assert len(curves["step"]) == 2000 and curves["bucket"] == 10
    loss = curves["values"]["loss"]
    assert all(low <= mean <= high for low, mean, high in zip(loss["low"], loss["mean"], loss["high"], strict=True))
