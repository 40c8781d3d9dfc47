"""The guard of each step against a twin in plain Python, over thousands of steps with trouble planted among them."""

import json
import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from shard.training import guard as guard_module
from shard.training.guard import FIRST_SCALE, GROWTH_STEPS, LEAST_SCALE, WINDOW, StepGuard, Verdict, reason_of_skip

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


@dataclass
class Twin:
    """The rule as one would say it: lists of what was taken, and numpy in fp64."""

    sigma: float
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def limits(self) -> tuple[float, float]:
        if len(self.losses) < 128:
            return INF, INF
        return tuple(
            float(np.mean(values[-128:]) + self.sigma * np.std(values[-128:], ddof=1))
            for values in (self.losses, self.norms)
        )

    def judge(self, loss: float, norm: float) -> bool:
        """Whether the step is skipped."""
        loss_limit, norm_limit = self.limits()
        if not math.isfinite(loss) or not math.isfinite(norm) or loss > loss_limit or norm > norm_limit:
            return True
        self.losses.append(loss)
        self.norms.append(norm)
        return False


def judge(guard: StepGuard, loss: float, norm: float) -> Verdict:
    return guard.judge(torch.tensor(loss), torch.tensor(norm))


def fp32(value: float) -> float:
    return float(torch.tensor(value))


def numbers(rng: random.Random, step: int) -> tuple[float, float]:
    """Loss and norm of a step: a falling loss with noise, and trouble now and then."""
    loss, norm = 9 * math.exp(-step / 900) + 1 + rng.gauss(0, 0.05), 2 + rng.gauss(0, 0.2)
    match rng.randrange(60):
        case 0:
            loss = rng.choice([NAN, INF, -INF])
        case 1:
            norm = rng.choice([NAN, INF])
        case 2:
            loss += rng.uniform(0.1, 3)
        case 3:
            norm *= rng.choice([1.2, 2, 1e3, 1e6, 1e20])
        case 4:
            loss, norm = loss - 3, norm / 10  # what is too low is no trouble
    return fp32(loss), fp32(norm)


@pytest.mark.parametrize(("seed", "sigma"), [(0, 6.0), (1, 2.0)])
def test_equals_the_twin_over_thousands_of_steps(seed, sigma):
    guard, twin, rng = StepGuard(sigma, CPU), Twin(sigma), random.Random(seed)
    num_skipped = 0
    for step in range(1500):
        loss, norm = numbers(rng, step)
        loss_limit, norm_limit = twin.limits()
        verdict = judge(guard, loss, norm)
        assert float(verdict.loss_limit) == pytest.approx(loss_limit, rel=1e-5)
        assert float(verdict.norm_limit) == pytest.approx(norm_limit, rel=1e-5)
        skipped = twin.judge(loss, norm)
        assert float(verdict.skip) == skipped, f"step {step}: {loss} of {loss_limit}, {norm} of {norm_limit}"
        num_skipped += skipped
    assert num_skipped > 30
    assert int(guard.num_taken) == len(twin.losses) == 1500 - num_skipped
    assert sorted(guard.losses.tolist()) == sorted(twin.losses[-128:])
    assert sorted(guard.norms.tolist()) == sorted(twin.norms[-128:])


def test_nothing_but_what_is_not_finite_is_skipped_before_there_are_128():
    guard = StepGuard(6.0, CPU)
    for i in range(WINDOW - 1):
        verdict = judge(guard, 1.0 + i % 3, 10.0**i if i < 30 else 1.0)
        assert (float(verdict.skip), float(verdict.loss_limit), float(verdict.norm_limit)) == (0, INF, INF)
    assert float(judge(guard, NAN, 1.0).skip) == 1
    assert float(judge(guard, 1.0, INF).skip) == 1
    assert float(judge(guard, 1e30, 1.0).skip) == 0, "the 128th"
    assert math.isfinite(judge(guard, 1.0, 1.0).loss_limit)


def test_a_value_at_the_limit_is_taken_and_the_next_above_it_is_not():
    for which in (0, 1):
        for above in (False, True):
            guard, rng = StepGuard(6.0, CPU), random.Random(1)
            for _ in range(200):
                judge(guard, fp32(3 + rng.gauss(0, 0.1)), fp32(1 + rng.gauss(0, 0.1)))
            limit = judge(guard, NAN, NAN)[1 + which]  # a skipped step moves no limit
            value = torch.nextafter(limit, torch.tensor(INF)) if above else limit
            pair = [torch.tensor(3.0), torch.tensor(1.0)]
            pair[which] = value
            assert float(guard.judge(*pair).skip) == above


