"""The seven datasets of the reference recipe, small: in the hub's layout, several files each, with what real ones hold
twice, nearly twice, broken, too short, or from a test.
"""

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

QUESTION = "Which of these seven very old rivers carries the most salt into the northern sea each winter?"
_RNG = random.Random(0)
_WORDS = ["".join(_RNG.choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 6)) for i in range(2000)]
_LITTLE = ["the", "of", "and", "to", "that", "with", "is", "was", "are", "this"]


def prose(name: str, count: int, num_words: int = 90) -> list[str]:
    """Made-up words between English ones."""
    rng = random.Random(name)
    return [
        " ".join(rng.choice(_LITTLE if i % 3 == 0 else _WORDS) for i in range(num_words)).capitalize() + "."
        for _ in range(count)
    ]


def altered(text: str) -> str:
    return text.rpartition(" ")[0] + " otherwise."


def _arc(number: int, question: str) -> dict[str, Any]:
    choices = {"text": prose(f"choices {number}", 4, 5), "label": ["A", "B", "C", "D"]}
    return {"id": f"Mercury_{number}", "question": question, "choices": choices, "answerKey": "B"}


def _rows() -> dict[str, dict[str, list[dict[str, Any]]]]:
    web, math, book = prose("web", 240), prose("math", 120), prose("book", 90)
    asked = [f"{text} {QUESTION} {text}" for text in prose("asked", 4)]
    web_files = [[*web[i::4], asked[i], None, "Too short.", web[7 * i], altered(web[11 * i + 1])] for i in range(4)]
    math_files = [[*math[i::2], web[i], altered(web[20 + i])] for i in range(2)]
    book_files = {"stories": [*book[:45], altered(book[0])], "wikihow": [*book[45:], altered(book[1]), web[9]]}
    pairs = [
        (list(zip(prose(f"{name} p", 60, 40), prose(f"{name} s", 60, 40), strict=True))) for name in ("a", "b", "c")
    ]
    return {
        "HuggingFaceFW/fineweb-edu": {
            f"sample/10BT/00{i}_00000.parquet": [{"text": text, "score": 3.1} for text in texts]
            for i, texts in enumerate(web_files)
        },
        "open-web-math/open-web-math": {
            f"data/train-0000{i}-of-00002-ab.parquet": [{"url": "https://b.example", "text": text} for text in texts]
            for i, texts in enumerate(math_files)
        },
        "AI-MO/NuminaMath-CoT": {
            f"data/train-0000{i}-of-00002.parquet": [{"problem": p, "solution": s} for p, s in [*pairs[i], pairs[0][0]]]
            for i in range(2)
        },
        "meta-math/MetaMathQA": {
            "MetaMathQA-395K.json": [{"query": p, "response": s} for p, s in [*pairs[2], (QUESTION, "None of them.")]]
        },
        "togethercomputer/RedPajama-Data-1T-Sample": {
            "arxiv_sample.jsonl": [{"text": f"\\section{{One}}\n{text}", "meta": "{}"} for text in prose("arxiv", 90)]
        },
        "HuggingFaceTB/cosmopedia": {
            f"data/{name}/train-00000-of-00001.parquet": [{"prompt": "not read", "text": text} for text in texts]
            for name, texts in book_files.items()
        },
        "allenai/ai2_arc": {
            "ARC-Easy/train-00000-of-00001.parquet": [_arc(i, text) for i, text in enumerate(prose("arc", 60, 20))],
            "ARC-Easy/validation-00000-of-00001.parquet": [_arc(0, QUESTION)],
        },
    }


def hub_files() -> dict[str, dict[str, bytes]]:
    """Repository -> path of each of its files -> content."""
    return {
        repository: {name: _content(name, rows) for name, rows in files.items()}
        for repository, files in _rows().items()
    }


def _content(name: str, rows: list[dict[str, Any]]) -> bytes:
    if name.endswith(".json"):
        return json.dumps(rows).encode()
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=20)
    return file.getvalue()
