"""The journal of a run: what a crash leaves of it, and what a resume cuts."""

import json

from shard.training.metrics import Journal, read_jsonl


def test_lines_are_written_at_once_and_in_order(tmp_path):
    journal = Journal(tmp_path / "pretrain")
    journal.metric(step=1, loss=9.0)
    assert read_jsonl(tmp_path / "pretrain" / "metrics.jsonl") == [{"step": 1, "loss": 9.0}]
    journal.metric(step=2, loss=8.5, bits_per_byte={"a": 1.25})
    assert read_jsonl(journal.metrics_path)[1] == {"step": 2, "loss": 8.5, "bits_per_byte": {"a": 1.25}}
    assert journal.metrics_path.read_text().count("\n") == 2


def test_events_say_when(tmp_path):
    journal = Journal(tmp_path)
    journal.event("rank_loss", name="blocks.0", ratio=0.0)
    (event,) = read_jsonl(journal.events_path)
    assert (event["event"], event["name"], event["ratio"]) == ("rank_loss", "blocks.0", 0.0)
    assert event["time"].endswith("Z")
    assert len(event["time"]) == len("2026-01-01T00:00:00Z")


def test_resume_cuts_what_lies_past_the_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    for step in range(1, 8):
        journal.metric(step=step, loss=1 / step)
    before = journal.metrics_path.read_text().splitlines(keepends=True)
    Journal(tmp_path).resume(4)
    assert journal.metrics_path.read_text() == "".join(before[:4]), "the lines that stay keep every digit"
    journal.metric(step=5, loss=0.5)
    assert [line["step"] for line in read_jsonl(journal.metrics_path)] == [1, 2, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_resume_from_the_start_cuts_everything(tmp_path):
    journal = Journal(tmp_path)
    journal.metric(step=1)
    journal.resume(0)
    assert read_jsonl(journal.metrics_path) == []


def test_resume_without_files_makes_none(tmp_path):
    Journal(tmp_path).resume(3)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_last_line_is_left_out_and_cut(tmp_path):
    journal = Journal(tmp_path)
    for step in (1, 2):
        journal.metric(step=step, loss=0.125)
    whole = journal.metrics_path.read_text()
    for cut in range(1, len(whole.splitlines()[1])):
        journal.metrics_path.write_text(whole + whole.splitlines()[1][:cut])
        assert [line["step"] for line in read_jsonl(journal.metrics_path)] == [1, 2]
    journal.resume(2)
    assert journal.metrics_path.read_text() == whole


def test_a_last_line_without_its_newline_does_not_swallow_the_next(tmp_path):
    journal = Journal(tmp_path)
    journal.metric(step=1)
    journal.metrics_path.write_text(journal.metrics_path.read_text().rstrip("\n"))
    journal.resume(1)
    journal.metric(step=2)
    assert [line["step"] for line in read_jsonl(journal.metrics_path)] == [1, 2]


def test_a_half_written_event_does_not_hide_the_later_ones(tmp_path):
    """Events are never cut by step: they happened. But a broken line would end every later reading of the file."""
    journal = Journal(tmp_path)
    journal.event("start")
    with journal.events_path.open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00Z", "ev')
    journal.resume(0)
    journal.event("rank_loss", step=9)
    assert [event["event"] for event in read_jsonl(journal.events_path)] == ["start", "rank_loss"]


def test_text_that_breaks_lines_stays_on_one(tmp_path):
    journal = Journal(tmp_path)
    journal.event("sample", text="a\nb\u2028c\x85d é")
    (event,) = read_jsonl(journal.events_path)
    assert event["text"] == "a\nb\u2028c\x85d é"


def test_read_jsonl_of_nothing(tmp_path):
    assert read_jsonl(tmp_path / "absent") == []
    (tmp_path / "x").write_bytes(b'{"a": 1}\n\xff\xfe')
    assert read_jsonl(tmp_path / "x") == [{"a": 1}]
    (tmp_path / "y").write_text(json.dumps([1]) + "\n" + json.dumps({"a": 2}) + "\n")
    assert read_jsonl(tmp_path / "y") == [{"a": 2}]
