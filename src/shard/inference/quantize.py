"""int8 weights on the CPU: each output channel of a matrix becomes whole numbers from -127 to 127 and one scale.

    W[o, i] ~ scale[o] * codes[o, i]        scale[o] = max_i |W[o, i]| / 127, rounded to bf16 before the codes are made

A decode step reads every weight once, so a quarter of the bytes is up to four times the speed: our own kernel reads
them as fast as memory gives them, where it could be built (kernels.py), else torch's multiplies. The tied table is
quantised too: a row of it is an embedding on the way in and an output channel of the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shard.errors import UsageError
from shard.inference.kernels import choose_kernels, int8_product
from shard.model import Linear, ShardLM

OWN_ROWS, PACKED_ROWS = 64, 8
"""Rows of x up to which a kernel, our own or torch's, reads the codes as they are; for more the matrix is made fp32
first. Measured on AVX2, all matrices of the 54.5M model: 16 rows 17 ms against 46, 64 rows 74 against 105, 128 rows
147 against 144; torch's, 2048 x 512: 16 rows 1.4 ms against 1.0.
"""


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [O, I] in int8, scale [O] in bf16) of a matrix; a row of zeros gets the scale 1."""
    weight_OI = weight_OI.float()
    scale_O = (weight_OI.abs().amax(dim=1) / 127).bfloat16()
    scale_O[scale_O == 0] = 1
    codes_OI = (weight_OI / scale_O.float()[:, None]).round().clamp(-127, 127)
    return codes_OI.to(torch.int8), scale_O


def dequantized_matmul(x: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T in the dtype of x from a matrix made whole first: the plain twin of the other two."""
    return F.linear(x, codes_OI.to(x.dtype)) * scale_O.to(x.dtype)


def packed_matmul(x: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T in the dtype of x by torch's packed kernel: x and the result are rounded to bf16, sums are fp32."""
    y = torch._weight_int8pack_mm(x.bfloat16().flatten(0, -2), codes_OI, scale_O)
    return y.to(x.dtype).unflatten(0, x.shape[:-1])


def own_matmul(x: Tensor, codes_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x W^T in the dtype of x by our own kernel: x is rounded to 15 bits of a row's largest, sums of 512
    products are exact, and added up in fp32.
    """
    y = int8_product(x.flatten(0, -2), codes_OI, scale_O)
    return y.to(x.dtype).unflatten(0, x.shape[:-1])


class Int8Linear(nn.Module):
    """y = x W^T without bias, of int8 weights; up to `most_rows` of x by a kernel (default: as it was measured)."""

    weight: Tensor
    scale: Tensor

    def __init__(self, codes_OI: Tensor, scale_O: Tensor, most_rows: int | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", codes_OI)
        self.register_buffer("scale", scale_O)
        self.kernel, measured_rows = (own_matmul, OWN_ROWS) if choose_kernels()[0] else (packed_matmul, PACKED_ROWS)
        self.most_rows = measured_rows if most_rows is None else most_rows

    def forward(self, x: Tensor) -> Tensor:
        num_rows = x.numel() // x.size(-1)
        matmul = self.kernel if num_rows <= self.most_rows else dequantized_matmul
        return matmul(x, self.weight, self.scale)


class Int8Embedding(Int8Linear):
    """The tied table: ids [...] to its rows [..., D] in fp32; `head` is the product with it."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids].float() * self.scale[ids].float()[..., None]

    def head(self, hidden_BTD: Tensor) -> Tensor:
        """hidden E^T [B, T, V]."""
        return super().forward(hidden_BTD)


class Int8LM(ShardLM):
    """A Shard model of int8 matrices and fp32 norms, made by `quantize`; it computes in fp32 what is no product."""

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Capped logits [B, T, V] in fp32."""
        cap = self.config.logit_cap
        table: Int8Embedding = self.embedding  # type: ignore[assignment]
        return cap * torch.tanh(table.head(hidden_BTD).float() / cap)


def quantize(model: ShardLM, most_rows: int | None = None) -> ShardLM:
    """The model with int8 weights, changed in place; `most_rows` as in Int8Linear. Raises UsageError where the kernels
    are missing, and for a mixture of experts.
    """
    check_int8(model.final_norm.weight.device)
    if model.config.moe is not None:
        raise UsageError("int8 is written for dense models, and this one is a mixture of experts: choose bf16")
    model.float().requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, Int8Linear(*quantize_rows(child.weight), most_rows))
    model.embedding = Int8Embedding(*quantize_rows(model.embedding.weight), most_rows)  # type: ignore[assignment]
    model.__class__ = Int8LM
    return model


def check_int8(device: torch.device) -> None:
    """Raise UsageError, with what is missing, where int8 weights cannot be computed with."""
    if device.type != "cpu":
        raise UsageError(f"int8 is written for the CPU and this device is {device.type}: choose bf16")
    if choose_kernels()[0]:
        return
    x, codes, scale = torch.ones(1, 32), torch.ones(32, 32, dtype=torch.int8), torch.ones(32)
    try:
        works = bool((packed_matmul(x, codes, scale.bfloat16()) == 32).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        works = False
    if not works:
        raise UsageError(f"int8 needs torch._weight_int8pack_mm, which torch {torch.__version__} lacks here: use bf16")
