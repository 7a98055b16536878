"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.optim.config import MatrixPrecision, MuonConfig
from pretrain.optim.groups import Role, parameter_names, split_groups

# quintic polynomial that moves singular values towards 1 (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Return matrices (N, rows, columns) with singular values moved close to 1, same shape and dtype.

    Newton-Schulz iteration over the shorter side, batched over the matrices.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """One optimizer for two kinds of groups: Muon's step if `matrices` is set, else AdamW's."""

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

    def _matrix_step(self, group: dict[str, object]) -> None:
        """Step matrices of one shape in a batch: a single one is too small to use all cores."""
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:  # type: ignore[attr-defined]
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        rate, decay, momentum = (float(group[key]) for key in ("lr", "weight_decay", "momentum"))  # type: ignore[arg-type]
        for shape, parameters in by_shape.items():
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
            nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
            dtype = torch.bfloat16 if group["newton_schulz_bf16"] else torch.float32
            updates = orthogonalize(nesterov.to(dtype), int(group["newton_schulz_steps"])).to(nesterov.dtype)  # type: ignore[call-overload]
            weights: list[Tensor] = list(parameters)
            torch._foreach_mul_(weights, 1.0 - rate * decay)
            torch._foreach_add_(weights, list(updates.unbind()), alpha=-rate * 0.2 * max(shape) ** 0.5)


def build_muon(config: MuonConfig, model: nn.Module) -> Muon:
    """Return Muon over the blocks' matrices, other matrices (decay), the rest (no decay), and the groups set."""
    names = parameter_names(model)
    adamw = {"matrices": False, "momentum": 0.0, "newton_schulz_steps": 0, "newton_schulz_bf16": False}
    matrices = {
        "weight_decay": config.weight_decay,
        "lr": config.learning_rate * config.matrix_learning_rate_ratio,
        "matrices": True,
        "momentum": config.momentum,
        "newton_schulz_steps": config.newton_schulz_steps,
        "newton_schulz_bf16": config.newton_schulz_precision is MatrixPrecision.bf16,
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
