"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pretrain.optim.config import MatrixPrecision, MuonConfig
from pretrain.optim.groups import parameter_names, parameters_by_name

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
    """One optimizer for two kinds of groups: Muon's step if `matrices` is set, else AdamW's.

    With `found_inf`, a tensor () on the weights' device, a step in which it is 1.0 changes neither weights nor state,
    as in torch's fused optimizers.
    """

    found_inf: Tensor | None = None

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
        skips = None if self.found_inf is None else self.found_inf != 0
        rate, decay, momentum = (float(group[key]) for key in ("lr", "weight_decay", "momentum"))  # type: ignore[arg-type]
        for shape, parameters in by_shape.items():
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            momenta = [_local(buffer) for buffer in buffers]
            moved = torch._foreach_lerp(momenta, [_local(gradient) for gradient in gradients], 1.0 - momentum)
            torch._foreach_copy_(momenta, list(moved) if skips is None else _selected(skips, momenta, list(moved)))
            nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, momentum))
            dtype = torch.bfloat16 if group["newton_schulz_bf16"] else torch.float32
            update = orthogonalize(nesterov.to(dtype), int(group["newton_schulz_steps"])).to(nesterov.dtype)  # type: ignore[call-overload]
            kept: float | Tensor = 1.0 - rate * decay
            if skips is not None:
                update, kept = _zero_where(skips, update), torch.where(skips, 1.0, kept)
            torch._foreach_mul_([_local(parameter) for parameter in parameters], kept)
            weights: list[Tensor] = list(parameters)
            torch._foreach_add_(weights, list(update.unbind()), alpha=-rate * 0.2 * max(shape) ** 0.5)


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard, detached."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _selected(condition: Tensor, ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Return `ones` if `condition` () holds, else `others`, of the same shapes, in a few kernels for all of them."""
    one, other = (torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (ones, others))
    parts = torch.where(condition, one, other).split([tensor.numel() for tensor in ones])
    return [part.view(tensor.shape) for part, tensor in zip(parts, ones, strict=True)]


def _zero_where(condition: Tensor, values: Tensor) -> Tensor:
    """Return `values` with their sharding, and zeros if `condition` () holds: a product of 0 and NaN would be NaN."""
    found = _local(values).where(~condition, 0.0)
    if not isinstance(values, DTensor):
        return found
    mesh, placements, size, stride = values.device_mesh, values.placements, values.shape, values.stride()
    return DTensor.from_local(found, mesh, placements, run_check=False, shape=size, stride=stride)


def build_muon(config: MuonConfig, model: nn.Module) -> Muon:
    """Return Muon over three groups: the blocks' matrices, other matrices (decay), the rest (no decay)."""
    names, parameters = parameter_names(model), parameters_by_name(model)
    adamw = {"matrices": False, "momentum": 0.0, "newton_schulz_steps": 0, "newton_schulz_bf16": False}
    groups = [
        {
            "params": [parameters[name] for name in names.matrices],
            "weight_decay": config.weight_decay,
            "lr": config.learning_rate * config.matrix_learning_rate_ratio,
            "matrices": True,
            "momentum": config.momentum,
            "newton_schulz_steps": config.newton_schulz_steps,
            "newton_schulz_bf16": config.newton_schulz_precision is MatrixPrecision.bf16,
        },
        {"params": [parameters[name] for name in names.head], "weight_decay": config.weight_decay, **adamw},
        {"params": [parameters[name] for name in names.rest], "weight_decay": 0.0, **adamw},
    ]
    return Muon(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
