"""Settings of generation: what `src/generate.py` and the keywords of `LanguageModel` take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypedDict

from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.errors import ConfigError
from pretrain.training.config import PathsConfig, SavedWeights

if TYPE_CHECKING:
    from pretrain.inference.canvas import Canvas

MAX_SAMPLING_SEED = 2**64 - 1  # of a torch.Generator


class InferenceDtype(Enum):
    """Number format of a model's weights at inference."""

    fp32 = "fp32"  # as they were trained
    bf16 = "bf16"  # in half the memory, for GPUs; of every number about three digits stay
    int8 = "int8"  # matrices in 8 bits, on processors: faster, and a little less exact


class DecodingOrder(Enum):
    """Which masks a diffusion model reveals first."""

    random = "random"  # every order equally likely: the model's own distribution, if each step reveals one
    confidence = "confidence"  # those whose drawn token is the most likely
    margin = "margin"  # those with the largest gap between the two most likely tokens
    entropy = "entropy"  # those with the lowest entropy


@dataclass
class GenerateConfig(Settings):
    """Continue a prompt, or fill its masks, with a trained model."""

    checkpoint: str = setting(
        "auto", "A run, one of its checkpoints, a Hugging Face folder or name; auto: the newest run."
    )
    device: str = setting("cpu", "Device of the model: cpu, cuda or mps.")
    weights: SavedWeights = setting(SavedWeights.trained, "Weights of the run: trained, or ema, their moving average.")
    dtype: InferenceDtype = setting(InferenceDtype.fp32, "Number format of the weights: fp32, bf16, or int8 on CPUs.")
    prompt: str = setting(
        "The", r"Text to continue, or to fill where it has [MASK]; taken as it stands: a \n stays two characters."
    )
    chat: bool = setting(
        False, "Converse: each line of standard input is a turn of the user, written by the model's chat template."
    )
    max_new_tokens: int | None = setting(
        None,
        "Most tokens of the completion; null: as many as the context allows, 100 at most.",
        bounds="[1, inf)",
        unit="tokens",
        example=100,
    )
    temperature: float = setting(
        0.8,
        "Softness of the choice; 0: always the most likely token.",
        bounds="[0.0, inf)",
        hint="or 0 for the most likely token",
    )
    top_k: int | None = setting(
        None, "Most likely tokens to choose among; with masks, the predictions shown.", bounds="[1, inf)", example=50
    )
    top_p: float | None = setting(
        None,
        "Choose among the most likely tokens that together have this probability (Holtzman et al. 2020).",
        bounds="(0.0, 1.0]",
        example=0.95,
    )
    min_p: float | None = setting(
        None,
        "Choose among tokens with at least this share of the most likely token's probability.",
        bounds="(0.0, 1.0]",
        example=0.05,
    )
    repetition_penalty: float | None = setting(
        None,
        "Above 1: tokens of the text so far become less likely (Keskar et al. 2019); null: 1.1, for causal models.",
        bounds="(0.0, inf)",
        example=1.1,
        hint="or 1 for none",
    )
    order: DecodingOrder | None = setting(
        None, "Diffusion: which masks are revealed first: random (null), confidence, margin or entropy."
    )
    steps: int | None = setting(
        None,
        "Diffusion: runs of the model; fewer are faster and less exact; null: one for each mask.",
        bounds="[1, inf)",
        unit="runs of the model",
        example=32,
    )
    block_length: int | None = setting(
        None,
        "Diffusion: the text is revealed in blocks of this length, from left to right; null: at once.",
        bounds="[1, inf)",
        unit="tokens",
        example=32,
    )
    guidance_scale: float | None = setting(
        None,
        "Diffusion: above 0 the prompt has more weight, at twice the cost (Nie et al. 2024); null: 0.",
        bounds="[0.0, inf)",
        example=1.0,
        hint="or 0 for none",
    )
    trace: str = setting(
        "false", "Diffusion: true prints the text after each step; a path ending in .html gets an animation."
    )
    stop: list[str] = setting(
        default_factory=list, about=r"The completion ends before the first of these texts; \n is a new line."
    )
    seed: int = setting(0, "Seed of the choice: the same seed gives the same text.", bounds=f"[0, {MAX_SAMPLING_SEED}]")
    log_probabilities: bool = setting(False, "Print each token of the completion with its probability.")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trace.lower() in ("true", "false"):
            self.trace = self.trace.lower()
        elif not self.trace.endswith(".html"):
            raise ConfigError(
                f"trace={self.trace[:80]} is neither true, false nor a file that ends in .html. Try trace=trace.html."
            )


class GenerationOptions(TypedDict, total=False):
    """How a prompt is continued; every option may be left out."""

    max_new_tokens: int | None  # None: as many as the context allows, 100 at most
    temperature: float  # 0.8; 0: always the most likely token
    top_k: int | None  # choose among this many most likely tokens
    top_p: float | None  # choose among the most likely tokens that together have this probability
    min_p: float | None  # choose among tokens with at least this share of the most likely token's probability
    repetition_penalty: float  # 1: none; above 1 tokens of the text so far become less likely
    stop: str | Sequence[str]  # the completion ends before the first of these
    seed: int | None  # the same seed gives the same text; None: another text each time
    use_cache: bool  # true; false computes the whole text again for every token; causal models only
    order: DecodingOrder | str  # this and all below: diffusion models only; "random", "confidence", "margin", "entropy"
    steps: int | None  # runs of the model; None: one for each mask
    block_length: int | None  # the text is revealed in blocks of this length, from left to right; None: at once
    guidance_scale: float  # above 0 the prompt has more weight, at twice the cost
    on_step: Callable[[Sequence[Canvas]], None]  # gets the canvases before the first step and after each


class FillOptions(TypedDict, total=False):
    """How masks are filled; every option may be left out, and is that of `GenerationOptions`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    order: DecodingOrder | str
    steps: int | None
    block_length: int | None
    guidance_scale: float
    on_step: Callable[[Sequence[Canvas]], None]
