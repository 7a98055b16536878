"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.optim.config import MatrixPrecision, MuonConfig, NewtonSchulz, UpdateScale
from pretrain.optim.groups import Role, parameter_names, split_groups
from pretrain.optim.matrix_owners import Alone, Parts, local, share, sharing_key
from pretrain.optim.skipped_steps import assign_unless, fill_if, skipped

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


def even_rows(
    updates: Tensor, moments: list[Tensor], beta2: float, keep_norm: bool, skips: Tensor | None = None
) -> Tensor:
    """Return updates (N, rows, columns) with rows of like size; add them to the moments, N of (rows, 1), in place.

    The moments stay as they are where `skips` () holds. Each row is divided by the root of its second moment. The whole
    then has the Frobenius norm that it had with `keep_norm`, else that of a matrix whose numbers have a root mean
    square of 1. Source: NorMuon, Li et al. 2025, https://arxiv.org/abs/2510.05491, without `keep_norm`.
    """
    before = None if skips is None else [moment.clone() for moment in moments]
    torch._foreach_lerp_(moments, list(updates.square().mean(-1, keepdim=True).unbind()), 1.0 - beta2)
    if skips is not None and before is not None:
        assign_unless(~skips, moments, before)
    even = updates / (torch.stack(moments).sqrt() + _TINY)
    norm = updates.norm(dim=(-2, -1), keepdim=True) if keep_norm else updates[0].numel() ** 0.5
    return even * (norm / (even.norm(dim=(-2, -1), keepdim=True) + _TINY))


def root_mean_square(kind: UpdateScale, rows: int, columns: int) -> float:
    """Return the root mean square of an update of a matrix; that of an orthogonal one is max(rows, columns)^-0.5."""
    if kind is UpdateScale.rms:
        return 0.2
    return float((max(1.0, rows / columns) / max(rows, columns)) ** 0.5)


@dataclass
class _Stack:
    """Matrices of one shape and one parameter group, stepped in a batch: a single one is too small for all cores."""

    group: dict[str, Any]
    parameters: list[nn.Parameter]


class Muon(torch.optim.AdamW):
    """One optimizer for two kinds of groups: Muon's step if `matrices` is set, else AdamW's.

    Where several processes train one model, each orthogonalizes the matrices that it owns. All must step, with
    equal gradients of what is not sharded. The state of a matrix is sharded as the matrix is.
    """

    takes_found_inf = True
    found_inf: Tensor | None = None  # see optim/skipped_steps.py

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._owners: dict[tuple[int, ...], Alone] = {}

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
        for stacks in _rounds([group for group in groups if group["matrices"]]):
            self._step_matrices(stacks)
        return loss

    def _step_matrices(self, stacks: list[_Stack]) -> None:
        """Step matrices that the same processes share; each is orthogonalized, whole, by its owner."""
        parameters = [parameter for stack in stacks for parameter in stack.parameters]
        bf16, beta2 = bool(stacks[0].group["newton_schulz_bf16"]), float(stacks[0].group["row_beta2"])
        dtype = torch.bfloat16 if bf16 and not beta2 else torch.float32  # of what is sent
        parts = [part for stack in stacks for part in self._parts(stack)]
        owners = self._owners_of(parameters)
        wholes = owners.gather(parts, dtype)
        done: dict[int, Parts] = {}
        first, skips = 0, skipped(self.found_inf)
        for stack in stacks:
            own = [index for index in range(first, first + len(stack.parameters)) if index in wholes]
            first += len(stack.parameters)
            if own:
                updates = _updates(stack.group, [wholes.pop(index) for index in own], skips)
                done |= dict(zip(own, updates, strict=True))
        results = iter(owners.scatter(done, parts, dtype))
        for stack in stacks:
            self._apply(stack, [next(results) for _ in stack.parameters])

    def _owners_of(self, parameters: list[nn.Parameter]) -> Alone:
        """Return the owners of matrices; who owns what is settled once, at their first step."""
        key = tuple(map(id, parameters))
        if key not in self._owners:
            self._owners[key] = share(parameters)
        return self._owners[key]

    def _parts(self, stack: _Stack) -> list[Parts]:
        """Return this process's part of each matrix of Nesterov's momentum, and of the rows' second moments if any."""
        momentum, beta2 = float(stack.group["momentum"]), float(stack.group["row_beta2"])
        for parameter in stack.parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            if beta2 and "row_second_moment" not in state:
                state["row_second_moment"] = torch.zeros_like(parameter.detach()[:, :1])
        buffers = [local(self.state[parameter]["momentum_buffer"]) for parameter in stack.parameters]
        gradients = [local(parameter.grad) for parameter in stack.parameters if parameter.grad is not None]
        assign_unless(skipped(self.found_inf), buffers, torch._foreach_lerp(buffers, gradients, 1.0 - momentum))
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        if not beta2:
            return [[each] for each in nesterov]
        moments = [local(self.state[parameter]["row_second_moment"]) for parameter in stack.parameters]
        return [list(each) for each in zip(nesterov, moments, strict=True)]

    def _apply(self, stack: _Stack, results: list[Parts]) -> None:
        """Decay and move this process's part of the weights by its part of the updates."""
        group = stack.group
        weights: list[Tensor] = [local(parameter) for parameter in stack.parameters]
        updates = [result[0].to(weight.dtype) for result, weight in zip(results, weights, strict=True)]
        rate, decay, skips = float(group["lr"]), float(group["weight_decay"]), skipped(self.found_inf)
        fill_if(skips, updates, 0.0)
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
            torch._foreach_mul_(weights, torch.where(skips, 1.0, 1.0 - rate * decay))
        shape = stack.parameters[0].shape
        scale = root_mean_square(group["update_scale"], *shape)
        if not group["row_beta2"] or _keeps_norm(group):  # else the updates have a root mean square of 1
            scale *= max(shape) ** 0.5
        torch._foreach_add_(weights, updates, alpha=-rate * scale)
        for parameter, (_, *moments) in zip(stack.parameters, results, strict=True):
            for moment in moments:
                local(self.state[parameter]["row_second_moment"]).copy_(moment)


