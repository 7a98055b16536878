"""Parameter groups by the module that owns each parameter, and AdamW over them."""

import difflib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pretrain.errors import ConfigError
from pretrain.optim.config import AdamWConfig, GroupConfig, OptimizerConfig, typed_groups

_ADAPTER = ".lora.a"  # as `models.lora` ends the names of matrices that read a model's channels


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model, shared ones once, by name without the prefixes of wrappers."""
    return {
        name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
    }


@dataclass
class ParameterNames:
    """Names of a model's trained parameters by role; every one is in exactly one list."""

    matrices: list[str] = field(default_factory=list)  # weights of linear layers inside blocks: decay, Muon
    head: list[str] = field(default_factory=list)  # other weights, as of an untied head: decay
    rest: list[str] = field(default_factory=list)  # embeddings, norms, biases, all vectors and scales: no decay


def parameter_names(model: nn.Module) -> ParameterNames:
    """Return the trained parameters of `model` by role; a head tied to the embedding counts as an embedding."""
    names = ParameterNames()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for name, parameter in parameters_by_name(model).items():
        if not parameter.requires_grad:
            continue
        is_vector = parameter.ndim < 2  # also a norm that a model of another kind calls ln_1
        if is_vector or id(parameter) in embeddings or name.endswith(("bias", "_scale.weight")) or "norm" in name:
            names.rest.append(name)
        elif id(parameter) in linear and ".blocks." in f".{name}":
            names.matrices.append(name)
        else:
            names.head.append(name)
    return names


