"""Which optimizer moves which parameter: decided by the parameter's role in the model, never by its shape.

matrix      hidden 2-D weights       Muon, orthogonalised in stacks of equal shape
embedding   the (tied) token table   AdamW without decay
norm        gains                    AdamW without decay
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shard.model import ShardLM
from shard.muon import Muon
from shard.training.distributed import ALONE, Ranks
from shard.training.schedule import muon_momentum, wsd
from shard.training.settings import StageSettings

ADAM_STATES = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Muon and AdamW as one: a learning rate and a momentum by step, and a state of named tensors."""

    def __init__(
        self,
        model: ShardLM,
        settings: StageSettings,
        newton_schulz_dtype: torch.dtype,
        ranks: Ranks = ALONE,
        compile_muon: bool = False,
    ) -> None:
        self.settings = settings
        self.parameters = dict(model.named_parameters())
        roles = model.parameter_roles()
        if roles.keys() != self.parameters.keys() or set(roles.values()) != {"matrix", "embedding", "norm"}:
            raise AssertionError(f"every parameter needs one role: {self.parameters.keys() ^ roles.keys()}")
        self.names = {role: [n for n, r in roles.items() if r == role] for role in ("matrix", "embedding", "norm")}
        self.muon = Muon(
            [self.parameters[name] for name in self.names["matrix"]],
            lr=settings.lr_muon,
            momentum=settings.muon_momentum,
            nesterov=settings.muon_nesterov,
            weight_decay=settings.weight_decay,
            cautious=settings.cautious_decay,
            method=settings.muon_method,
            dtype=newton_schulz_dtype,
            orthogonalizer=ranks.newton_schulz,
            compile=compile_muon,
        )
        self.adamw = torch.optim.AdamW(
            [{"params": [self.parameters[name] for name in self.names[role]]} for role in ("embedding", "norm")],
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=0.0,
            fused=True,
        )
        # State exists from the start, so that what is saved is complete at any step.
        for group in self.adamw.param_groups:
            for p in group["params"]:
                self.adamw.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    **{s: torch.zeros_like(p) for s in ADAM_STATES},
                }

    def table(self) -> list[tuple[str, str, int, int]]:
        """(role, optimizer, number of tensors, number of parameters) of each group."""
        return [
            (role, "Muon" if role == "matrix" else "AdamW", len(names), sum(self.parameters[n].numel() for n in names))
            for role, names in self.names.items()
        ]

    def set_step(self, step: int) -> dict[str, float]:
        """Set learning rates and momentum for `step` of the stage; returns the learning rates for the record."""
        s = self.settings
        factor = wsd(step, s.steps, s.warmup_steps, s.decay_steps, s.decay_shape)
        rates = {
            "lr_muon": s.lr_muon * factor,
            "lr_embedding": s.lr_embedding * factor,
            "lr_norm": s.lr_norm * factor,
        }
        self.muon.param_groups[0]["lr"] = rates["lr_muon"]
        self.muon.param_groups[0]["momentum"] = muon_momentum(
            step, s.muon_momentum_start, s.muon_momentum, s.muon_momentum_warmup_steps
        )
        for group, name in zip(self.adamw.param_groups, ("lr_embedding", "lr_norm"), strict=True):
            group["lr"] = rates[name]
        return rates

    def gradient_norm(self, scale: Tensor | None = None) -> Tensor:
        """The norm of the raw gradients, a scalar on the device. Where they carry a loss scale they are freed of it."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        if scale is not None:
            torch._foreach_div_(grads, scale)
        return torch.nn.utils.get_total_norm(grads)

    def step(self, norm: Tensor, skip: Tensor) -> None:
        """Clip the raw gradients of this norm if the recipe asks for it, update, clear them. Where the scalar `skip`
        is 1 nothing changes, and the host need not know.
        """
        if self.settings.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.grad_clip, norm)
        self.muon.found_inf = skip
        self.adamw.found_inf = skip  # type: ignore[attr-defined]  # what torch's GradScaler sets, too
        self.muon.step()
        self.adamw.step()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Drop all gradients, and their memory."""
        for p in self.parameters.values():
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the state by name: momentum.<parameter>, exp_avg.<...>, exp_avg_sq.<...>, adam_step.<...>."""
        tensors = {f"momentum.{n}": self.muon.state[self.parameters[n]]["momentum"] for n in self.names["matrix"]}
        for name in self.names["embedding"] + self.names["norm"]:
            state = self.adamw.state[self.parameters[name]]
            tensors |= {f"{key}.{name}": state[key] for key in ADAM_STATES} | {f"adam_step.{name}": state["step"]}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a state in, whatever its dtype. Raises ValueError where a tensor is missing, unknown or misshapen."""
        own = self.state()
        if own.keys() != tensors.keys():
            raise ValueError(f"the optimizer state lacks or has too much of: {sorted(own.keys() ^ tensors.keys())[:3]}")
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
            own[name].copy_(tensor)
