"""The report in a real browser, `make test-browser`: nothing fails, every chart is drawn, and pointing at it answers.

SHARD_SCREENSHOTS=FOLDER keeps the screenshots, to be looked at. SHARD_CHROMIUM names a browser that is not in PATH.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_run

from shard.report.page import write_report

pytestmark = pytest.mark.slow

CHARTS = ["loss", "heldout", "learning-rate", "gradient-norm", "throughput", "memory"]
EVIL = "</script><img src=x onerror=alert(2)>"

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'shard-lm[browser]'")
    path = os.environ.get("SHARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no chromium: install it, or name it in SHARD_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # A sandbox of its own is refused to root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Open]:
    """A page on a file; at the end, nothing must have been logged, asked for or raised in any of them."""
    trouble: list[str] = []
    contexts = []

    def open_(path: Path, width: int = 1440, scheme: str = "light", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(f"request: {r.url}")
        )
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([write_run(tmp_path_factory.mktemp("one") / "run")])


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    runs = [
        write_run(folder / "a", name="first"),
        write_run(folder / "b", name="second", lr_muon=0.03, steps=300, skipped=(), seed=1),
    ]
    return write_report(runs)


def frame(page: Any, chart: str) -> dict[str, float]:
    """Where a chart stands in the window, scrolled into it."""
    plot = page.locator(f"#{chart} svg.plot")
    plot.scroll_into_view_if_needed()
    box: dict[str, float] = plot.bounding_box()
    return box


def point_at(page: Any, chart: str, share: float) -> str:
    """The tip at this share of a chart's width."""
    box = frame(page, chart)
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    tip: str = page.locator(f"#{chart} .tip").inner_text()
    return tip


def labels(page: Any, chart: str) -> list[str]:
    """The numbers along the horizontal axis."""
    found: list[str] = page.locator(f"#{chart} .labels text:not([text-anchor=end])").all_text_contents()
    return found


def screenshot(page: Any, name: str) -> bytes:
    content: bytes = page.screenshot(full_page=True)
    if folder := os.environ.get("SHARD_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(content)
    return content


def assert_drawn(page: Any) -> None:
    """Every chart that is there has lines with places in them, and every line is a number all along."""
    for chart in page.locator("figure:has(svg.plot)").all():
        paths = chart.locator("path.line").evaluate_all("lines => lines.map(line => line.getAttribute('d'))")
        assert paths and all(len(path) > 20 for path in paths), chart.get_attribute("id")
        markup = chart.locator("svg.plot").inner_html()
        assert "NaN" not in markup and "Infinity" not in markup and "undefined" not in markup
        size = chart.locator("path.line").last.bounding_box()
        assert size["width"] > 50
        assert chart.locator(".labels text").count() >= 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_chart_is_drawn_on_a_phone_and_on_a_screen(
    report: Path, open_page: Open, width: int, scheme: str
) -> None:
    page = open_page(report, width, scheme)
    assert [page.locator(f"#{chart} svg.plot").count() for chart in CHARTS] == [1] * len(CHARTS)
    assert_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it does not scroll sideways"
    assert len(screenshot(page, f"one-{width}-{scheme}")) > 50_000
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 600) == (scheme == "light")
    for section in ("happened", "sentinel", "data", "evaluation", "benchmark", "samples", "recipe"):
        assert page.locator(f"section#{section}").count() == 1, section


def test_pointing_shows_the_values_of_that_step(report: Path, open_page: Open) -> None:
    page = open_page(report)
    lines = [
        json.loads(line)
        for stage in ("pretrain", "anneal")
        for line in (report.parent / stage / "metrics.jsonl").read_text().splitlines()
    ]
    for share in (0.3, 0.55, 0.9):
        tip = point_at(page, "loss", share)
        step = int(re.search(r"step ([\d,]+)", tip)[1].replace(",", ""))  # type: ignore[index]
        assert abs(step - 500 * share) < 60
        assert float(re.search(r"loss: ([\d.]+)", tip)[1]) == pytest.approx(lines[step - 1]["loss"], rel=1e-4)  # type: ignore[index]
        assert f"{step}K tokens" in tip
    assert re.search(r"hidden matrices \(Muon\): 0\.02\n.*AdamW\).*: 0\.03", point_at(page, "learning-rate", 0.5))
    assert re.search(r"memory: 1 GB", point_at(page, "memory", 0.5))
    assert page.locator("#throughput .cross path").count() == 1, "the others show the same place"
    tip = point_at(page, "heldout", 0.5)
    assert "prose: " in tip and "code: " in tip


