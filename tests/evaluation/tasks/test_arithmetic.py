"""Arithmetic: the problems, how an answer is read, and that a model which calculates gets all of them."""

import dataclasses
from collections import Counter

import pytest

from shard.evaluation.tasks import arithmetic
from shard.evaluation.tasks.arithmetic import Sum, make_items, measure, read_answer
from shard.evaluation.tasks.form import NotMeasured


def test_the_problems_are_frozen():
    items = make_items()
    assert len(set(items)) == len(items) == 520
    cells = Counter((item.operation, item.digits) for item in items)
    assert cells == {cell: 40 if cell[1] == 1 else 50 for cell in arithmetic.CELLS}
    for item in items:
        assert len(str(item.left)) == len(str(item.right)) == item.digits
        assert item.answer == eval(item.prompt.split("is ")[1].split("?")[0])
        assert item.answer >= 0
    assert {(item.operation, item.digits) for item in items[:11]} == set(arithmetic.CELLS), "any beginning is balanced"
    assert items[0].prompt == "Question: What is 9 + 6? Answer:"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 42", 42),
        ("42.", 42),
        (" 42\nThe", 42),
        ("\n\n 42 + 1", 42),
        (" -3", -3),
        (" 420", 420),
        (" 042", 42),
        (" about 42", None),
        ("", None),
        (" 4 2", 4),
    ],
)
def test_the_number_that_a_continuation_begins_with(text, answer):
    assert read_answer(text) == answer


def answering(monkeypatch, subject, answer) -> None:
    """Let a model say `answer(item)`."""
    items = iter(make_items())
    encode = subject.loaded.tokenizer.encode

    def continue_greedily(model, prompts, max_tokens, stop_id):
        assert [subject.loaded.tokenizer.decode(ids).startswith("Question: What is") for ids in prompts]
        return [encode(answer(item)).ids[:max_tokens] for _, item in zip(prompts, items, strict=False)]

    monkeypatch.setattr(arithmetic, "continue_greedily", continue_greedily)


def test_right_answers_are_counted(monkeypatch, subject):
    answering(monkeypatch, subject, lambda item: f" {item.answer}\n")
    scores = measure(subject, None).scores
    assert [score.value for score in scores] == [1.0] * 12, "all of them within the tokens that are read"
    assert scores[0].items == 520 and sum(score.items for score in scores[1:]) == 520
    assert scores[0].metric == "exact match" and scores[1].metric == "exact match, addition of 1 digit"
    answering(monkeypatch, subject, lambda item: f" {item.answer}{'0' if item.digits == 3 else '.'}")
    by_metric = {score.metric: score.value for score in measure(subject, None).scores}
    assert by_metric.pop("exact match") == pytest.approx(370 / 520)
    assert all(value == ("of 3" not in metric) for metric, value in by_metric.items()), "a digit more is another number"


def test_chance_is_the_best_fixed_answer(monkeypatch, subject):
    items = [item for item in make_items() if (item.operation, item.digits) == ("+", 1)]
    (answer, count), *_ = Counter(item.answer for item in items).most_common()
    answering(monkeypatch, subject, lambda item: f" {answer}")
    score = measure(subject, None).scores[1]
    assert score.value == score.chance == count / 40
    assert 0.05 < score.chance < 0.3


def test_a_model_that_knows_nothing(subject):
    measured = measure(subject, 22)
    assert measured.scores[0].items == 22 and measured.scores[0].value < 0.2
    assert measured.sha256 == measure(subject, 11).sha256, "of all items"


def test_a_context_that_is_too_short(subject):
    with pytest.raises(NotMeasured, match="the context is 20"):
        measure(dataclasses.replace(subject, context=20), None)


def test_differences_are_the_right_way_round():
    assert Sum(7, "-", 3, 1).answer == 4 and Sum(7, "*", 3, 1).answer == 21
