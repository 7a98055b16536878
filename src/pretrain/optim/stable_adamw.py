"""StableAdamW: AdamW whose rate falls, parameter by parameter, where a gradient outgrows its second moment.

Source: Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, algorithm 2; the clipping of updates is Shazeer and
Stern's (2018, https://arxiv.org/abs/1804.04235, section 5).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

from pretrain.optim.config import StableAdamWConfig
from pretrain.optim.groups import adamw_groups
from pretrain.optim.skipped_steps import assign_unless, constants, fill_if, local_parts, skipped


class StableAdamW(torch.optim.AdamW):
    """AdamW with update clipping; its state has the names, shapes and meaning of AdamW's.

    With the bias-corrected moments m and u of a gradient g of n numbers, RMS = sqrt(mean(g^2 / max(u, eps^2))) and
    rate = lr / max(1, RMS): the weights decay by rate * weight_decay and move by -rate * m / (sqrt(u) + eps).
    """

    takes_found_inf = True
    found_inf: Tensor | None = None  # see optim/skipped_steps.py

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of every group; returns the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._group_step(group, parameters)
        return loss

    def _group_step(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        (beta1, beta2), eps = group["betas"], group["eps"]
        states, skips = [self._state(parameter) for parameter in parameters], skipped(self.found_inf)
        steps = torch.stack([state["step"] for state in states]) + 1.0
        weights, gradients = local_parts(parameters), local_parts([parameter.grad for parameter in parameters])
        first, second = (local_parts([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        updates = list(torch._foreach_lerp(first, gradients, 1.0 - beta1))
        assign_unless(skips, first, updates)
        corrected = list(torch._foreach_mul(second, beta2))
        torch._foreach_addcmul_(corrected, gradients, gradients, value=1.0 - beta2)
        assign_unless(skips, second, corrected)
        assign_unless(skips, [state["step"] for state in states], list(steps.unbind()))
        torch._foreach_div_(corrected, list(_debiasing(beta2, steps).unbind()))
        ratio = _root_mean_squares(parameters, gradients, list(torch._foreach_clamp_min(corrected, eps**2)))
        rates = group["lr"] / ratio.clamp(min=1.0)
        fill_if(skips, [rates], 0.0)
        torch._foreach_sqrt_(corrected)
        torch._foreach_add_(corrected, eps)
        torch._foreach_mul_(weights, list((1.0 - rates * group["weight_decay"]).unbind()))
        torch._foreach_div_(updates, corrected)
        torch._foreach_mul_(updates, list((-rates / _debiasing(beta1, steps)).unbind()))
        fill_if(skips, updates, -0.0)  # added to a weight, it changes no bit
        torch._foreach_add_(weights, updates)

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a parameter, zeros at first."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _debiasing(beta: float, steps: Tensor) -> Tensor:
    """Return 1 - beta^steps without the rounding of beta^steps near 1."""
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))


def _root_mean_squares(parameters: list[nn.Parameter], gradients: list[Tensor], second: list[Tensor]) -> Tensor:
    """Return sqrt(mean(gradient^2 / second)) of each whole parameter, shape (parameters,).

    A collective call for sharded parameters: one reduction for all that are sharded alike.
    """
    squares = torch._foreach_mul(gradients, gradients)
    torch._foreach_div_(squares, second)
    sums = torch.stack([square.sum() for square in squares])
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            alike[parameter.device_mesh, parameter.placements].append(index)
    for (mesh, placements), indices in alike.items():
        parts = DTensor.from_local(sums[indices], mesh, placements_of_sums(placements), run_check=False)
        sums[indices] = parts.full_tensor()
    sizes = tuple(parameter.numel() for parameter in parameters)
    return (sums / constants(sizes, sums.dtype, sums.device)).sqrt()


def placements_of_sums(placements: Sequence[Placement]) -> list[Placement]:
    """Return the placements of the sums over each process's shards of tensors that are placed so.

    Whatever is no copy is a shard: of a matrix that tensor parallelism split first, FSDP2's shards are strided, and
    their `is_shard()` is False (torch 2.13).
    """
    return [Replicate() if placement.is_replicate() else Partial() for placement in placements]


def build_stable_adamw(config: StableAdamWConfig, model: nn.Module) -> StableAdamW:
    """Return StableAdamW over the groups of AdamW."""
    return StableAdamW(
        adamw_groups(config, model), lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps
    )
