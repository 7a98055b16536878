"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.optim.config import MatrixPrecision, MuonConfig, NewtonSchulz, UpdateScale
from pretrain.optim.groups import Role, parameter_names, split_groups
from pretrain.optim.skipped_steps import assign_unless, fill_if, local, skipped

# quintic polynomials a x + b x^3 + c x^5 of the singular values, one for each iteration; the last one goes on
_QUINTIC = ((3.4445, -4.7750, 2.0315),)  # Jordan et al. 2024, https://kellerjordan.github.io/posts/muon
_CONVERGING = ((2.0, -1.5, 0.5),)  # https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization
# Amsel et al. 2025, https://arxiv.org/abs/2505.16932, listing 1: each is the best on the interval that those before it
# leave of [0.001, 1], narrowed a little for the small ones
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
_SAFETY = 1.01  # of Polar Express: rounding must not carry a singular value past its interval
_TINY = 1e-7


def coefficients(kind: NewtonSchulz, steps: int) -> list[tuple[float, float, float]]:
    """Return the polynomial of each iteration."""
    if kind is NewtonSchulz.quintic:
        return [*_QUINTIC] * steps
    if kind is NewtonSchulz.converging:
        return [*_CONVERGING] * steps
    *safe, last = _POLAR_EXPRESS
    scaled = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in safe]
    return [scaled[step] if step < len(scaled) else last for step in range(steps)]


def orthogonalize(matrices: Tensor, steps: int, kind: NewtonSchulz = NewtonSchulz.quintic) -> Tensor:
    """Return matrices (N, rows, columns) with singular values moved close to 1, same shape and dtype.

    Newton-Schulz iteration over the shorter side, batched over the matrices.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * (_SAFETY if kind is NewtonSchulz.polar_express else 1.0) + _TINY)
    for a, b, c in coefficients(kind, steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def even_rows(updates: Tensor, moments: list[Tensor], beta2: float, skips: Tensor | None = None) -> Tensor:
    """Return updates (N, rows, columns) with rows of like size; add them to the moments, N of (rows, 1), in place.

    The moments stay as they are where `skips` () holds. Each row is divided by the root of its second moment, and the
    whole then has the Frobenius norm of a matrix whose numbers have a root mean square of 1. Source: NorMuon, Li et al.
    2025, https://arxiv.org/abs/2510.05491.
    """
    before = None if skips is None else [moment.clone() for moment in moments]
    torch._foreach_lerp_(moments, list(updates.square().mean(-1, keepdim=True).unbind()), 1.0 - beta2)
    if skips is not None and before is not None:
        assign_unless(~skips, moments, before)
    even = updates / (torch.stack(moments).sqrt() + _TINY)
    numbers = updates.shape[-2] * updates.shape[-1]
    return even * (numbers**0.5 / (even.norm(dim=(-2, -1), keepdim=True) + _TINY))


def root_mean_square(kind: UpdateScale, rows: int, columns: int) -> float:
    """Return the root mean square of an update of a matrix; that of an orthogonal one is max(rows, columns)^-0.5."""
    if kind is UpdateScale.rms:
        return 0.2
    return float((max(1.0, rows / columns) / max(rows, columns)) ** 0.5)


class Muon(torch.optim.AdamW):
    """One optimizer for two kinds of groups: Muon's step if `matrices` is set, else AdamW's."""

    takes_found_inf = True
    found_inf: Tensor | None = None  # see optim/skipped_steps.py

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of every group; returns the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._matrix_step(group)
        return loss

    def _matrix_step(self, group: dict[str, Any]) -> None:
        """Step matrices of one shape in a batch: a single one is too small to use all cores."""
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for parameters in by_shape.values():
            weights: list[Tensor] = list(parameters)
            updates, scale = self._updates(group, parameters)
            rate, decay = float(group["lr"]), float(group["weight_decay"])
            skips = skipped(self.found_inf)
            if group["cautious_weight_decay"]:
                # Chen et al. 2025, https://arxiv.org/abs/2510.12402: where update and weight have one sign
                kept = [
                    1.0 - rate * decay * (update * weight >= 0) for update, weight in zip(updates, weights, strict=True)
                ]
                fill_if(skips, kept, 1.0)
                torch._foreach_mul_(weights, kept)
            elif skips is None:
                torch._foreach_mul_(weights, 1.0 - rate * decay)
            else:
                torch._foreach_mul_(local(weights), torch.where(skips, 1.0, 1.0 - rate * decay))
            torch._foreach_add_(weights, updates, alpha=-rate * scale)

    def _updates(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> tuple[list[Tensor], float]:
        """Return the updates of matrices of one shape, and the factor that gives them the size of `update_scale`."""
        momentum, beta2 = float(group["momentum"]), float(group["row_beta2"])
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if beta2 and "row_second_moment" not in state:
                state["row_second_moment"] = torch.zeros_like(parameter.detach()[:, :1])
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        skips = skipped(self.found_inf)
        momenta, moved = local(buffers), torch._foreach_lerp(local(buffers), local(gradients), 1.0 - momentum)
        assign_unless(skips, momenta, moved)
        nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
        dtype = torch.bfloat16 if group["newton_schulz_bf16"] else torch.float32
        steps, kind = int(group["newton_schulz_steps"]), group["newton_schulz_coefficients"]
        updates = orthogonalize(nesterov.to(dtype), steps, kind).to(nesterov.dtype)
        size = root_mean_square(group["update_scale"], *updates.shape[1:])
        scale = size if beta2 else size * max(updates.shape[1:]) ** 0.5
        if beta2:
            moments = [self.state[parameter]["row_second_moment"] for parameter in parameters]
            updates = even_rows(updates, moments, beta2, skips)
        fill_if(skips, [updates], 0.0)
        return list(updates.unbind()), scale


def build_muon(config: MuonConfig, model: nn.Module) -> Muon:
    """Return Muon over the blocks' matrices, other matrices (decay), the rest (no decay), and the groups set."""
    names = parameter_names(model)
    adamw = {
        "matrices": False, "momentum": 0.0, "newton_schulz_steps": 0, "newton_schulz_bf16": False,
        "newton_schulz_coefficients": config.newton_schulz_coefficients, "row_beta2": 0.0,
        "update_scale": config.update_scale, "cautious_weight_decay": False,
    }  # fmt: skip
    matrices = {
        "weight_decay": config.weight_decay,
        "lr": config.learning_rate * config.matrix_learning_rate_ratio,
        "matrices": True,
        "momentum": config.momentum_at(0),
        "newton_schulz_steps": config.newton_schulz_steps,
        "newton_schulz_bf16": config.newton_schulz_precision is MatrixPrecision.bf16,
        "newton_schulz_coefficients": config.newton_schulz_coefficients,
        "row_beta2": config.row_beta2,
        "update_scale": config.update_scale,
        "cautious_weight_decay": config.cautious_weight_decay,
    }
    roles = [
        Role(names.matrices, matrices, has_betas=False),
        Role(names.head, {"weight_decay": config.weight_decay, **adamw}),
        Role(names.rest, {"weight_decay": 0.0, **adamw}),
    ]
    return Muon(
        split_groups(config, model, roles),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
