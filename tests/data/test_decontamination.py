"""Test questions in documents: all that were planted are found, in any dress, and nothing else."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.data import decontamination
from shard.data.decontamination import Contaminated, Contamination, EvalQuestion, read_arc, read_prompts
from shard.data.words import word_hashes
from shard.errors import ShardError

TEXTS = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)
QUESTIONS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, max_size=2).map(tuple)), max_size=5)


def random_text(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice('abcdefgh')}{rng.randrange(3000)}" for _ in range(count))


def dressed(text: str, seed: int) -> str:
    """The same words in another case, with other punctuation and white space."""
    rng = random.Random(seed)
    words = [rng.choice([str.upper, str.title, str.lower])(word) for word in re.findall(r"\w+", text)]
    return "".join(word + rng.choice([" ", "\n\n", ", ", "; (", "...", "\t", "? ", '" - ']) for word in words)


def plain_runs(question: EvalQuestion, n: int) -> list[list[str]]:
    words = re.findall(r"\w+", question.question.lower())
    if len(words) >= n:
        return [words[i : i + n] for i in range(len(words) - n + 1)]
    words += re.findall(r"\w+", " ".join(question.choices).lower())
    return [words] if words else []


def plain_find(texts: list[str], questions: list[EvalQuestion], n: int) -> dict[int, set[str]]:
    """Of each contaminated document: the origins of the questions whose words are first in it."""
    found: dict[int, set[str]] = {}
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        for place in range(len(words)):
            origins = {
                question.origin
                for question in questions
                for run in plain_runs(question, n)
                if words[place : place + len(run)] == run
            }
            if origins:
                found[i] = origins
                break
    return found


@pytest.mark.parametrize("collide", [False, True])
@settings(deadline=None, max_examples=150)
@given(st.lists(TEXTS, max_size=8), QUESTIONS, st.integers(1, 11))
def test_as_the_plain_twin(collide: bool, texts: list[str], drawn: list[tuple[str, tuple[str, ...]]], n: int) -> None:
    """Also where all hashes of n-grams collide: the words decide."""
    questions = [EvalQuestion(question, choices, f"test#{i}") for i, (question, choices) in enumerate(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(decontamination, "ngrams_at", lambda words, starts, n: np.zeros(len(starts), np.uint64))
            patch.setattr(
                decontamination, "window_hashes", lambda words, n: np.zeros(max(0, len(words) - n + 1), np.uint64)
            )
        found = Contamination.build(questions, n).find(texts)
    plain = plain_find(texts, questions, n)
    assert [document for document, _ in found] == sorted(plain)
    assert all(origin in plain[document] for document, origin in found)


def test_planted_questions_are_found_and_clean_documents_are_not() -> None:
    questions = [
        EvalQuestion(random_text(5 + i % 40, i), tuple(random_text(2, 1000 + 4 * i + j) for j in range(4)), f"test#{i}")
        for i in range(400)
    ]
    documents, wanted = [], []
    for i, question in enumerate(questions):
        words = question.question.split()
        if len(words) < 13:
            planted = " ".join([question.question, *question.choices])
        else:  # any thirteen words of it
            first = random.Random(i).randrange(len(words) - 12)
            planted = " ".join(words[first : first + 13])
        documents.append(f"{random_text(200, 5000 + i)} {dressed(planted, i)} {random_text(200, 6000 + i)}")
        wanted.append(Contaminated(2 * i, question.origin))
        # One word short of a run, or one word another: clean.
        short = planted.split()[:-1] if i % 2 else [*planted.split()[:6], "other", *planted.split()[7:]]
        documents.append(f"{random_text(200, 7000 + i)}. {' '.join(short)}, {random_text(200, 8000 + i)}")
    contamination = Contamination.build(questions)
    assert contamination.find(documents) == wanted
    assert contamination.find(word_hashes(documents)) == wanted


def test_a_run_does_not_go_over_the_border_of_documents() -> None:
    words = random_text(13, 1).split()
    contamination = Contamination.build([EvalQuestion(" ".join(words), (), "q")])
    assert contamination.find([" ".join(words[:6]), " ".join(words[6:])]) == []
    assert contamination.find(["", " ".join(words)]) == [(1, "q")]


def test_the_choices_of_a_long_question_do_not_count() -> None:
    question, choice = random_text(13, 1), random_text(20, 2)
    contamination = Contamination.build([EvalQuestion(question, (choice,), "q")])
    assert contamination.find([choice, question]) == [(1, "q")]


def test_a_document_is_named_once_for_what_is_first_in_it() -> None:
    first, second = random_text(13, 1), random_text(8, 2)
    contamination = Contamination.build([EvalQuestion(second, (), "second"), EvalQuestion(first, (), "first")])
    assert contamination.find([f"{first} {second} {first}"]) == [(0, "first")]


def test_nothing_to_look_for_and_nothing_to_look_in() -> None:
    contamination = Contamination.build([EvalQuestion("?!", (), "q")])
    assert contamination.find(["some text", "", "?!"]) == []
    assert Contamination.build([EvalQuestion("some text", (), "q")]).find([]) == []
    assert Contamination.build([]).find(["some text"]) == []


def test_the_same_in_every_process() -> None:
    code = (
        "from shard.data.decontamination import *\n"
        "questions = [EvalQuestion(' '.join(f'w{i}x{j}' for j in range(9 + i)), ('a',), f'q{i}') for i in range(8)]\n"
        "print(Contamination.build(questions).find([questions[5].question, 'clean', questions[1].question + ' a']))"
    )
    outputs = {
        subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    }
    assert outputs == {"[Contaminated(document=0, origin='q5'), Contaminated(document=2, origin='q1')]\n"}


# Reading questions


def test_read_arc(tmp_path: Path) -> None:
    folder = tmp_path / "ARC-Easy"
    folder.mkdir()
    rows = [
        {"id": "a", "question": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        {"id": "b", "question": "Why?", "choices": {"text": [], "label": []}, "answerKey": "1"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    assert read_arc(folder / "test.parquet") == [
        EvalQuestion("Which?", ("x", "y"), "ARC-Easy/test.parquet#1"),
        EvalQuestion("Why?", (), "ARC-Easy/test.parquet#2"),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"choices": [{"text": ["x"]}]}, "no column 'question', only 'choices'"),
        ({"question": ["Why?"]}, "no column 'choices', only 'question'"),
        ({"question": [None], "choices": [{"text": ["x"]}]}, "row 1: the question is NoneType, not a string"),
        ({"question": ["Why?"], "choices": [["x"]]}, "row 1: the choices are not a list of strings"),
        ({"question": ["Why?"], "choices": [{"text": [3]}]}, "row 1: the choices are not a list of strings"),
    ],
)
def test_other_parquet_files_are_refused(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    with pytest.raises(ShardError, match=re.escape(message)) as error:
        read_arc(tmp_path / "test.parquet")
    assert str(tmp_path / "test.parquet") in str(error.value)


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ShardError, match="broken parquet file"):
        read_arc(tmp_path / "broken.parquet")
    for read in (read_arc, read_prompts):
        with pytest.raises(ShardError, match=r"cannot read .*nowhere"):
            read(tmp_path / "nowhere")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(ShardError, match=r"latin\.jsonl is not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


def test_read_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"question": "Which?", "choices": ["x", "y"], "id": 3},
        {"prompt": "Say\u2028so"},
        {"text": "t", "choices": []},
        {"query": "q"},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines).replace(", ", ",\r")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompts(path) == [
        EvalQuestion("Which?", ("x", "y"), "prompts.jsonl#1"),
        EvalQuestion("Say\u2028so", (), "prompts.jsonl#3"),
        EvalQuestion("t", (), "prompts.jsonl#5"),
        EvalQuestion("q", (), "prompts.jsonl#7"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ('["Why?"]', "line 2: JSON, but not an object"),
        ('{"title": "Why?"}', "line 2: none of the keys question, prompt, text, query"),
        ('{"question": 3}', "line 2: the question is int, not a string"),
        ('{"question": "Why?", "choices": "x"}', "line 2: the choices are not a list of strings"),
        ('{"question": "Why?", "choices": ["x", 1]}', "line 2: the choices are not a list of strings"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"question": "Why?"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ShardError, match=re.escape(f"{path}, {message}")):
        read_prompts(path)