def _rounds(groups: list[dict[str, Any]]) -> list[list[_Stack]]:
    """Return the stacks of all groups that are stepped together.

    What several processes share goes to its owners at once, so that few collectives are needed and all owners have
    like work. A process alone steps one stack after the other, which needs less memory.
    """
    stacks: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            if parameter.grad is not None:
                stacks[sharing_key(parameter), number, parameter.shape].append(parameter)
    rounds: dict[Any, list[_Stack]] = defaultdict(list)
    for (key, number, shape), parameters in stacks.items():
        rounds[(number, shape) if key is None else key].append(_Stack(groups[number], parameters))
    return list(rounds.values())


def _updates(group: dict[str, Any], matrices: list[Parts], skips: Tensor | None) -> list[Parts]:
    """Return the updates of whole matrices of one shape, each with the rows' second moments if there are any.

    The second moments are changed in place, unless `skips` () holds.
    """
    nesterov, dtype = torch.stack([matrix for matrix, *_ in matrices]), torch.float32
    if group["newton_schulz_bf16"]:
        dtype = torch.bfloat16
    steps, kind = int(group["newton_schulz_steps"]), group["newton_schulz_coefficients"]
    updates = orthogonalize(nesterov.to(dtype), steps, kind).to(nesterov.dtype)
    if not group["row_beta2"]:
        return [[update] for update in updates.unbind()]
    moments = [moment for _, moment in matrices]
    updates = even_rows(updates, moments, float(group["row_beta2"]), _keeps_norm(group), skips)
    return [list(each) for each in zip(updates.unbind(), moments, strict=True)]


def _keeps_norm(group: dict[str, Any]) -> bool:
    """Return whether even rows leave an update's norm as it is.

    The root mean square of NorMuon's paper makes an update of low rank larger, by a factor that grows with the width.
    """
    return bool(group["update_scale"] is UpdateScale.spectral)


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
    width_power = 0.5 if config.update_scale is UpdateScale.rms else 0.0
    roles = [
        Role(names.matrices, matrices, has_betas=False, width_power=width_power),
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
