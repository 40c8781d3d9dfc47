"""Muon and AdamW as one: who moves what, at which rate, and that its state comes back."""

import pytest
import torch

from shard.config import Config
from shard.model import ShardLM
from shard.muon import Muon
from shard.training.optimizer import Optimizer
from shard.training.settings import StageSettings


def settings(**changes) -> StageSettings:
    values = {
        "steps": 100,
        "sequence_length": 16,
        "tokens_per_step": 32,
        "mix": {"a": 1.0},
        "warmup_steps": 10,
        "decay_steps": 50,
        "lr_muon": 0.02,
        "lr_embedding": 0.03,
        "lr_norm": 0.05,
    }
    return StageSettings(**values | changes)


def make(config: Config, **changes) -> tuple[ShardLM, Optimizer]:
    torch.manual_seed(0)
    model = ShardLM(config)
    return model, Optimizer(model, settings(**changes), torch.float32)


def give_grads(model: ShardLM, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator)


def take_step(optimizer: Optimizer, skip: float = 0.0) -> torch.Tensor:
    """One step as the trainer takes it; the norm of the raw gradient."""
    norm = optimizer.gradient_norm()
    optimizer.step(norm, torch.tensor(skip))
    return norm


def test_the_table_covers_every_parameter_once_by_role(tiny_config):
    model, optimizer = make(tiny_config)
    assert optimizer.table() == [
        ("matrix", "Muon", 28, 4 * (4 * 32 * 32 + 3 * 32 * 48)),
        ("embedding", "AdamW", 1, 67 * 32),
        ("norm", "AdamW", 9, 9 * 32),
    ]
    assert sum(row[3] for row in optimizer.table()) == sum(p.numel() for p in model.parameters())
    muon = {id(p) for group in optimizer.muon.param_groups for p in group["params"]}
    adamw = {id(p) for group in optimizer.adamw.param_groups for p in group["params"]}
    assert not muon & adamw
    assert muon | adamw == {id(p) for p in model.parameters()}
    assert id(model.embedding.weight) in adamw, "the table is a matrix by shape, but not by role"


def test_a_parameter_without_a_role_is_an_error(tiny_config, monkeypatch):
    roles = ShardLM(tiny_config).parameter_roles()
    roles.pop("final_norm.weight")
    monkeypatch.setattr(ShardLM, "parameter_roles", lambda self: roles)
    with pytest.raises(AssertionError, match=r"final_norm\.weight"):
        make(tiny_config)


def test_rates_follow_the_schedule(tiny_config):
    _, optimizer = make(tiny_config, muon_momentum_warmup_steps=20)
    assert optimizer.set_step(0) == pytest.approx({"lr_muon": 0.002, "lr_embedding": 0.003, "lr_norm": 0.005})
    assert optimizer.set_step(30) == {"lr_muon": 0.02, "lr_embedding": 0.03, "lr_norm": 0.05}
    assert optimizer.set_step(75) == pytest.approx({"lr_muon": 0.01, "lr_embedding": 0.015, "lr_norm": 0.025})
    assert [group["lr"] for group in optimizer.muon.param_groups] == pytest.approx([0.01])
    assert [group["lr"] for group in optimizer.adamw.param_groups] == pytest.approx([0.015, 0.025])
    optimizer.set_step(10)
    assert optimizer.muon.param_groups[0]["momentum"] == pytest.approx(0.9)


def test_equals_torch_adamw_and_muon_alone(tiny_config):
    """Several steps of schedule and momentum warm-up against the two optimizers driven by hand."""
    model, optimizer = make(tiny_config, weight_decay=0.1)
    torch.manual_seed(0)
    oracle = ShardLM(tiny_config)
    named, roles = dict(oracle.named_parameters()), oracle.parameter_roles()
    adamw = {
        role: torch.optim.AdamW(
            [p for n, p in named.items() if roles[n] == role], betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
        )
        for role in ("embedding", "norm")
    }
    matrices = [p for n, p in named.items() if roles[n] == "matrix"]
    muon = Muon(matrices, weight_decay=0.1, cautious=True, dtype=torch.float32)
    for step in range(5):
        give_grads(model, step)
        give_grads(oracle, step)
        rates = optimizer.set_step(step)
        take_step(optimizer)
        for role, part in adamw.items():
            part.param_groups[0]["lr"] = rates[f"lr_{role}"]
            part.step()
        muon.param_groups[0].update(lr=rates["lr_muon"], momentum=0.85 + 0.1 * step / 300)
        muon.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=1e-5, atol=1e-6, msg=name)


def test_table_and_gains_do_not_decay(tiny_config):
    model, optimizer = make(tiny_config, weight_decay=0.5, cautious_decay=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.set_step(30)
    take_step(optimizer)
    for name, p in model.named_parameters():
        factor = 1 - 0.02 * 0.5 if model.parameter_roles()[name] == "matrix" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor, msg=name)


def test_returns_the_norm_of_the_raw_gradient_and_clears_it(tiny_config):
    model, optimizer = make(tiny_config, grad_clip=0.1)
    give_grads(model, 0)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    optimizer.set_step(0)
    torch.testing.assert_close(take_step(optimizer), expected)
    assert all(p.grad is None for p in model.parameters())


