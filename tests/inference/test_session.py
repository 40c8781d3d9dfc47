"""What `shard generate` does with prompts: alone, side by side, from a file, with stop strings, without a cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shard.config import Config
from shard.errors import UsageError
from shard.inference import session as session_module
from shard.inference.decoder import Decoder
from shard.inference.load import LoadedModel
from shard.inference.session import Sampling, Session, read_prompts
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer

PROMPTS = ["the theme", "", "a thesis of the café, and of 東京", "x" * 20, "of"]


@pytest.fixture
def session() -> Session:
    torch.manual_seed(3)
    model = ShardLM(
        Config(
            vocab_size=280, hidden_size=32, num_layers=2, num_heads=2, head_dim=16, intermediate_size=48,
            max_sequence_length=64, sliding_window=8,
        )
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.4)
        model.embedding.weight.normal_(std=0.1)
    tokenizer = train_tokenizer(["the theme of the thesis, naïve café 東京 東京"] * 4, 280)
    loaded = LoadedModel(model.eval(), tokenizer, 0, "here", Path("here"))
    return Session(loaded, Sampling(max_tokens=20), Decoder(model))


def test_a_stream_begins_with_its_prompt(session: Session) -> None:
    for prompt in PROMPTS:
        pieces = list(session.stream(prompt))
        assert "".join(pieces).startswith(prompt) and all(pieces)


@pytest.mark.parametrize(
    "change", [{}, {"temperature": 1.0, "seed": 4}, {"stops": ("th", "e", "\ufffd")}, {"max_tokens": 1}], ids=str
)
def test_prompts_side_by_side_give_what_each_gives_alone(session: Session, change: dict[str, object]) -> None:
    session = replace(session, sampling=replace(session.sampling, **change))  # type: ignore[arg-type]
    alone = ["".join(session.stream(prompt)) for prompt in PROMPTS]
    got = list(session.complete(PROMPTS))
    assert got == [{"prompt": prompt, "text": text} for prompt, text in zip(PROMPTS, alone, strict=True)]


def test_more_prompts_than_rows_come_in_their_order(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(session.complete(PROMPTS))
    monkeypatch.setattr(session_module, "BATCH_ROWS", 2)
    assert list(session.complete(PROMPTS)) == whole


def test_the_plain_loop_gives_the_same_text(session: Session) -> None:
    """Save that it goes on beyond the end of a document."""
    plain = replace(session, decoder=None)
    for ours, theirs in zip(session.complete(PROMPTS), plain.complete(PROMPTS), strict=True):
        assert theirs["text"].startswith(ours["text"].rstrip("\ufffd"))


def test_a_stop_string_cuts_the_text(session: Session) -> None:
    whole = "".join(session.stream("the theme"))
    new = whole.removeprefix("the theme")
    stop = new[len(new) // 2 :][:2]
    assert len(stop) == 2
    stopping = replace(session, sampling=replace(session.sampling, stops=(stop,)))
    assert "".join(stopping.stream("the theme")) == "the theme" + new[: new.index(stop)]


def test_every_prompt_is_checked_before_any_work(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "start", lambda *_: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match=r"has 200 tokens and the model's context is 64"):
        list(session.complete(["a", "q" * 200]))
    with pytest.raises(UsageError, match="not Unicode"):
        list(session.complete(["a", "caf\udce9"]))


# A file of prompts


def test_a_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('first\n\n  \n{"prompt": 1}\n东京 \n', encoding="utf-8")
    assert read_prompts(path) == ["first", '{"prompt": 1}', "东京 "]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "two\\nlines", "more": 1}\n\n{"prompt": ""}\n', encoding="utf-8")
    assert read_prompts(path) == ["two\nlines", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n \n", "holds no prompt"),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "x"}', 'line 2 is not {"prompt": "text"}'),
        ("a.jsonl", b"x", "line 1 is not"),
        ("a.jsonl", b"[1]", "line 1 is not"),
        ("a.jsonl", b'{"prompt": 3}', "line 1 is not"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_prompts(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# The conversation


def test_a_conversation_goes_on_after_a_mistake_and_an_interrupted_text(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at the prompt and in the text, a prompt too long, then Ctrl-D."""
    answers = iter(["q" * 200, KeyboardInterrupt, "stop", "the theme", EOFError])

    def ask(_: str) -> str:
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    stream = Session.stream

    def interrupted(self: Session, prompt: str):  # type: ignore[no-untyped-def]
        if prompt == "stop":
            yield "half a te"
            raise KeyboardInterrupt
        yield from stream(self, prompt)

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(Session, "stream", interrupted)
    session.chat()
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("here: a base model")
    assert lines[1].startswith("shard: the prompt has 200 tokens")
    assert lines[2:4] == ["", "half a te"] and lines[4].startswith("the theme")
