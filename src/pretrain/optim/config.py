"""Settings of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.config.setting import Settings, check, description, setting
from pretrain.errors import ConfigError, nearest, shown

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class MatrixPrecision(Enum):
    """Number format of Muon's matmuls."""

    auto = "auto"  # that of the training's own matmuls
    fp32 = "fp32"
    bf16 = "bf16"


class NewtonSchulz(Enum):
    """Polynomials that move the singular values of Muon's updates towards 1."""

    quintic = "quintic"  # one for all iterations (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon)
    converging = "converging"  # one that leaves 1 where it is, so that more iterations come closer (modded-nanogpt)
    polar_express = "polar_express"  # the best for each iteration (Amsel et al. 2025, https://arxiv.org/abs/2505.16932)


class UpdateScale(Enum):
    """Size of Muon's updates, each an orthogonal matrix times a number."""

    rms = "rms"  # a root mean square of 0.2, as AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982)
    spectral = "spectral"  # singular values of sqrt(max(1, rows / columns)) (Jordan et al. 2024)


@dataclass(frozen=True)
class GroupConfig:
    """Settings of the parameters whose names match a pattern; what is None stays that of the optimizer."""

    match: list[str] = field(default_factory=list)  # patterns with * and ? over names of parameters
    learning_rate: float | None = setting(None, "Peak rate.", bounds="(0.0, inf)", example=0.001)
    learning_rate_ratio: float | None = setting(
        None, "Peak rate over that of the optimizer.", bounds="(0.0, inf)", example=0.1
    )
    weight_decay: float | None = setting(None, "Weight decay.", bounds="[0.0, inf)", example=0.0)
    betas: list[float] | None = None  # of AdamW's moments


def typed_groups(written: Mapping[str, Any]) -> dict[str, GroupConfig]:
    """Return the groups that the setting `optimizer.groups` names, in its order; raises ConfigError for a wrong one."""
    return {str(name): _typed_group(str(name), entry) for name, entry in written.items() if entry is not None}


def _typed_group(name: str, entry: Any) -> GroupConfig:
    key, known = f"optimizer.groups.{name}", [each.name for each in fields(GroupConfig)]
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{key}={shown(entry)} is not a group. Write the names it holds and what they have: "
            f"'optimizer.groups.{name}={{match: [\"*embedding*\"], learning_rate_ratio: 3}}'."
        )
    if unknown := [str(each) for each in entry if each not in known]:
        raise ConfigError(f"{key}.{unknown[0]} is not a setting of a group. {nearest(unknown[0], known)}")
    patterns, betas = entry.get("match"), entry.get("betas")
    if not isinstance(patterns, list) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise ConfigError(
            f"{key}.match={shown(patterns)} is not a list of patterns of parameters' names. "
            f"Try '{key}.match=[\"*embedding*\"]'."
        )
    is_pair = isinstance(betas, list) and len(betas) == 2
    if betas is not None and not (is_pair and all(isinstance(each, int | float) and 0 <= each < 1 for each in betas)):
        raise ConfigError(
            f"{key}.betas={shown(betas)} is not a pair of numbers from 0 to below 1. Try '{key}.betas=[0.9,0.95]'."
        )
    for number in ("learning_rate", "learning_rate_ratio", "weight_decay"):
        check(f"{key}.{number}", entry.get(number), description(GroupConfig, number))
    group = GroupConfig(**{str(each): value for each, value in entry.items()})
    if group.learning_rate is not None and group.learning_rate_ratio is not None:
        raise ConfigError(
            f"{key}.learning_rate={group.learning_rate:g} and {key}.learning_rate_ratio={group.learning_rate_ratio:g} "
            f"give one rate in two ways. Give only one, such as {key}.learning_rate_ratio=null."
        )
    return group


