"""Settings of generation: what `src/generate.py` and the keywords of `LanguageModel` take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict

from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.training.config import PathsConfig

MAX_SAMPLING_SEED = 2**64 - 1  # of a torch.Generator


class InferenceDtype(Enum):
    """Number format of a model's weights at inference."""

    fp32 = "fp32"  # as they were trained
    bf16 = "bf16"  # in half the memory, for GPUs; of every number about three digits stay
    int8 = "int8"  # matrices in 8 bits, on processors: faster, and a little less exact


@dataclass
class GenerateConfig(Settings):
    """Continue a prompt, or fill its masks, with a trained model."""

    checkpoint: str = setting(
        "auto", "A run, one of its checkpoints, a Hugging Face folder or name; auto: the newest run."
    )
    device: str = setting("cpu", "Device of the model: cpu, cuda or mps.")
    dtype: InferenceDtype = setting(InferenceDtype.fp32, "Number format of the weights: fp32, bf16, or int8 on CPUs.")
    prompt: str = setting("The", r"Text to continue, or to fill masks in; \n is a new line, \t a tab, \\ a backslash.")
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
    repetition_penalty: float = setting(
        1.1,
        "Above 1: tokens of the text so far become less likely (Keskar et al. 2019).",
        bounds="(0.0, inf)",
        hint="or 1 for none",
    )
    stop: list[str] = setting(
        default_factory=list, about=r"The completion ends before the first of these texts; \n is a new line."
    )
    seed: int = setting(0, "Seed of the choice: the same seed gives the same text.", bounds=f"[0, {MAX_SAMPLING_SEED}]")
    log_probabilities: bool = setting(False, "Print each token of the completion with its probability.")
    plugins: list[str] = plugins_setting()
    paths: PathsConfig = field(default_factory=PathsConfig)


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
    use_cache: bool  # true; false computes the whole text again for every token
