"""Code that parses: what is cut off as unfinished, and what is called wrong."""

import ast
import dataclasses
from pathlib import Path

import pytest

from shard.evaluation.tasks import code
from shard.evaluation.tasks.code import measure, parses, whole_prefix
from shard.evaluation.tasks.code_prompts import PROMPTS
from shard.evaluation.tasks.form import NotMeasured

HEAD = "def f(x):\n"


def test_the_prompts_are_frozen_and_unfinished():
    assert len(set(PROMPTS)) == len(PROMPTS) == 40
    for prompt in PROMPTS:
        assert not parses(prompt, "", is_ended=True), f"nothing new: {prompt!r}"


@pytest.mark.parametrize(
    ("continuation", "is_ended", "expected"),
    [
        ("    return x\n", False, True),
        ("    return x", True, True),
        ("    return x", False, False),  # it may go on: no whole line is there
        ("    return x\n    retu", False, True),
        ("    return x +\n    y\n", False, False),
        ("    return x\n  y\n", False, False),
        ("    return (x\n", False, False),  # nothing whole is left
        ("    y = x\n    return (y,\n        x,\n", False, True),
        ("    y = x\n    return (y\n    z = 3\n", False, False),
        ('    y = x\n    """a text that has no\nend', False, True),
        ("    y = 'no end\n    z\n", False, False),
        ("    if x:\n", False, False),
        ("    y = x\n    if x:\n", False, True),
        ("    y = x\n    try:\n        y\n", False, True),
        ("    y = x\n\n@decorated\n", False, True),
        ("    # a remark\n", False, False),
        ("\n\n\n", False, False),
        ("    pass\n" * 40, False, True),
        ("    return '\\d'\n", False, True),  # a strange escape is a warning
        ("    x\0y\n", False, False),
        ("    " + "(" * 500 + "\n", False, False),
        ("    the answer is forty-two.\n", False, False),
        ("\ufffd\ufffd\n", False, False),
    ],
)
def test_a_continuation(continuation, is_ended, expected):
    assert parses(HEAD, continuation, is_ended) == expected


def test_a_line_that_the_prompt_began():
    assert parses("x = 1\ny =", " 2\n", False)
    assert not parses("x = 1\ny =", " 2", False)
    assert not parses("x = 1\ny =", " \n", False)
    assert parses("x = 1\ny = 2", "\n", False), "the end of its line was the model's choice"
    assert not parses("y = [1,", " 2,\n 3,\n", False), "what was begun is not whole, and nothing else is there"


def test_the_whole_prefix_is_a_beginning():
    text = "a = 1\nfor i in a:\n    b = (i,\n         2"
    assert whole_prefix(text, False) == "a = 1\n"
    assert whole_prefix(text + ")\n", False) == text + ")\n"
    assert whole_prefix("", True) == whole_prefix("x", False) == ""
    assert whole_prefix("a b c\n", False) == "a b c\n", "what is wrong is not cut off"


def test_real_code_parses_wherever_it_is_cut(subject):
    """A program that is right, cut anywhere, is never called wrong once a line of it stands."""
    source = ast.unparse(ast.parse(Path(code.__file__).read_text(encoding="utf-8"))) + "\n"
    first = source.index("\n", source.index("import ast")) + 1
    prompt = source[: source.index("import ast")]
    for end in range(first, len(source), 37):
        assert parses(prompt, source[len(prompt) : end], False), source[end - 80 : end]


def test_chance_is_random_tokens(monkeypatch, subject):
    encode = subject.loaded.tokenizer.encode
    monkeypatch.setattr(code, "continue_greedily", lambda m, prompts, *_: [encode("\nx = 1\n").ids for _ in prompts])
    (score,) = measure(subject, None).scores
    assert score.items == 40 and 0.1 < score.value < 0.9, "some prompts end where a new line may begin"
    assert score.chance < 0.1


def test_a_model_that_knows_nothing(subject):
    (score,) = measure(subject, 5).scores
    assert score.items == 5 and score.value <= 0.4
    with pytest.raises(NotMeasured, match="the context is 100"):
        measure(dataclasses.replace(subject, context=100), None)
