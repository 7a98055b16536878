"""How a prompt is continued, as keywords of `LanguageModel`."""

from collections.abc import Sequence
from typing import TypedDict


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