def test_the_state_comes_back_through_json_to_the_same_verdicts():
    guard, rng = StepGuard(2.0, CPU), random.Random(5)
    steps = [numbers(rng, step) for step in range(700)]
    for stop in (0, 1, 127, 128, 129, 300):
        guard = StepGuard(2.0, CPU)
        for loss, norm in steps[:stop]:
            judge(guard, loss, norm)
        other = StepGuard(2.0, CPU)
        other.load_state(json.loads(json.dumps(guard.state(), allow_nan=False)))
        assert other.state() == guard.state()
        for loss, norm in steps[stop : stop + 200]:
            a, b = judge(guard, loss, norm), judge(other, loss, norm)
            assert [x.tolist() for x in a] == [x.tolist() for x in b]


def test_without_fp16_there_is_no_scale():
    guard = StepGuard(6.0, CPU)
    for norm in (1.0, INF, NAN):
        assert float(judge(guard, 1.0, norm).scale) == 1
    assert guard.state()["scale"] == 1


def test_the_scale_is_halved_by_each_overflow_down_to_one():
    guard, expected = StepGuard(6.0, CPU, scaled=True), FIRST_SCALE
    for i in range(20):
        verdict = judge(guard, 1.0, [INF, NAN][i % 2])
        assert (float(verdict.skip), float(verdict.scale)) == (1, expected), "the verdict names the scale of its step"
        expected = max(LEAST_SCALE, expected / 2)
    assert float(guard.scale) == LEAST_SCALE == 1


@pytest.fixture
def soon(monkeypatch) -> int:
    """A scale that grows after 30 steps."""
    assert GROWTH_STEPS == 2000, "the interval of torch's own scaler"
    monkeypatch.setattr(guard_module, "GROWTH_STEPS", 30)
    return 30


def test_the_scale_is_doubled_after_steps_without_an_overflow(soon):
    guard = StepGuard(6.0, CPU, scaled=True)
    judge(guard, 1.0, INF)
    for _ in range(2):
        scale = float(guard.scale)
        for i in range(soon):
            assert float(judge(guard, 1.0, 1.0).scale) == scale, i
        assert float(guard.scale) == 2 * scale
    for _ in range(soon - 1):
        judge(guard, 1.0, 1.0)
    judge(guard, 1.0, INF)  # one step too early: the count begins anew
    scale = float(guard.scale)
    for _ in range(soon - 1):
        judge(guard, 1.0, 1.0)
    assert float(guard.scale) == scale


def test_the_scale_follows_torch_s_own_rule(soon):
    """Against torch.amp.GradScaler, which multiplies and looks for infinities itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=soon)
    guard, rng = StepGuard(1e9, CPU, scaled=True), random.Random(0)
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.0)
    for step in range(250):
        overflow = rng.random() < 0.03
        assert float(guard.scale) == scaler.get_scale(), step
        judge(guard, 1.0, INF if overflow else 1.0)
        scaler.scale(p.sum())  # makes its tensors at the first call
        p.grad = torch.full((1,), INF if overflow else 1.0)
        scaler.step(optimizer)
        scaler.update()


def test_a_loss_that_is_not_finite_says_nothing_about_the_scale():
    guard = StepGuard(6.0, CPU, scaled=True)
    judge(guard, 1.0, 1.0)
    judge(guard, NAN, NAN)
    assert (float(guard.scale), int(guard.since_overflow)) == (FIRST_SCALE, 1)


def test_the_scale_is_part_of_the_state():
    guard = StepGuard(6.0, CPU, scaled=True)
    for norm in (INF, INF, 1.0, 1.0, 1.0):
        judge(guard, 1.0, norm)
    other = StepGuard(6.0, CPU, scaled=True)
    other.load_state(json.loads(json.dumps(guard.state())))
    assert (float(other.scale), int(other.since_overflow)) == (FIRST_SCALE / 4, 3)
    plain = StepGuard(6.0, CPU)
    plain.load_state(guard.state())
    assert float(plain.scale) == 1, "another kind of device went on in another precision"


@pytest.mark.parametrize(
    ("loss", "norm", "scale", "reason"),
    [
        (NAN, 1.0, 1.0, "loss"),
        (INF, NAN, 8.0, "loss"),
        (-INF, 1.0, 1.0, "loss"),
        (1.0, INF, 1.0, "gradient"),
        (1.0, NAN, 1.0, "gradient"),
        (1.0, INF, 2.0, "overflow"),
        (1.0, NAN, FIRST_SCALE, "overflow"),
        (11.0, 1.0, 1.0, "loss spike"),
        (11.0, 21.0, 8.0, "loss spike"),
        (1.0, 21.0, 8.0, "gradient spike"),
    ],
)
def test_the_reason_of_a_skip(loss, norm, scale, reason):
    assert reason_of_skip(loss, norm, 10.0, 20.0, scale) == reason


def test_what_cannot_be_scaled_further_is_trouble():
    """An overflow at the least scale is a gradient that is not finite."""
    assert reason_of_skip(1.0, INF, INF, INF, LEAST_SCALE) == "gradient"