def test_clips_what_enters_the_momentum(tiny_config):
    """Clipping comes before Muon's momentum: there it weighs a step less, though it cannot shrink a lone update."""
    model, optimizer = make(tiny_config, grad_clip=2.0, muon_momentum_warmup_steps=0)
    give_grads(model, 0)
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    assert norm > 20
    optimizer.set_step(0)
    take_step(optimizer)
    state = optimizer.state()
    for name in optimizer.names["matrix"]:
        torch.testing.assert_close(state[f"momentum.{name}"], 0.05 * grads[name] * 2 / norm, rtol=1e-4, atol=1e-7)
    for name in optimizer.names["norm"]:
        torch.testing.assert_close(state[f"exp_avg.{name}"], 0.1 * grads[name] * 2 / norm, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip", [None, 1e6])
def test_a_small_gradient_is_not_clipped(tiny_config, clip):
    model, optimizer = make(tiny_config, grad_clip=clip, muon_momentum_warmup_steps=0)
    give_grads(model, 0)
    expected = 0.05 * model.blocks[0].attention.query.weight.grad
    optimizer.set_step(0)
    take_step(optimizer)
    torch.testing.assert_close(optimizer.state()["momentum.blocks.0.attention.query.weight"], expected)


def test_state_is_complete_before_the_first_step(tiny_config):
    _, optimizer = make(tiny_config)
    state = optimizer.state()
    assert len(state) == 28 + 3 * 10
    assert not any(tensor.any() for tensor in state.values())


def test_state_comes_back_bit_for_bit(tiny_config):
    """Three steps, save, load into a new one, three more: the same bits as six in a row."""
    model, optimizer = make(tiny_config)
    for step in range(6):
        if step == 3:
            saved = {n: t.clone() for n, t in optimizer.state().items()}
            weights = {n: t.clone() for n, t in model.state_dict().items()}
        give_grads(model, step)
        optimizer.set_step(step)
        take_step(optimizer)
    other, resumed = make(tiny_config)
    other.load_state_dict(weights)
    resumed.load_state(saved)
    for step in range(3, 6):
        give_grads(other, step)
        resumed.set_step(step)
        take_step(resumed)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    state = resumed.state()
    assert all(torch.equal(t, state[n]) for n, t in optimizer.state().items())
    assert state["adam_step.embedding.weight"] == 6


def test_a_bf16_state_is_taken_in_fp32(tiny_config):
    """A release holds its optimizer in bf16: enough to anneal again."""
    model, optimizer = make(tiny_config)
    give_grads(model, 0)
    optimizer.set_step(0)
    take_step(optimizer)
    rounded = {n: t.bfloat16() for n, t in optimizer.state().items()}
    _, other = make(tiny_config)
    other.load_state(rounded)
    for name, tensor in other.state().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, rounded[name].float())


def test_a_state_that_does_not_fit_is_refused_by_name(tiny_config):
    _, optimizer = make(tiny_config)
    state = {n: t.clone() for n, t in optimizer.state().items()}
    name = "momentum.blocks.0.attention.query.weight"
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        optimizer.load_state({n: t for n, t in state.items() if n != name})
    with pytest.raises(ValueError, match="surplus"):
        optimizer.load_state(state | {"surplus": torch.zeros(())})
    with pytest.raises(ValueError, match=r"query\.weight has the shape \(3, 2\), not \(32, 32\)"):
        optimizer.load_state(state | {name: torch.zeros(3, 2)})


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_a_skipped_step_leaves_no_trace(tiny_config, cautious, clip, bad):
    """Weights and all of the state stay to the bit, Adam's count of steps with them."""
    model, optimizer = make(tiny_config, cautious_decay=cautious, grad_clip=clip, weight_decay=0.1)
    give_grads(model, 0)
    optimizer.set_step(0)
    take_step(optimizer)
    before = {n: t.clone() for n, t in (model.state_dict() | optimizer.state()).items()}
    give_grads(model, 1)
    for p in model.parameters():
        p.grad *= bad
    optimizer.set_step(1)
    take_step(optimizer, skip=1.0)
    after = model.state_dict() | optimizer.state()
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    assert all(p.grad is None for p in model.parameters())
    give_grads(model, 2)
    take_step(optimizer)
    assert int(optimizer.state()["adam_step.embedding.weight"]) == 2
    assert all(t.isfinite().all() for t in optimizer.state().values())


def test_a_step_that_is_taken_is_the_one_of_optimizers_without_a_guard(tiny_config):
    """To the bit."""
    model, optimizer = make(tiny_config, weight_decay=0.1)
    other, plain = make(tiny_config, weight_decay=0.1)
    for step in range(3):
        for m, o in ((model, optimizer), (other, plain)):
            give_grads(m, step)
            o.set_step(step)
        take_step(optimizer)
        plain.muon.step()
        plain.adamw.step()
    assert plain.muon.found_inf is None
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    state = plain.state()
    assert all(torch.equal(t, state[n]) for n, t in optimizer.state().items())


def test_gradients_are_freed_of_the_loss_scale(tiny_config):
    model, optimizer = make(tiny_config)
    give_grads(model, 0)
    expected, grads = optimizer.gradient_norm(), [p.grad.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad *= 1024
    assert torch.equal(optimizer.gradient_norm(torch.tensor(1024.0)), expected)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
