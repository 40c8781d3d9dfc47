"""A passkey test: five digits stand once in a long text that says nothing, and are asked for at its end.

A text of exactly 512, 1024, ... 8192 tokens (answer included) is filled with sentences that repeat, with the sentence
of the key at a depth that differs from item to item. `exact match`: greedy decoding gives all five digits; chance is a
guess, 1 in 100,000. `mean rank`: the place of the key among ten keys by log-likelihood, 1 the best; chance is 5.5.
"""

from dataclasses import asdict, dataclass

from tokenizers import Tokenizer

from shard.evaluation.likelihood import Likelihood, Request, log_likelihoods
from shard.evaluation.tasks.form import (
    Measured,
    NotMeasured,
    Score,
    Subject,
    Task,
    draw,
    hash_items,
    mean,
    share,
)

LENGTHS = (512, 1024, 2048, 4096, 8192)
NUM_ITEMS = 20  # of each length
NUM_KEYS = 10
DIGITS = 5
FILLER = (
    " The river runs down to the sea. The wind blows over the hills. A road goes on behind the trees."
    " Birds sing early in the morning."
)
QUESTION = " What is the pass key? The pass key is"


@dataclass(frozen=True)
class Item:
    """The key, the other keys it is ranked among, and the share of the filler that stands before it."""

    key: str
    others: tuple[str, ...]
    depth: float

    @property
    def sentence(self) -> str:
        """What the text says of the key."""
        return f" The pass key is {self.key}. Remember it: {self.key} is the pass key."


def make_items() -> list[Item]:
    """Keys that are all different, at depths from the beginning to the end; in an order that mixes them."""
    items = []
    for number in range(NUM_ITEMS):
        keys: dict[str, None] = {}
        i = 0
        while len(keys) < NUM_KEYS:
            keys[str(draw(f"passkey {number} {i}", 10 ** (DIGITS - 1), 10**DIGITS - 1))] = None
            i += 1
        key, *others = keys
        depth = (7 * number % NUM_ITEMS + 0.5) / NUM_ITEMS
        items.append(Item(key, tuple(others), depth))
    return items


def build_requests(item: Item, length: int, tokenizer: Tokenizer) -> list[Request]:
    """The key, then the others, each after the same context; context and key are `length` tokens together.

    Raises NotMeasured where so few tokens cannot hold the sentence and the question.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    question = encode(QUESTION)
    # Each part begins with a space, where the tokenizer cuts anyway, so that parts can be encoded apart.
    answers = [encode(f" {key}") for key in (item.key, *item.others)]
    sentence, filler = encode(item.sentence), encode(FILLER)
    room = length - len(sentence) - len(question) - len(answers[0])
    if room < len(filler):
        raise NotMeasured(f"its text does not fit into {length} tokens of this tokenizer")
    # The key stands between whole fillers; the text begins in the middle of one, like any that is cut.
    num_after = min(round((1 - item.depth) * room / len(filler)), room // len(filler)) * len(filler)
    num_before = room - num_after
    repeated = filler * (length // len(filler) + 1)
    context = (*repeated[len(repeated) - num_before :], *sentence, *repeated[:num_after], *question)
    return [Request(context, tuple(answer)) for answer in answers]


def measure(subject: Subject, max_items: int | None) -> Measured:
    """Exact match and mean rank at each length that the context holds."""
    items = make_items()
    sha256 = hash_items({"items": [asdict(item) for item in items], "filler": FILLER, "question": QUESTION})
    lengths = [length for length in LENGTHS if length <= subject.context]
    if not lengths:
        raise NotMeasured(f"its shortest text has {LENGTHS[0]} tokens, the context is {subject.context}")
    scores: list[Score] = []
    for length in lengths:
        results = [
            log_likelihoods(subject.loaded.model, build_requests(item, length, subject.loaded.tokenizer))
            for item in items[:max_items]
        ]
        hits, ranks = [found[0].is_greedy for found in results], [_rank(found) for found in results]
        scores.append(share(f"exact match, {length} tokens", hits, 10.0**-DIGITS))
        scores.append(mean(f"mean rank of {NUM_KEYS}, {length} tokens", ranks, (NUM_KEYS + 1) / 2))
    return Measured(sha256, tuple(scores))


def _rank(found: list[Likelihood]) -> float:
    """The place of the first; it shares the places of those that are as likely."""
    key, *others = (likelihood.log_likelihood for likelihood in found)
    return 1 + sum(other > key for other in others) + sum(other == key for other in others) / 2


TASK = Task("passkey", 1, measure)
