"""Learning rates by step: closed forms, torch's own schedulers, and what must hold for any settings."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR

from shard.training.schedule import muon_momentum, wsd

STEPS, WARMUP, DECAY = 100, 10, 40
SHAPES = st.sampled_from(["linear", "1-sqrt"])


def factors(shape: str = "linear", steps: int = STEPS, warmup: int = WARMUP, decay: int = DECAY) -> list[float]:
    return [wsd(step, steps, warmup, decay, shape) for step in range(steps)]


def test_linear_in_closed_form():
    expected = [(s + 1) / 10 if s < 10 else 1.0 if s < 60 else (100 - s) / 40 for s in range(100)]
    assert factors("linear") == pytest.approx(expected, abs=1e-12)


def test_one_minus_sqrt_in_closed_form():
    expected = [(s + 1) / 10 if s < 10 else 1.0 if s < 60 else 1 - math.sqrt((s - 60) / 40) for s in range(100)]
    assert factors("1-sqrt") == pytest.approx(expected, abs=1e-12)


def test_equals_torch_schedulers():
    """Warm-up, stable and decay as three schedulers of torch, one after the other."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    phases = [
        LinearLR(optimizer, start_factor=1 / WARMUP, end_factor=1.0, total_iters=WARMUP - 1),
        ConstantLR(optimizer, factor=1.0),
        LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=DECAY),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR still calls its parts in a way that torch has deprecated
        schedule = SequentialLR(optimizer, phases, milestones=[WARMUP, STEPS - DECAY])
        rates = []
        for _ in range(STEPS):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert factors("linear") == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_has_no_jump_at_its_borders(shape):
    f = factors(shape)
    assert f[WARMUP - 1] == f[WARMUP] == 1.0
    assert f[STEPS - DECAY - 1] == f[STEPS - DECAY] == 1.0
    assert f[STEPS - DECAY + 1] < 1.0
    fine = [wsd(step, 100_000, 1000, 50_000, shape) for step in range(100_000)]
    assert max(abs(a - b) for a, b in pairwise(fine)) < 5e-3


@pytest.mark.parametrize(("shape", "last"), [("linear", 1 / DECAY), ("1-sqrt", 1 - math.sqrt(39 / 40))])
def test_ends_near_zero(shape, last):
    assert factors(shape)[-1] == pytest.approx(last)
    assert wsd(STEPS, STEPS, WARMUP, DECAY, shape) == 0.0
    assert wsd(99_999, 100_000, 0, 100_000, shape) < 1e-4


def test_first_step_moves():
    assert wsd(0, STEPS, WARMUP, DECAY, "linear") == 1 / WARMUP


def test_without_warmup_or_decay():
    assert factors(warmup=0, decay=0) == [1.0] * STEPS
    assert factors(warmup=0, decay=STEPS) == pytest.approx([1 - s / STEPS for s in range(STEPS)])


@given(
    data=st.data(),
    steps=st.integers(1, 10**6),
    warmup=st.integers(0, 10**6),
    shape=SHAPES,
)
def test_is_a_fraction_whatever_the_settings(data, steps, warmup, shape):
    decay = data.draw(st.integers(0, steps))
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < wsd(step, steps, warmup, decay, shape) <= 1


@given(data=st.data(), steps=st.integers(2, 10**6), shape=SHAPES)
def test_never_rises_after_warmup(data, steps, shape):
    warmup = data.draw(st.integers(0, steps // 2))
    decay = data.draw(st.integers(0, steps - warmup))
    step = data.draw(st.integers(warmup, steps - 1))
    assert wsd(step + 1, steps, warmup, decay, shape) <= wsd(step, steps, warmup, decay, shape)


def test_muon_momentum_warms_up_linearly():
    assert muon_momentum(0, 0.85, 0.95, 300) == 0.85
    assert muon_momentum(150, 0.85, 0.95, 300) == pytest.approx(0.90)
    assert muon_momentum(299, 0.85, 0.95, 300) == pytest.approx(0.85 + 0.1 * 299 / 300)
    assert muon_momentum(300, 0.85, 0.95, 300) == 0.95
    assert muon_momentum(10**9, 0.85, 0.95, 300) == 0.95
    assert muon_momentum(0, 0.85, 0.95, 0) == 0.95
