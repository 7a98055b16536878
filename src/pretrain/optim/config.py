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
