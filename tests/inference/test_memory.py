"""The peak of memory, counted."""

import torch

from shard.inference.memory import peak_tensor_bytes

CPU = torch.device("cpu")


def test_the_peak_is_what_was_held_at_once() -> None:
    held = torch.zeros(1000, 1000)

    def work() -> None:
        first = held + 1  # 4 MB
        second = first * 2  # 8 MB
        del first
        third = second[:500] + 1  # 4 + 2 MB
        del second, third

    assert 8_000_000 <= peak_tensor_bytes(work, CPU) < 8_001_000
    assert peak_tensor_bytes(lambda: None, CPU) == 0


def test_what_a_kernel_takes_inside_counts(capfd) -> None:
    q = torch.randn(1, 8, 256, 64)
    out = q.numel() * 4
    peak = peak_tensor_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), CPU)
    assert peak > 1.02 * out
    assert capfd.readouterr().err == "", "the profiler says nothing"
