"""Shard's training step and its peer's on random tokens: what they say does not change the time of a step."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from shard.config import Config
from shard.environment import choose_device, make_deterministic
from shard.model import ShardLM
from shard.training.decisions import DTYPES, decide
from shard.training.settings import StageSettings
from shard.training.stage import Stage
from shard.training.step import TrainingStep


def shard_step(folder: Path, config: Config, **settings: Any) -> TrainingStep:
    """The hot path of a stage, with the decisions that a run would make on this machine. Micro-batches of one step are
    `accumulate_gradients(rows)`.
    """

    def refuse(*_: object) -> None:
        raise MemoryError("memory ran out: choose a smaller micro-batch")

    stage_settings = StageSettings(steps=10**6, mix={"text": 1.0}, **settings)
    make_deterministic(0)
    device = choose_device()
    stage = Stage(
        name="pretrain",
        config=config,
        settings=stage_settings,
        seed=0,
        folder=folder,
        loader=None,  # type: ignore[arg-type]  # the rows are given
        score=lambda model: {},
        sample=lambda model: [],
        fingerprint="",
        identity={},
        decisions=decide("pretrain", stage_settings, device, folder / "decisions.json", config),
        device=device,
    )
    return TrainingStep(stage, ShardLM(config).to(device), refuse)


def random_rows(config: Config, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Sequences [rows, length + 1] of random tokens."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))


class Peer:
    """transformers' Llama of the same shape with fused AdamW: the loop that its users write."""

    def __init__(self, config: Config, precision: str, compiled: bool) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        self.device, self.dtype = choose_device(), DTYPES[precision]
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.max_sequence_length,
                tie_word_embeddings=True,
                use_cache=False,
                attn_implementation="sdpa",
            )
        ).to(self.device)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self._loss = torch.compile(self._plain_loss, dynamic=False) if compiled else self._plain_loss

    def _plain_loss(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(input_ids=ids, labels=ids).loss

    def micro_batch(self, rows: np.ndarray) -> None:
        """Forward and backward; transformers shifts the labels itself."""
        self._loss(torch.from_numpy(rows[:, :-1]).to(self.device)).backward()

    def update(self) -> None:
        """The optimizer's step. The gradients stay, so that it can be timed again."""
        self.optimizer.step()
