"""Settings of rotary positions: how their frequencies are stretched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError

_FEWEST_TURNS, _MOST_TURNS = 1e-6, 1e6  # beyond them, the wavelengths of yarn's thresholds are no finite numbers


class RopeScaling(Enum):
    """How rotary frequencies are stretched beyond the length they were trained at."""

    none = "none"
    linear = "linear"  # Chen et al. 2023, https://arxiv.org/abs/2306.15595
    llama3 = "llama3"  # Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783, as released with Llama 3.1
    yarn = "yarn"  # Peng et al. 2023, https://arxiv.org/abs/2309.00071


@dataclass
class RopeScalingConfig(Settings):
    """Stretching of rotary positions; `factor` = 1 leaves them alone."""

    prefix: ClassVar[str] = "model.rope_scaling."
    kind: RopeScaling = setting(RopeScaling.none, "How rotary frequencies are stretched.")
    factor: float = setting(1.0, "New context length over the one of training.", bounds="[1.0, inf)")
    low_freq_factor: float = setting(
        1.0, "llama3: wavelengths above original_context_length / low_freq_factor are stretched in full.",
        bounds="(0.0, inf)",
    )  # fmt: skip
    high_freq_factor: float = setting(
        4.0, "llama3: wavelengths below original_context_length / high_freq_factor are kept.", bounds="(0.0, inf)"
    )
    original_context_length: int = setting(
        8192, "llama3, yarn: context length of the training.", bounds=f"[1, {1 << 24}]", unit="tokens"
    )
    beta_fast: float = setting(
        32.0, "yarn: channels that turn more often than this in the original context are kept.", bounds="(0.0, inf)"
    )
    beta_slow: float = setting(
        1.0, "yarn: channels that turn less often than this in the original context are stretched in full.",
        bounds="(0.0, inf)",
    )  # fmt: skip
    attention_factor: float | None = setting(
        None, "yarn: rotated queries and keys are multiplied by this; null: 0.1 ln(factor) + 1.", bounds="(0.0, inf)",
        example=1.0,
    )  # fmt: skip
    global_layers_only: bool = setting(False, "Leave layers with a sliding window as they are (Gemma 3, OLMo 3).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}. Try model.rope_scaling.low_freq_factor=1.0 "
                "model.rope_scaling.high_freq_factor=4.0."
            )
        if not self.beta_slow < self.beta_fast:
            raise ConfigError(
                f"model.rope_scaling.beta_slow={self.beta_slow} must be below beta_fast={self.beta_fast}. "
                "Try model.rope_scaling.beta_slow=1.0 model.rope_scaling.beta_fast=32.0."
            )
        for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            if not _FEWEST_TURNS <= (turns := getattr(self, name)) <= _MOST_TURNS:
                raise ConfigError(
                    f"model.rope_scaling.{name}={turns} is not between {_FEWEST_TURNS:g} and {_MOST_TURNS:g} turns. "
                    f"Try model.rope_scaling.{name}={usual}."
                )

    @property
    def rotation_scale(self) -> float:
        """What cosines and sines are multiplied by; 1 of all kinds but yarn (Peng et al. 2023, section 3.4)."""
        if self.kind is not RopeScaling.yarn:
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    @property
    def is_on(self) -> bool:
        """Whether it changes anything."""
        return self.kind is not RopeScaling.none and (self.factor != 1.0 or self.rotation_scale != 1.0)
