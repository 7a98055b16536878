"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import Settings, setting

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class MatrixPrecision(Enum):
    """Number format of Muon's matmuls."""

    auto = "auto"  # that of the training's own matmuls
    fp32 = "fp32"
    bf16 = "bf16"


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

    def build(self, model: nn.Module) -> Optimizer:
        from pretrain.optim.groups import build_adamw

        return build_adamw(self, model)

    def state_numbers(self, model: nn.Module) -> int:
        return 2 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


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
        one = sum(parameter.numel() for name, parameter in model.named_parameters() if name in matrices)
        return super().state_numbers(model) - one

    def stacked_matrices(self, model: nn.Module) -> frozenset[str]:
        from pretrain.optim.groups import parameter_names

        return frozenset(parameter_names(model).matrices)
