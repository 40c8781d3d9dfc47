"""A tokenizer of a few hundred tokens, a random model of its size, and the two as a task sees them."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer

from shard.config import Config
from shard.evaluation.tasks import arithmetic, code_prompts, passkey
from shard.evaluation.tasks.form import Subject
from shard.model import ShardLM
from shard.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Trained on what the tasks ask."""
    texts = [item.prompt for item in arithmetic.make_items()[:50]] + [*code_prompts.PROMPTS, passkey.FILLER * 9]
    return train_tokenizer([*texts, passkey.QUESTION * 9, passkey.make_items()[0].sentence * 9], 400)


@pytest.fixture(scope="session")
def subject(tokenizer: Tokenizer) -> Subject:
    """A model that knows nothing, with a context of 600 tokens."""
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 1, "head_dim": 16, "intermediate_size": 16}
    model = ShardLM(Config(vocab_size=400, max_sequence_length=600, sliding_window=8, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return Subject(SimpleNamespace(model=model.eval(), tokenizer=tokenizer, separator_id=0, origin="random"), 600)