def test_marks_are_drawn_and_named(report: Path, open_page: Open) -> None:
    page = open_page(report)
    for kind, count in (("skipped", 2), ("rollback", 1), ("restart", 1)):
        assert page.locator(f"#loss path.flag.{kind}").count() >= count, kind
    flag = page.locator("#loss path.flag.skipped").last.bounding_box()
    box = frame(page, "loss")
    tip = point_at(page, "loss", (flag["x"] + flag["width"] / 2 - box["x"]) / box["width"])
    assert "step 300: step skipped, loss spike: loss 99, gradient norm 88" in tip
    assert "step skipped: 3" in page.locator("#happened .keys").inner_text()
    assert page.locator("#happened tbody tr").count() == 5


def test_dragging_zooms_all_charts_and_a_double_click_shows_all(report: Path, open_page: Open) -> None:
    page = open_page(report)
    before = labels(page, "loss")
    box = frame(page, "loss")
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.6 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], middle, steps=4)
    page.mouse.up()
    zoomed = labels(page, "loss")
    assert zoomed != before and zoomed == labels(page, "memory")
    assert all(280 <= float(text) <= 350 for text in zoomed)
    assert_drawn_line = page.locator("#loss path.line").last.get_attribute("d")
    assert "NaN" not in assert_drawn_line
    page.locator("#loss svg.plot").dblclick()
    assert labels(page, "loss") == before
    page.get_by_label("zoom in").click()
    assert labels(page, "loss") != before
    page.get_by_label("show everything").click()
    assert labels(page, "loss") == before


