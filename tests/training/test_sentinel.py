"""The sentinel finds what was planted, and nothing else."""

import pytest
import torch

from shard.model import ShardLM
from shard.muon import RESTORABLE
from shard.training.optimizer import Optimizer
from shard.training.sentinel import Spectrum, inspect_spectra
from shard.training.settings import StageSettings

NAME = "blocks.2.feed_forward.up.weight"


@pytest.fixture(params=["polar_express", "quintic"])
def optimizer(tiny_config, request) -> Optimizer:
    """An optimizer whose matrices and momenta are all orthogonal."""
    settings = StageSettings(steps=1, sequence_length=8, tokens_per_step=8, mix={"a": 1.0}, muon_method=request.param)
    torch.manual_seed(0)
    result = Optimizer(ShardLM(tiny_config), settings, torch.float32)
    with torch.no_grad():
        for name in result.names["matrix"]:
            torch.nn.init.orthogonal_(result.parameters[name])
            torch.nn.init.orthogonal_(result.state()[f"momentum.{name}"])
    return result


def plant(matrix: torch.Tensor, ratio: float) -> None:
    """Make the smallest singular value `ratio` of the largest, in place."""
    u, values, vh = torch.linalg.svd(matrix.detach(), full_matrices=False)
    values[-1] = ratio * values[0]
    with torch.no_grad():
        matrix.copy_(u * values @ vh)


def flagged(optimizer: Optimizer) -> list[tuple[str, str]]:
    return [(s.name, s.what) for s in inspect_spectra(optimizer) if s.rank_loss]


def test_every_matrix_and_momentum_is_inspected_and_healthy_ones_are_not_flagged(optimizer):
    spectra = inspect_spectra(optimizer)
    assert {(s.name, s.what) for s in spectra} == {
        (n, what) for n in optimizer.names["matrix"] for what in ("weight", "momentum")
    }
    assert len(spectra) == 56
    assert flagged(optimizer) == []
    assert all(s.ratio == pytest.approx(1.0, abs=1e-4) for s in spectra)


def test_a_planted_rank_loss_is_flagged_by_name(optimizer):
    with torch.no_grad():
        w = optimizer.parameters[NAME]
        w[3] = w[7]  # two equal rows
        w[:, 0] = w[:, 1]  # and two equal columns, so that the rank falls whatever the shape
    assert flagged(optimizer) == [(NAME, "weight")]


def test_a_planted_rank_loss_of_the_momentum_is_flagged_by_name(optimizer):
    plant(optimizer.state()[f"momentum.{NAME}"], 0.0)
    assert flagged(optimizer) == [(NAME, "momentum")]


def test_the_threshold_is_what_newton_schulz_can_restore(optimizer):
    threshold = RESTORABLE[optimizer.settings.muon_method]
    plant(optimizer.parameters[NAME], 1.2 * threshold)
    assert flagged(optimizer) == []
    plant(optimizer.parameters[NAME], 0.8 * threshold)
    assert flagged(optimizer) == [(NAME, "weight")]


def test_lost_directions_are_counted(optimizer):
    w = optimizer.parameters[NAME]
    u, values, vh = torch.linalg.svd(w.detach(), full_matrices=False)
    values[-5:] = 0
    with torch.no_grad():
        w.copy_(u * values @ vh)
    (lost,) = [s for s in inspect_spectra(optimizer) if s.rank_loss]
    assert (lost.name, lost.what, lost.num_lost, lost.num_values) == (NAME, "weight", 5, 32)


def test_a_zero_matrix_has_no_rank_to_lose(optimizer):
    with torch.no_grad():
        optimizer.parameters[NAME].zero_()
    assert flagged(optimizer) == []
    zero = next(s for s in inspect_spectra(optimizer) if (s.name, s.what) == (NAME, "weight"))
    assert (zero.smallest, zero.largest, zero.stable_rank, zero.ratio) == (0.0, 0.0, 0.0, 0.0)


def test_a_matrix_that_is_not_finite_does_not_end_the_run(optimizer):
    """The guard skips the steps that such a weight leads to, and the rollback heals it: the sentinel may look at it in
    between, and so may the report of a stage that gives up.
    """
    with torch.no_grad():
        optimizer.parameters[NAME][0, 0] = float("nan")
    assert len(inspect_spectra(optimizer)) == 56
    assert flagged(optimizer) == [(NAME, "weight")]


def test_numbers_are_those_of_the_singular_values(optimizer):
    torch.manual_seed(1)
    with torch.no_grad():
        w = optimizer.parameters[NAME].normal_()
    spectrum = next(s for s in inspect_spectra(optimizer) if (s.name, s.what) == (NAME, "weight"))
    values = torch.linalg.svdvals(w.detach())
    assert spectrum.smallest == pytest.approx(values.min().item())
    assert spectrum.largest == pytest.approx(values.max().item())
    assert spectrum.ratio == pytest.approx((values.min() / values.max()).item())
    stable_rank = torch.linalg.matrix_norm(w.detach(), "fro") ** 2 / torch.linalg.matrix_norm(w.detach(), 2) ** 2
    assert spectrum.stable_rank == pytest.approx(stable_rank.item(), rel=1e-5)
    assert 1 < spectrum.stable_rank < 32


def test_stable_rank_of_an_orthogonal_matrix_is_its_rank(optimizer):
    assert {round(s.stable_rank, 3) for s in inspect_spectra(optimizer)} == {32.0}


def test_to_dict_holds_the_ratio():
    values = Spectrum("w", "weight", 1.0, 4.0, 2.5, num_values=8, num_lost=0).to_dict()
    assert values == {
        "name": "w",
        "what": "weight",
        "smallest": 1.0,
        "largest": 4.0,
        "stable_rank": 2.5,
        "num_values": 8,
        "num_lost": 0,
        "ratio": 0.25,
        "rank_loss": False,
    }