@dataclass
class OptimizerConfig(Settings):
    """Settings that all optimizers share.

    An optimizer of your own is a subclass with a `kind` and `build()`. Its state is saved where it is made of tensors:
    `optimizer.state[parameter]` holds scalars, or tensors of the parameter's shape.
    """

    prefix: ClassVar[str] = "optimizer."
    kind: str = "?"
    learning_rate: float = setting(1e-3, "Peak learning rate; the schedule scales it.", bounds="(0.0, inf)")
    weight_decay: float = setting(
        0.1, "Decay of matrices; norms, biases and embeddings do not decay.", bounds="[0.0, inf)"
    )

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of every parameter of `model`."""
        raise TypeError(f"optimizer {self.kind!r} has no build()")

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        """Set what changes with the optimizer step `step`, from 0, other than the learning rate; here nothing."""

    def resolved(self, bf16: bool) -> OptimizerConfig:
        """Return the settings with what is `auto` resolved for a training in bf16, or in float32."""
        return self

    def in_float32(self) -> OptimizerConfig:
        """Return the settings with every matmul of the optimizer in float32."""
        return self

    def state_numbers(self, model: nn.Module) -> int:
        """Return how many numbers the optimizer keeps of the trained parameters; three of each if it does not say."""
        return 3 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def stacked_matrices(self, model: nn.Module) -> frozenset[str]:
        """Return the names of the parameters that a step updates in stacks of equal shapes, with one number each."""
        return frozenset()


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""

    kind: str = "adamw"
    beta1: float = setting(0.9, "Decay of the first moment.", bounds="[0.0, 1.0)")
    beta2: float = setting(0.95, "Decay of the second moment.", bounds="[0.0, 1.0)")
    eps: float = setting(1e-8, "Added to the root of the second moment.", bounds="(0.0, inf)")
    groups: dict[str, Any] = setting(
        default_factory=dict,
        about="Groups by name; a parameter is in the first that matches: match, learning_rate(_ratio), weight_decay, "
        "betas.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        typed_groups(self.groups)

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.groups import build_adamw

        return build_adamw(self, model)

    def state_numbers(self, model: nn.Module) -> int:
        return 2 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@dataclass
class StableAdamWConfig(AdamWConfig):
    """StableAdamW: AdamW with clipped updates (Wortsman et al. 2023, https://arxiv.org/abs/2304.13013, algorithm 2).

    A parameter whose gradient has outgrown its second moment takes a step as much smaller. ModernBERT trains so.
    """

    kind: str = "stable_adamw"

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.stable_adamw import build_stable_adamw

        return build_stable_adamw(self, model)


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the matrices of the blocks, AdamW for everything else.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. A Muon update is scaled to the root
    mean square of an AdamW update, so that both share one learning rate (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2).
    """

    kind: str = "muon"
    momentum: float = setting(0.95, "Momentum of the matrices.", bounds="[0.0, 1.0)")
    newton_schulz_steps: int = setting(5, "Iterations that orthogonalize an update.", bounds="[1, inf)")
    newton_schulz_precision: MatrixPrecision = setting(
        MatrixPrecision.auto, "Number format of the orthogonalization; auto: that of the training."
    )
    matrix_learning_rate_ratio: float = setting(
        1.0, "Learning rate of the matrices over that of the rest.", bounds="(0.0, inf)"
    )
    newton_schulz_coefficients: NewtonSchulz = setting(
        NewtonSchulz.quintic, "Polynomials of the orthogonalization: one for all iterations, or the best for each."
    )
    update_scale: UpdateScale = setting(
        UpdateScale.rms, "Size of the matrices' updates: a root mean square of 0.2, or sqrt(max(1, rows / columns))."
    )
    row_beta2: float = setting(
        0.0, "Decay of a second moment of each row, which evens out the rows of an update (NorMuon); 0: none.",
        bounds="[0.0, 1.0)", example=0.95,
    )  # fmt: skip
    momentum_warmup_steps: int = setting(
        0, "Steps over which the momentum rises to its value, from momentum_start.", bounds="[0, inf)",
        unit="optimizer steps", example=300,
    )  # fmt: skip
    momentum_start: float = setting(
        0.85, "Momentum of the first step, with momentum_warmup_steps.", bounds="[0.0, 1.0)"
    )
    cautious_weight_decay: bool = setting(
        False,
        "Of the matrices' numbers, only those decay that the update moves towards 0 too (arxiv.org/abs/2510.12402).",
    )

    def momentum_at(self, step: int) -> float:
        """Return the momentum of an optimizer step, from 0."""
        if step >= self.momentum_warmup_steps:
            return self.momentum
        return self.momentum_start + (self.momentum - self.momentum_start) * step / self.momentum_warmup_steps

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            if group.get("matrices"):
                group["momentum"] = self.momentum_at(step)

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.muon import build_muon

        return build_muon(self, model)

    def resolved(self, bf16: bool) -> MuonConfig:
        if self.newton_schulz_precision is not MatrixPrecision.auto:
            return self
        return replace(self, newton_schulz_precision=MatrixPrecision.bf16 if bf16 else MatrixPrecision.fp32)

    def in_float32(self) -> MuonConfig:
        return replace(self, newton_schulz_precision=MatrixPrecision.fp32)

    def state_numbers(self, model: nn.Module) -> int:
        matrices = self.stacked_matrices(model)
        stacked = [parameter for name, parameter in model.named_parameters() if name in matrices]
        rows = sum(len(parameter) for parameter in stacked) if self.row_beta2 else 0
        return super().state_numbers(model) - sum(parameter.numel() for parameter in stacked) + rows

    def stacked_matrices(self, model: nn.Module) -> frozenset[str]:
        from pretrain.optim.groups import parameter_names

        return frozenset(parameter_names(model).matrices)
