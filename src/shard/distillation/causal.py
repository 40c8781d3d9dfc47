"""A teacher that transformers loads: any causal language model in a folder, with the student's vocabulary.

Its logits are never held at once where they are the product of its last hidden states and its output matrix, with a cap
or without: that is tried on a few tokens when it is loaded. Else they are held for a micro-batch.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shard.distillation.folder import check_vocabulary, teacher_folder
from shard.distillation.loss import DenseTargets
from shard.distillation.settings import DistillationSettings
from shard.environment import choose_precision
from shard.errors import ShardError

_PROBE_TOKENS = 16


class CausalTeacher:
    """The model, frozen. `targets` gives its distributions."""

    def __init__(self, model: Any, bos_id: int | None = None) -> None:
        self.model, self.bos_id = model.eval().requires_grad_(False), bos_id
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._has_head, self._cap = self._try_head()

    @torch.no_grad()
    def targets(self, inputs_BT: Tensor) -> DenseTargets:
        """The distributions after each of B * T inputs."""
        if self.bos_id is not None:
            inputs_BT = torch.cat([torch.full_like(inputs_BT[:, :1], self.bos_id), inputs_BT], dim=1)
        skipped = int(self.bos_id is not None)
        if not self._has_head:
            logits_BTV = self.model(input_ids=inputs_BT, use_cache=False).logits
            return DenseTargets(logits_BTV[:, skipped:].flatten(0, 1))
        hidden_BTE = self._hidden(inputs_BT)[:, skipped:]
        return DenseTargets(hidden_BTE.flatten(0, 1), self.model.get_output_embeddings().weight, self._cap)

    def _hidden(self, inputs_BT: Tensor) -> Tensor:
        hidden: Tensor = self.model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _try_head(self) -> tuple[bool, float | None]:
        """Whether hidden states times the output matrix are the logits, and the cap on them."""
        head = self.model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None or self.model.base_model is self.model:
            return False, None
        device, size = head.weight.device, len(head.weight)
        ids = (torch.arange(_PROBE_TOKENS, device=device) * 7919 % size)[None]
        expected = self.model(input_ids=ids, use_cache=False).logits.float()
        hidden = self._hidden(ids)
        if hidden.size(-1) != head.weight.size(-1):
            return False, None
        logits = torch.nn.functional.linear(hidden, head.weight).float()
        caps = [None, getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)]
        tolerance = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
        for cap in dict.fromkeys(caps):
            capped = logits if cap is None else cap * torch.tanh(logits / cap)
            if torch.allclose(capped, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
                return True, cap
        return False, None


def teacher_dtype(settings: DistillationSettings, device: torch.device) -> torch.dtype:
    """What the teacher of a recipe computes in on a device."""
    precision = choose_precision(device)[0] if settings.precision == "auto" else settings.precision
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_teacher(settings: DistillationSettings, tokenizer: Path, device: torch.device) -> CausalTeacher:
    """The teacher of a recipe on a device. ShardError where transformers or the model is not there, or where its
    vocabulary is not that of the student's `tokenizer`.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ShardError(f"a teacher needs transformers ({error}): pip install 'shard-lm[hf]'") from None
    folder = teacher_folder(settings)
    check_vocabulary(settings, tokenizer)
    dtype = teacher_dtype(settings, device)
    extra = {} if settings.gguf_file is None else {"gguf_file": settings.gguf_file}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, **extra
        )
    except Exception as error:  # transformers raises many kinds for a folder that is not what it should be
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ShardError(f"distillation.teacher: {folder} cannot be loaded ({reason})") from None
    moved: Any = model  # its own type of `to` is too narrow
    return CausalTeacher(moved.to(device), settings.bos_id)
