"""ARC: what is read, how it is asked, and how the scores are made of log-likelihoods."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shard.data.row_format import write_multiple_choice
from shard.evaluation.likelihood import Likelihood, log_likelihoods
from shard.evaluation.tasks import arc
from shard.evaluation.tasks.arc import Question, cloze_prompt, find_questions, letters_prompt, measure, read_questions
from shard.evaluation.tasks.form import NotMeasured

ROWS = [
    {
        "id": str(i),
        "question": f"What is number {i}?",
        "choices": {"text": [f"a{i}", "bb", "cccc", "d" * 9][: 3 + i % 2], "label": list("1234")[: 3 + i % 2]},
        "answerKey": "3",
    }
    for i in range(6)
]


def write(folder: Path, rows: list[dict], subset: str = "ARC-Easy") -> Path:
    path = folder / arc.REPOSITORY / subset / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return folder


def test_the_questions_of_the_first_folder_that_has_them(tmp_path):
    first, second = tmp_path / "none", write(tmp_path / "run", ROWS)
    other = write(tmp_path / "mirror", ROWS[:1])
    path = find_questions([first, second, other], "ARC-Easy")
    assert path is not None and path.is_relative_to(second)
    questions = read_questions(path)
    assert [question.answer for question in questions] == [2] * 6
    assert questions[0] == Question("What is number 0?", ("a0", "bb", "cccc"), 2)
    assert find_questions([second], "ARC-Challenge") is None


def test_files_that_are_not_at_hand_are_no_failure(subject, tmp_path):
    for folders in ([], [tmp_path], [tmp_path / "none"]):
        with pytest.raises(NotMeasured, match=r"^files not at hand$"):
            measure("cloze", "ARC-Easy", dataclasses.replace(subject, question_folders=folders), None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answerKey": "E"}, "not a file of allenai/ai2_arc"),
        ({"choices": None}, "not a file of allenai/ai2_arc"),
        ({"choices": {"text": ["one"], "label": ["3"]}}, "without choices"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, change, reason):
    write(tmp_path, [ROWS[0] | change])
    path = find_questions([tmp_path], "ARC-Easy")
    with pytest.raises(NotMeasured, match=reason):
        read_questions(path)
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(NotMeasured, match="not a file of allenai/ai2_arc"):
        read_questions(path)


def test_how_a_question_is_asked():
    question = Question("What is cold?", ("fire", "ice"), 1)
    assert cloze_prompt(question) == ("Question: What is cold?\nAnswer:", [" fire", " ice"])
    context, continuations = letters_prompt(question)
    assert continuations == [" A", " B"]
    row = {"question": "What is cold?", "choices": {"text": ["fire", "ice"], "label": ["A", "B"]}, "answerKey": "B"}
    written = write_multiple_choice(row)
    assert written.startswith(context + continuations[1]), "as the questions to train on are written"


def test_scores_of_known_log_likelihoods(monkeypatch, subject, tmp_path):
    """The likeliest choice is the right one in five of six; per character the longest is."""
    asked = dataclasses.replace(subject, question_folders=[write(tmp_path, ROWS)])

    def scored(model, requests):
        texts = [asked.loaded.tokenizer.decode(list(request.continuation)) for request in requests]
        wrong = next(i for i, request in enumerate(requests) if " 5" in decode(request.context))
        return [
            Likelihood(-1.0 if text == " cccc" and i < wrong else -2.0 - len(text) / 100, False)
            for i, text in enumerate(texts)
        ]

    def decode(ids):
        return asked.loaded.tokenizer.decode(list(ids))

    monkeypatch.setattr(arc, "log_likelihoods", scored)
    monkeypatch.setattr(arc.hashlib, "sha256", lambda text: _Digest(text))
    acc, acc_norm = measure("cloze", "ARC-Easy", asked, None).scores
    assert (acc.metric, acc.value, acc.items) == ("acc", pytest.approx(5 / 6), 6)
    # -1 / 4 a character for the right one against -2.1 / 9 for the fourth choice, which every other question has.
    assert (acc_norm.metric, acc_norm.value) == ("acc_norm", pytest.approx(3 / 6))
    assert acc.chance == acc_norm.chance == pytest.approx((1 / 3 + 1 / 4) / 2)


class _Digest:
    """Keeps questions in their order."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def digest(self) -> bytes:
        return self.text

    def hexdigest(self) -> str:
        return self.text.hex()


def test_a_real_model_scores_each_choice_after_its_question(subject, tmp_path):
    """The whole path, against log-likelihoods that are computed here."""
    asked = dataclasses.replace(subject, question_folders=[write(tmp_path, ROWS)])
    encode = asked.loaded.tokenizer.encode
    for form, prompt in (("cloze", cloze_prompt), ("letters", letters_prompt)):
        hits = []
        for question in read_questions(find_questions([tmp_path], "ARC-Easy")):
            context, continuations = prompt(question)
            requests = [
                arc.Request(tuple(encode(context).ids), tuple(encode(context + c).ids[len(encode(context).ids) :]))
                for c in continuations
            ]
            values = [found.log_likelihood for found in log_likelihoods(asked.loaded.model, requests)]
            hits.append(max(range(len(values)), key=values.__getitem__) == question.answer)
        measured = measure(form, "ARC-Easy", asked, None)
        assert measured.scores[0].value == pytest.approx(sum(hits) / 6)
        assert len(measured.scores) == (2 if form == "cloze" else 1)


def test_a_limit_takes_some_and_the_hash_is_of_all(subject, tmp_path):
    asked = dataclasses.replace(subject, question_folders=[write(tmp_path, ROWS)])
    some, every = measure("letters", "ARC-Easy", asked, 4), measure("letters", "ARC-Easy", asked, None)
    assert some.scores[0].items == 4 and some.sha256 == every.sha256
    changed = write(tmp_path / "other", [*ROWS[:5], ROWS[5] | {"answerKey": "1"}])
    other = measure("letters", "ARC-Easy", dataclasses.replace(asked, question_folders=[changed]), 4)
    assert other.sha256 != every.sha256
    with pytest.raises(NotMeasured, match="the context is 20"):
        measure("cloze", "ARC-Easy", dataclasses.replace(asked, context=20), None)
