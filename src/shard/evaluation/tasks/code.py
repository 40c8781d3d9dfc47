"""The share of generated Python code that parses.

The model continues frozen beginnings of programs greedily by up to 96 tokens. What it wrote is cut at the end of a
line, unless it ended the text itself, since the last line may be unfinished. Then lines are taken away from the end as
long as Python finds that the text only lacks its end (an open bracket or string, a block without a body): a text that
stops in the middle is not wrong. What is left must parse (`ast.parse`), and must hold a line of code beyond the prompt.

Chance: tokens drawn at random instead of the model's, all equally likely.
"""

import ast
import codeop
import warnings
from collections.abc import Sequence

from shard.evaluation.greedy import continue_greedily
from shard.evaluation.tasks.code_prompts import PROMPTS
from shard.evaluation.tasks.form import Measured, Subject, Task, check_fits, draw, hash_items, share

MAX_TOKENS = 96


def whole_prefix(text: str, is_ended: bool) -> str:
    """The longest beginning of a text that is cut at a line and does not merely lack its end."""
    lines = text.splitlines(keepends=True)
    if lines and not is_ended and not lines[-1].endswith("\n"):
        lines.pop()
    while lines and _lacks_its_end("".join(lines)):
        lines.pop()
    return "".join(lines)


def parses(prompt: str, continuation: str, is_ended: bool) -> bool:
    """Whether a prompt with its continuation is Python as far as it goes, and goes a line further than the prompt."""
    text = prompt + continuation
    prefix = whole_prefix(text, is_ended)
    # A line that the prompt began counts, once the model has ended it.
    begun = prompt[: prompt.rfind("\n") + 1]
    added = [line.strip() for line in prefix[len(begun) :].splitlines()]
    if len(prefix) <= len(prompt) or not any(line and not line.startswith("#") for line in added):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes, say
            ast.parse(prefix)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _lacks_its_end(text: str) -> bool:
    """Whether more lines could make it a program, as the interactive interpreter decides that it waits for more."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return codeop.compile_command(text, symbol="exec") is None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False


def measure(subject: Subject, max_items: int | None) -> Measured:
    """The share of continuations that parse."""
    prompts = PROMPTS[:max_items]
    tokenizer, separator_id = subject.loaded.tokenizer, subject.loaded.separator_id
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    check_fits(max(map(len, encoded)) + MAX_TOKENS, subject)
    written = continue_greedily(subject.loaded.model, encoded, MAX_TOKENS, separator_id)
    size = min(tokenizer.get_vocab_size(), subject.loaded.model.config.vocab_size)
    drawn = [[draw(f"code {i} {j}", 0, size - 1) for j in range(MAX_TOKENS)] for i in range(len(prompts))]

    def hits(continuations: Sequence[Sequence[int]]) -> list[bool]:
        return [
            parses(prompt, tokenizer.decode([*ids, *new])[len(prompt) :], len(new) < MAX_TOKENS)
            for prompt, ids, new in zip(prompts, encoded, continuations, strict=True)
        ]

    chance = sum(hits(drawn)) / len(drawn)
    return Measured(hash_items(PROMPTS), (share("share that parses", hits(written), chance),))


TASK = Task("code", 1, measure)