def adamw_groups(config: AdamWConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameter groups of AdamW: matrices, which decay, the rest, which does not, and the groups set.

    Raises ConfigError as `group_of_names` does.
    """
    names = parameter_names(model)
    roles = [
        Role(names.matrices + names.head, {"weight_decay": config.weight_decay}),
        Role(names.rest, {"weight_decay": 0.0}),
    ]
    return split_groups(config, model, roles)


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.AdamW:
    """Return fused AdamW over the groups of `adamw_groups`."""
    return torch.optim.AdamW(
        adamw_groups(config, model),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


@dataclass
class Role:
    """Parameters of one role, and the settings that they have unless a group of the user's changes them."""

    names: list[str]
    settings: dict[str, Any]
    has_betas: bool = True  # whether its update has AdamW's moments
    width_power: float = 1.0  # by which the singular values of an update of full size grow with the width
    rate_factor: float = 1.0  # of muP, after all rates that are set


def roles_by_width(roles: list[Role], model: nn.Module) -> list[Role]:
    """Return the roles with the linear layers of a muP model apart, whose rates fall with the width.

    For m times the base width AdamW's rate is 1 / m (Yang et al. 2022, https://arxiv.org/abs/2203.03466, table 8). An
    update of Muon has the same root mean square, but full rank, so its spectral norm grows with sqrt(m) alone: its rate
    is 1 / sqrt(m) (Yang et al. 2023, https://arxiv.org/abs/2310.17813, condition 1). With `update_scale=spectral` that
    norm is the same at every width, and so is the rate. Of an adapter of LoRA the matrix `a` alone reads as many
    channels as the model has, and has AdamW's rate.
    """
    multipliers: list[Any] = [getattr(module, "width_multiplier", None) for module in model.modules()]
    multiplier = next((float(found) for found in multipliers if found is not None), 1.0)
    if multiplier == 1.0:
        return roles
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    named = parameters_by_name(model).items()
    hidden = {name for name, parameter in named if id(parameter) in linear or name.endswith(_ADAPTER)}
    split = list[Role]()
    for role in roles:
        factor = multiplier**-role.width_power
        split.append(replace(role, names=[name for name in role.names if name in hidden], rate_factor=factor))
        split.append(replace(role, names=[name for name in role.names if name not in hidden]))
    return split


def _at_width(settings: dict[str, Any], factor: float, learning_rate: float) -> dict[str, Any]:
    """Return the settings with a rate times `factor`, and a decay that takes as much of a weight in a step as before.

    Source of the decay: Wang and Aitchison 2024, https://arxiv.org/abs/2405.13698.
    """
    if factor == 1.0:
        return settings
    decay = settings["weight_decay"] / factor
    return settings | {"lr": settings.get("lr", learning_rate) * factor, "weight_decay": decay}


def split_groups(config: AdamWConfig, model: nn.Module, roles: list[Role]) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: those that no setting names by role, then those of each name.

    A parameter is in the first of `optimizer.groups` with a pattern that matches its name. In a muP model the rates are
    those of the base width, and `roles_by_width` says how they follow the width. Raises ConfigError as
    `group_of_names` does, and for betas where there are no moments.
    """
    parameters, of_name = parameters_by_name(model), group_of_names(config, [n for role in roles for n in role.names])
    chosen: dict[str, GroupConfig] = typed_groups(config.groups)
    groups: list[dict[str, Any]] = []
    roles = roles_by_width(roles, model)
    for owner in (None, *chosen):
        for role in roles:
            names = [name for name in role.names if of_name.get(name) == owner]
            if not names:
                continue
            settings = role.settings
            if owner is not None:
                settings = settings | _changes(owner, chosen[owner], role, config.learning_rate)
            settings = _at_width(settings, role.rate_factor, config.learning_rate)
            groups.append({"params": [parameters[name] for name in names], **settings})
    return groups


def _changes(owner: str, group: GroupConfig, role: Role, learning_rate: float) -> dict[str, Any]:
    """Return what a group of the user's changes of the settings of a role."""
    changes: dict[str, Any] = {}
    if group.betas is not None and not role.has_betas:
        raise ConfigError(
            f"optimizer.groups.{owner}.betas={group.betas} has no meaning for {role.names[0]}, a matrix that Muon "
            f"updates by momentum alone. Leave it out there: optimizer.groups.{owner}.betas=null."
        )
    if group.betas is not None:
        changes["betas"] = tuple(group.betas)
    if group.weight_decay is not None:
        changes["weight_decay"] = group.weight_decay
    if group.learning_rate is not None:
        changes["lr"] = group.learning_rate
    elif group.learning_rate_ratio is not None:
        changes["lr"] = role.settings.get("lr", learning_rate) * group.learning_rate_ratio
    return changes


def check_groups(config: OptimizerConfig, model: nn.Module) -> None:
    """Raise ConfigError as `group_of_names` does; `model` may be without weights, and the optimizer without groups."""
    if isinstance(config, AdamWConfig):
        group_of_names(config, [name for name, each in parameters_by_name(model).items() if each.requires_grad])


def group_of_names(config: AdamWConfig, names: list[str]) -> dict[str, str]:
    """Return the group of each trained parameter that a group of the user's has; the first that matches wins.

    Raises ConfigError for a pattern that matches none of the `names`, and for a group that has none of them because
    those before it have all that it matches.
    """
    of_name: dict[str, str] = {}
    groups = typed_groups(config.groups)
    for owner, group in groups.items():
        matched = list[str]()
        for pattern in group.match:
            found = [name for name in names if fnmatchcase(name, pattern)]
            if not found:
                raise ConfigError(
                    f"optimizer.groups.{owner}.match={pattern} matches no trained parameter. {_near(pattern, names)}"
                )
            matched += found
        for name in matched:
            of_name.setdefault(name, owner)
        if all(of_name[name] != owner for name in matched):
            raise ConfigError(_without_parameters(owner, groups, sorted({of_name[name] for name in matched})))
    return of_name


def _without_parameters(owner: str, groups: dict[str, GroupConfig], before: list[str]) -> str:
    """Return the message about a group whose parameters are all in the groups `before` it."""
    them, verb = " and ".join(f"optimizer.groups.{each}" for each in before), "has" if len(before) == 1 else "have"
    first = before[0]
    written = ", ".join(
        f"{key}: {json.dumps(value)}" for key, value in asdict(groups[first]).items() if value is not None
    )
    return (
        f"optimizer.groups.{owner}.match=[{','.join(groups[owner].match)}] gets no parameter: each is in the first "
        f"group that matches it, and {them} {verb} all of these. Write that group again under a name after {owner}: "
        f"optimizer.groups.{first}=null 'optimizer.groups.{first}_others={{{written}}}'."
    )


def _near(pattern: str, names: list[str]) -> str:
    """Return a hint that names the parameters nearest to a pattern."""
    plain = {re.sub(r"\.\d+\.", ".*.", name): None for name in names}  # of equal blocks one
    near = difflib.get_close_matches(pattern, plain, n=3, cutoff=0.3) or list(plain)[:3]
    return f"Names near it: {', '.join(near)}."


def group_table(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Return one line for each parameter group: numbers, peak rate, decay, betas, its first name."""
    names = {id(parameter): name for name, parameter in parameters_by_name(model).items()}
    lines = []
    for group in optimizer.param_groups:
        numbers = sum(parameter.numel() for parameter in group["params"])
        kind = (
            f"momentum {group['momentum']:g}"
            if group.get("matrices")
            else f"betas {', '.join(f'{beta:g}' for beta in group['betas'])}"
        )
        more = f" and {len(group['params']) - 1} more" if len(group["params"]) > 1 else ""
        lines.append(
            f"  {numbers:,} parameters, learning rate {group['lr']:g}, weight decay {group['weight_decay']:g}, {kind}: "
            f"{names[id(group['params'][0])]}{more}"
        )
    return lines
