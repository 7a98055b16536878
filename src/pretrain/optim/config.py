"""Settings of the optimizer and of the learning rate over the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class MatrixPrecision(Enum):
    """Number format of Muon's matrix products."""

    auto = "auto"  # that of the training's own products
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass
class OptimizerConfig:
    """What every optimizer has in common."""

    kind: str = "?"
    learning_rate: float = 1e-3  # at its height; the schedule scales it
    weight_decay: float = 0.1  # of matrices only: norms, biases and embeddings do not decay

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"optimizer.learning_rate={self.learning_rate} is not a number above 0. "
                "Try optimizer.learning_rate=0.001."
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"optimizer.weight_decay={self.weight_decay} is not a number from 0 up. Try optimizer.weight_decay=0.1."
            )

    def build(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of every parameter of `model`."""
        raise TypeError(f"optimizer {self.kind!r} has no build()")


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"optimizer.{name}={getattr(self, name)} is not a share from 0 up to but not including 1. "
                    f"Try optimizer.{name}=0.95."
                )
        if not 0.0 < self.eps < math.inf:
            raise ConfigError(f"optimizer.eps={self.eps} is not a number above 0. Try optimizer.eps=1e-08.")

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.adamw import build_adamw

        return build_adamw(self, model)


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the matrices of the blocks, AdamW for everything else.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. A Muon update is scaled to the root
    mean square of an AdamW update, so that both share one learning rate (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, section 2.2).
    """

    kind: str = "muon"
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    newton_schulz_precision: MatrixPrecision = MatrixPrecision.auto
    matrix_learning_rate_ratio: float = 1.0  # learning rate of the matrices over that of the rest

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(
                f"optimizer.momentum={self.momentum} is not a share from 0 up to but not including 1. "
                "Try optimizer.momentum=0.95."
            )
        if self.newton_schulz_steps < 1:
            raise ConfigError(
                f"optimizer.newton_schulz_steps={self.newton_schulz_steps} is below 1. "
                "Try optimizer.newton_schulz_steps=5."
            )
        if not 0.0 < self.matrix_learning_rate_ratio < math.inf:
            raise ConfigError(
                f"optimizer.matrix_learning_rate_ratio={self.matrix_learning_rate_ratio} is not a number above 0. "
                "Try optimizer.matrix_learning_rate_ratio=1.0."
            )

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.muon import build_muon

        return build_muon(self, model)


@dataclass
class ScheduleConfig:
    """What every schedule has in common: a linear warm-up to the height, which its last step has.

    A run of N steps has the steps 0 to N - 1. From the warm-up on, the rate never jumps: each schedule begins its
    course at the height, also where its decay would begin before the warm-up ends.
    """

    kind: str = "?"
    warmup_steps: int = 100
    warmup_tokens: int | None = None  # read in the warm-up, instead of a number of steps

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "warmup_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"schedule.{name}={getattr(self, name)} is negative. Try schedule.{name}=0.")

    def share(self, step: int, max_steps: float) -> float:
        """Return the learning rate of optimizer step `step` (from 0) as a share of its height.

        `max_steps` is the length of the run, or what it will come to at its present pace where it ends by the clock.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step, max_steps)

    def after_warmup(self, step: int, max_steps: float) -> float:
        """Return the share of the learning rate at a step behind the warm-up."""
        raise TypeError(f"schedule {self.kind!r} has no course")


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from the height to `final_share` of it (Loshchilov and Hutter 2017, arxiv.org/abs/1608.03983).

    It would reach `final_share` at the step behind the last. With n steps behind the warm-up, the last step has
    final_share + (1 - final_share) (1 - cos(pi / n)) / 2, which is above it by a 1 / n^2 part: no step is lost to a
    rate of 0.
    """

    kind: str = "cosine"
    final_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final_share(self.final_share, 0.1)

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        return self.final_share + (1.0 - self.final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class WSDConfig(ScheduleConfig):
    """Warm-up, stable, decay: the height until the last `decay_share` of the steps, then a line to `final_share`.

    The line would reach `final_share` at the step behind the last. With n steps of decay, the last step has
    final_share + (1 - final_share) / n. Where the warm-up reaches into the decay, the decay begins behind it and is
    as much shorter.
    Source: Hu et al. 2024, https://arxiv.org/abs/2404.06395, section 4; a linear decay as in Haegele et al. 2024,
    https://arxiv.org/abs/2405.18392.
    """

    kind: str = "wsd"
    decay_share: float = 0.2
    final_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay_share <= 1.0:
            raise ConfigError(
                f"schedule.decay_share={self.decay_share} is not a share above 0 and up to 1. "
                "Try schedule.decay_share=0.2."
            )
        _check_final_share(self.final_share, 0.0)

    def after_warmup(self, step: int, max_steps: float) -> float:
        left = min(1.0, max(0.0, (max_steps - step) / self.decay_steps(max_steps))) if max_steps < math.inf else 1.0
        return self.final_share + (1.0 - self.final_share) * left

    def decay_steps(self, max_steps: float) -> float:
        """Return the steps of the decay: those that `decay_share` asks for, as far as the warm-up leaves them."""
        return max(1, min(round(self.decay_share * max_steps), max_steps - self.warmup_steps))


def _check_final_share(share: float, usual: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"schedule.final_share={share} is not a share from 0 to 1. Try schedule.final_share={usual}.")


@dataclass
class LinearConfig(ScheduleConfig):
    """A straight line from the height to `final_share` of it at the last step, as BERT was trained.

    The first step behind the warm-up has the height, the last one `final_share` of it: 0 as a rule, so that this step
    changes nothing. A run with one step behind its warm-up takes it at the height.
    """

    kind: str = "linear"
    final_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_final_share(self.final_share, 0.0)

    def after_warmup(self, step: int, max_steps: float) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, max_steps - 1 - self.warmup_steps))
        return 1.0 - (1.0 - self.final_share) * progress


@dataclass
class ConstantConfig(ScheduleConfig):
    """The height from the end of the warm-up on, to the last step."""

    kind: str = "constant"

    def after_warmup(self, step: int, max_steps: float) -> float:
        return 1.0
