"""Settings of near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError

MAX_FUNCTIONS = 2048


class Within(Enum):
    """Which documents are compared with each other."""

    source = "source"
    language = "language"
    all = "all"


@dataclass
class NearDuplicatesConfig(Settings):
    """How near-duplicates are found and removed: MinHash with LSH, then the true similarity."""

    prefix: ClassVar[str] = "duplicates."
    words: int = setting(5, "Words of a shingle.", bounds="[1, 64]", unit="words")
    bands: int = setting(20, "Bands of the signature; documents that share one are candidates.", bounds="[1, 256]")
    rows: int = setting(8, "MinHash functions of a band.", bounds="[1, 64]", unit="functions")
    similarity: float = setting(
        0.8, "Jaccard similarity of the shingles from which a document is a duplicate of a kept one.",
        bounds="(0.0, 1.0]",
    )  # fmt: skip
    verify: bool = setting(
        True, "Compute the true similarity of candidates; false: all of a chain of candidates but one are removed."
    )
    within: Within = setting(Within.all, "Compare documents of one source, of one language, or all.")
    paragraphs: int | None = setting(
        None, "Cut exact repeats of paragraphs of this length or longer; null: none.", bounds="[20, inf)",
        unit="characters", example=200,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bands * self.rows > MAX_FUNCTIONS:
            raise ConfigError(
                f"duplicates.bands={self.bands} times duplicates.rows={self.rows} are more than {MAX_FUNCTIONS} "
                f"MinHash functions. Try duplicates.bands={MAX_FUNCTIONS // self.rows}."
            )


# FineWeb: Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.4. OLMo 3: Team OLMo 2025,
# https://arxiv.org/abs/2512.13961.
PRESETS = {
    "default": NearDuplicatesConfig(),
    "fineweb": NearDuplicatesConfig(bands=14, rows=8, verify=False),
    "olmo3": NearDuplicatesConfig(bands=26, rows=11),
}
