"""AI2 ARC, the validation questions (Clark et al., 2018), by log-likelihood: in cloze and in multiple-choice form.

cloze    "Question: ...\\nAnswer:", and each choice as its continuation, without the others in sight. `acc` takes the
         likeliest choice, `acc_norm` the likeliest per character.
letters  the question and its choices behind letters, laid out as the training questions are (data/row_format.py), and
         each letter as the continuation. `acc` takes the likeliest letter.

Chance is to pick one of the choices at random.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from shard.evaluation.likelihood import Request, encode_request, log_likelihoods
from shard.evaluation.tasks.form import Measured, NotMeasured, Score, Subject, Task, check_fits, hash_items, share

REPOSITORY = "allenai/ai2_arc"
SUBSETS = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
FORMS = ("cloze", "letters")
NOT_AT_HAND = "files not at hand"


@dataclass(frozen=True)
class Question:
    """A question, its choices, and the place of the right one among them."""

    question: str
    choices: tuple[str, ...]
    answer: int


def find_questions(folders: Sequence[Path], subset: str) -> Path | None:
    """The file of the validation questions of a subset, in the first folder that has one."""
    found = (path for folder in folders for path in sorted((folder / REPOSITORY / subset).glob("validation-*.parquet")))
    return next(found, None)


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, in order. Raises NotMeasured where it is not what it should be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path, columns=["question", "choices", "answerKey"]).to_pylist()
        questions = [
            Question(row["question"], tuple(row["choices"]["text"]), row["choices"]["label"].index(row["answerKey"]))
            for row in rows
        ]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise NotMeasured(f"{path} is not a file of {REPOSITORY} ({reason})") from None
    if not all(1 < len(question.choices) <= len(ascii_uppercase) for question in questions) or not questions:
        raise NotMeasured(f"{path} has questions without choices")
    return questions


def cloze_prompt(question: Question) -> tuple[str, list[str]]:
    """The context, and the continuation of each choice."""
    return f"Question: {question.question}\nAnswer:", [f" {choice}" for choice in question.choices]


def letters_prompt(question: Question) -> tuple[str, list[str]]:
    """The same with the choices in the context; labels in the file (1, 2, ... in some questions) become letters."""
    letters = ascii_uppercase[: len(question.choices)]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, question.choices, strict=True)]
    return f"{question.question}\n\n" + "\n".join(lines) + "\n\nAnswer:", [f" {letter}" for letter in letters]


def measure(form: str, subset: str, subject: Subject, max_items: int | None) -> Measured:
    """Scores of one form on one subset."""
    path = find_questions(subject.question_folders, subset)
    if path is None:
        raise NotMeasured(NOT_AT_HAND)
    questions = read_questions(path)
    sha256 = hash_items([asdict(question) for question in questions])
    # In an order that says nothing of the questions, so that a limit takes some of every kind.
    questions.sort(key=lambda question: hashlib.sha256(question.question.encode()).digest())
    questions = questions[:max_items]
    prompt = cloze_prompt if form == "cloze" else letters_prompt
    tokenizer, separator_id = subject.loaded.tokenizer, subject.loaded.separator_id
    requests: list[list[Request]] = []
    for question in questions:
        context, continuations = prompt(question)
        requests.append([encode_request(tokenizer, context, choice, separator_id) for choice in continuations])
    flat = [request for row in requests for request in row]
    check_fits(max(len(request.context) + len(request.continuation) for request in flat), subject)
    scores = iter(log_likelihoods(subject.loaded.model, flat))
    by_sum, by_character = [], []
    for question in questions:
        values = [next(scores).log_likelihood for _ in question.choices]
        per_character = [value / len(choice) for value, choice in zip(values, question.choices, strict=True)]
        by_sum.append(_is_first(values, question.answer))
        by_character.append(_is_first(per_character, question.answer))
    chance = sum(1 / len(question.choices) for question in questions) / len(questions)
    found: list[Score] = [share("acc", by_sum, chance)]
    if form == "cloze":
        found.append(share("acc_norm", by_character, chance))
    return Measured(sha256, tuple(found))


def _is_first(values: Sequence[float], answer: int) -> bool:
    """Whether the answer has the greatest value; of equal ones the first counts, as elsewhere."""
    return values.index(max(values)) == answer


TASKS = tuple(
    Task(f"{name}_{form}", 1, partial(measure, form, subset)) for name, subset in SUBSETS.items() for form in FORMS
)
