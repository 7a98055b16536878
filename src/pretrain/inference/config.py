"""Settings of generation: what `src/generate.py` and the keywords of `LanguageModel` take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypedDict

from pretrain.config.seed import MAX_SAMPLING_SEED, check_seed
from pretrain.training.config import PathsConfig


class InferenceDtype(Enum):
    """Number format of a model's weights at inference."""

    fp32 = "fp32"  # as they were trained
    bf16 = "bf16"  # in half the memory, for GPUs; of every number about three digits stay
    int8 = "int8"  # matrices in 8 bits, on processors: faster, and a little less exact


@dataclass
class GenerateConfig:
    """Continue a prompt, or fill its masks, with a trained model."""

    checkpoint: str = "auto"  # a run, one of its checkpoints, a Hugging Face folder or name; auto: the newest run
    device: str = "cpu"  # where the model is read: cpu, cuda, mps
    dtype: InferenceDtype = InferenceDtype.fp32  # bf16: in half the memory, for GPUs; int8: faster on processors
    prompt: str = "The"  # \n is a new line, \t a tab, \\ a backslash
    max_new_tokens: int | None = None  # none given: as many as the context allows, 100 at most
    temperature: float = 0.8  # 0 always takes the likeliest token
    top_k: int | None = None  # of the likeliest tokens to choose from; fill-in answers shown
    top_p: float | None = None  # choose among the likeliest tokens that together have this probability
    min_p: float | None = None  # choose among tokens at least this share as likely as the likeliest
    repetition_penalty: float = 1.1  # above 1: what was said becomes less likely
    stop: list[str] = field(default_factory=list)  # the text ends before the first of these; \n is a new line
    seed: int = 0
    log_probabilities: bool = False  # also show each token that was written and how likely it was
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed, MAX_SAMPLING_SEED)


class GenerationOptions(TypedDict, total=False):
    """How a prompt is continued; every option may be left out."""

    max_new_tokens: int | None  # none: as many as the context allows, 100 at most
    temperature: float  # 0.8; 0 always takes the likeliest token
    top_k: int | None  # choose among so many of the likeliest tokens
    top_p: float | None  # choose among the likeliest that together have this probability
    min_p: float | None  # choose among tokens at least this share as likely as the likeliest
    repetition_penalty: float  # 1, none; above 1 what was said becomes less likely
    stop: str | Sequence[str]  # the text ends before the first of these
    seed: int | None  # the same seed gives the same text; none: another one each time
    use_cache: bool  # true; without, the text is read anew for every token
