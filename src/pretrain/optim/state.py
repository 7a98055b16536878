"""Optimizer state by parameter name: independent of order, groups, ranks and wrapping."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.errors import CheckpointError
from pretrain.optim.groups import parameters_by_name

_MATRIX_SLOTS = {"momentum_buffer", "row_second_moment"}


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return every state tensor of `optimizer` as <parameter name>/<key>."""
    state = {}
    for name, parameter in parameters_by_name(model).items():
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):  # sorted: equal states give equal files
            state[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return state


def load_optimizer_state(
    optimizer: Optimizer,
    model: nn.Module,
    saved: Mapping[str, Tensor],
    distribute: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value.to(parameter.device),
) -> None:
    """Load saved state; raises CheckpointError if it does not fit this model or this optimizer.

    `distribute(value, parameter)` returns a full value with the device and sharding of its parameter.
    """
    parameters = parameters_by_name(model)
    expected_slots = _slots(optimizer)
    for key in saved:
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            raise CheckpointError(
                f"the saved optimizer state holds {key}, but the model has no parameter {name!r}. Take the settings of "
                "that run, or start a new one from its weights: init_from=..."
            )
        value, parameter = saved[key], parameters[name]
        of_rows = slot == "row_second_moment" and value.shape == (*parameter.shape[:1], 1)
        if value.ndim and value.shape != parameter.shape and not of_rows:
            raise CheckpointError(
                f"the saved optimizer state {key} has shape {tuple(value.shape)}, the parameter "
                f"{tuple(parameter.shape)}. Take the settings of that run, or start a new one from its weights: "
                "init_from=..."
            )
        if slot not in expected_slots.get(parameter, {slot}):
            raise CheckpointError(
                f"the saved optimizer state holds {key}, and {type(optimizer).__name__} keeps no {slot} there: another "
                "optimizer wrote it. Take the optimizer of that run, or start a new one from its weights: init_from=..."
            )
        optimizer.state[parameter][slot] = distribute(value, parameter) if value.ndim else value.to(parameter.device)


def _slots(optimizer: Optimizer) -> dict[Tensor, set[str]]:
    """Return the state keys of each parameter for AdamW and Muon; empty for other optimizers."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return {}
    return {
        parameter: _MATRIX_SLOTS if group.get("matrices") else {"step", "exp_avg", "exp_avg_sq"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