def test_axes_scales_smoothing_and_keys(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.get_by_role("button", name="tokens", exact=True).click()
    assert labels(page, "loss")[-1].endswith("K")
    assert_drawn(page)
    page.get_by_role("button", name="time", exact=True).click()
    assert labels(page, "loss")[-1].endswith(("m00s", "s"))
    assert_drawn(page)
    line = page.locator("#loss path.line").last
    linear = line.get_attribute("d")
    page.locator("#loss .buttons button").click()
    assert page.locator("#loss path.line").last.get_attribute("d") != linear
    assert page.locator("#loss path.line.raw").count() == 2
    page.get_by_label("moving average").click()
    assert page.locator("#loss path.line.raw").count() == 0
    page.locator("#loss svg.plot").focus()
    page.keyboard.press("ArrowRight")
    assert "loss: " in page.locator("#loss .tip").inner_text()


def test_fingers_point_and_pinch(report: Path, open_page: Open) -> None:
    page = open_page(report, 390, has_touch=True, is_mobile=True)
    box = frame(page, "loss")
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "loss: " in page.locator("#loss .tip").inner_text()
    before = labels(page, "loss")
    session = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2

    def touch(kind: str, *places: float) -> None:
        points = [{"x": box["x"] + x, "y": y, "id": i} for i, x in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 150, 210)
    for gap in (80, 120, 160, 200):
        touch("touchMove", 180 - gap / 2, 180 + gap / 2)
    touch("touchEnd")
    assert labels(page, "loss") != before
    assert page.evaluate("visualViewport.scale") == 1, "the chart is zoomed, not the page"


def colors_of(page: Any) -> list[int]:
    """The different colors of the sentinel's map, as numbers."""
    found: list[int] = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas.heat"), copy = canvas.cloneNode();
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          const data = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
          return [...new Set(data)];
        }"""
    )
    return found


def test_the_sentinel_is_drawn_and_answers(report: Path, open_page: Open) -> None:
    page = open_page(report)
    light = colors_of(page)
    assert len(light) > 8
    canvas = page.locator("canvas.heat")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 2.5 * 16)
    tip = page.locator("#sentinel .tip").inner_text()
    assert "blocks.1.attention.query.weight (weight): " in tip and "% lost" in tip
    page.locator("#sentinel select").first.select_option("momentum")
    assert len(colors_of(page)) < len(light), "no momentum lost anything"
    page.locator("#sentinel select").last.select_option("smallest / largest singular value")
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 8)
    assert "smallest / largest 0.01" in page.locator("#sentinel .tip").inner_text()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert not set(colors_of(page)) & set(light) - {0}, "all is drawn anew"


def test_two_runs_lie_over_one_another(overlay: Path, open_page: Open) -> None:
    page = open_page(overlay)
    assert_drawn(page)
    colors = page.locator("#loss path.line:not(.raw)").evaluate_all(
        "lines => lines.map(x => getComputedStyle(x).stroke)"
    )
    assert len(colors) == 4 and len(set(colors)) == 2
    assert sorted(page.locator("#differences tbody tr").all_inner_texts()) == [
        "anneal.lr_muon\t0.02\t0.03",
        "name\tfirst\tsecond",
        "pretrain.lr_muon\t0.02\t0.03",
        "pretrain.steps\t400\t300",
    ]
    tip = point_at(page, "loss", 0.4)
    assert "first: " in tip and "second: " in tip
    assert page.locator("#heldout-0 svg.plot").count() == page.locator("#heldout-1 svg.plot").count() == 1
    page.locator("#loss .legend button", has_text="second").click()
    assert page.locator("#loss path.line:not(.raw)").count() == 2
    for width in (390, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        screenshot(page, f"two-{width}")


def test_each_result_of_a_task_has_a_row(report: Path, open_page: Open) -> None:
    rows = open_page(report).locator("#evaluation tr").all_inner_texts()
    assert "arc_easy_cloze\tnot measured: files not at hand\t\t\t\t" in rows
    assert "arithmetic\texact match\t0.125\t0.0625\t0.01\t28" in rows
    assert "\tof 1 digit\t0.125\t0.0625\t0.01\t28" in rows


def test_a_window_that_changes_its_width_is_drawn_anew(report: Path, open_page: Open) -> None:
    page = open_page(report)
    wide = frame(page, "loss")["width"]
    page.set_viewport_size({"width": 500, "height": 900})
    page.wait_for_timeout(200)
    assert frame(page, "loss")["width"] < wide
    assert page.locator("#loss svg.plot").get_attribute("viewBox").split()[2] == str(int(frame(page, "loss")["width"]))
    assert_drawn(page)


def test_text_of_a_run_is_shown_and_not_run(tmp_path: Path, open_page: Open) -> None:
    run = write_run(tmp_path / "run", source=EVIL)
    with (run / "pretrain" / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "sample", "step": 9, "prompt": EVIL, "text": f"{EVIL} goes on"}) + "\n")
    page = open_page(write_report([run]))
    assert EVIL in page.locator("#heldout .legend").inner_text()
    assert EVIL in page.locator("#samples").inner_text()
    assert page.locator("img").count() == 0


def test_runs_that_have_just_begun_or_are_going_on(tmp_path: Path, open_page: Open) -> None:
    begun = write_run(tmp_path / "begun")
    for stage in ("pretrain", "anneal"):
        shutil.rmtree(begun / stage)
    page = open_page(write_report([begun]))
    assert "No step of training has been recorded yet." in page.locator("header").inner_text()
    assert page.locator("svg.plot").count() == 0
    for count in (0, 1, 2):
        going = write_run(tmp_path / f"going-{count}")
        shutil.rmtree(going / "anneal")
        path = going / "pretrain" / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:count]) + lines[count][:40])
        page = open_page(write_report([going]))
        assert page.locator("#loss svg.plot").count() == (count > 0)
        if count:
            markup = page.locator("#loss svg.plot").inner_html()
            assert "NaN" not in markup
            assert page.locator("#loss circle.dot").count() == count


def test_a_run_of_a_hundred_thousand_steps(tmp_path: Path, open_page: Open) -> None:
    path = write_report([write_run(tmp_path / "run", steps=100_000, anneal=20_000, skipped=(77_777,))])
    assert path.stat().st_size < 3_000_000
    begun = time.monotonic()
    page = open_page(path)
    assert_drawn(page)
    print(f"{path.stat().st_size:,} bytes, drawn after {time.monotonic() - begun:.1f} s")
    assert page.locator("#loss polygon.band").count() == 2
    tip = point_at(page, "loss", 0.5)
    assert re.search(r"loss: [\d.]+ \([\d.]+ to [\d.]+ in 50 steps\)", tip)
    screenshot(page, "long-1440")
