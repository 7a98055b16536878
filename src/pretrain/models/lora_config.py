"""Settings of LoRA: which matrices get an adapter, and of which rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError


@dataclass
class LoraConfig(Settings):
    """Train low-rank adapters of a base's matrices, and no other weight.

    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    prefix: ClassVar[str] = "lora."
    rank: int = setting(
        0, "Rank of the adapters, which alone are trained; 0: no adapters, all weights are trained.",
        bounds="[0, 4096]", example=8, hint="or 0 for none",
    )  # fmt: skip
    alpha: float = setting(16.0, "The output of an adapter is multiplied by alpha / rank.", bounds="(0.0, inf)")
    dropout: float = setting(0.0, "Dropout of the input of the adapters.", bounds="[0.0, 1.0)")
    targets: list[str] = setting(
        default_factory=lambda: ["blocks.*"],
        about="Patterns of the names of matrices that get an adapter, such as *.query.weight; each must match one.",
    )
    init_from: str | None = setting(None, "Start from the adapters in this PEFT folder; null: adapters without effect.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and not self.targets:
            raise ConfigError("lora.targets=[] gives no matrix an adapter. Try 'lora.targets=[blocks.*]', for all.")
        if self.init_from and not self.rank:
            raise ConfigError(
                f"lora.init_from={self.init_from} starts from adapters, and lora.rank=0 trains none. "
                "Try lora.rank=8, or the rank of these adapters."
            )

    @property
    def is_on(self) -> bool:
        """Whether the model has adapters."""
        return self.rank > 0

    @property
    def scale(self) -> float:
        """Factor of the output of an adapter."""
        return self.alpha / self.rank
