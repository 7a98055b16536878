"""Settings of curation: raw text to a corpus with provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.data.config import Format
from pretrain.data.curation.clusters.config import EngineConfig
from pretrain.data.curation.contamination.config import DecontaminateConfig
from pretrain.data.curation.licenses import COLUMN, PAGE, LicenseSet, check_stated
from pretrain.data.curation.near_duplicates.config import NearDuplicatesConfig
from pretrain.data.curation.personal_data import KINDS, PERSONAL_DATA_VERSION
from pretrain.data.curation.quality import QualityConfig
from pretrain.data.curation.toxicity import ToxicityConfig
from pretrain.data.curation.web.config import HTMLConfig, LanguageConfig
from pretrain.errors import ConfigError, nearest


class Keep(Enum):
    """Which of several duplicates stays."""

    longest = "longest"
    newest = "newest"  # by the date column of its source
    first = "first"  # in the order of sources, files and records


class Damaged(Enum):
    """What a damaged record of a crawl does."""

    fail = "fail"
    skip = "skip"


class Unknown(Enum):
    """What becomes of documents whose license nobody knows."""

    keep = "keep"
    drop = "drop"


@dataclass
class CorpusSource(Settings):
    """Settings that all sources of a curation share."""

    prefix: ClassVar[str] = "sources.<name>."
    reads_pages: ClassVar[bool] = False  # whether it is of web pages, which may say their own license
    kind: str = "?"
    path: str = setting("???", "A file, a folder (read recursively, in sorted order) or a glob pattern.")
    license: str = setting("???", "License of the texts: an SPDX name such as CC-BY-4.0, column, or unknown.")
    language: str | None = setting(
        None,
        "Language of the texts as two letters (ISO 639-1), which selects stop words and thresholds; null: what "
        "language.detect finds, without it English.",
    )
    priority: int = setting(0, "Of duplicates, that of the source with the larger priority stays.")
    rules: str | None = setting(None, "Preset of the rules for this source, such as none; null: the rules of all.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.license != "???":
            own = PAGE if self.reads_pages else COLUMN if isinstance(self, ColumnSource) else None
            check_stated("sources.<name>.license", self.license, own)

    def columns(self) -> dict[str, str]:
        """Return the columns that are read, by the settings that name them; the text's comes first."""
        return {}


@dataclass
class ColumnSource(CorpusSource):
    """Records with the text in a column."""

    license_column: str = setting("license", "Column of each text's license, for license=column.")
    text_column: str = setting("text", "Column of the text, in files that are not plain text.")
    url_column: str | None = setting(None, "Column of the address that a text is from; null: none.")
    date_column: str | None = setting(None, "Column of a text's date, such as 2024-05-31; null: none.")

    def columns(self) -> dict[str, str]:
        """Return the columns that are read, by the settings that name them; the text's comes first."""
        named = {"text_column": self.text_column, "url_column": self.url_column, "date_column": self.date_column}
        if self.license == "column":
            named["license_column"] = self.license_column
        return {f"sources.<name>.{key}": column for key, column in named.items() if column is not None}


@dataclass
class FilesSource(ColumnSource):
    """Files on this machine: text, .jsonl, .json, .csv, .tsv or .parquet, also as .gz, .xz, .zst or .bz2."""

    kind: str = "text_files"
    separator: str | None = setting(
        None, r"Text between the documents of a plain text file; \n is any line end. null: a file is one document."
    )
    format: Format = setting(Format.auto, "Format of the files; auto: by each file's name and its beginning.")


@dataclass
class JSONLinesSource(FilesSource):
    """Files of one JSON object a line."""

    kind: str = "jsonl"
    format: Format = setting(Format.jsonl, "Format of the files.")


@dataclass
class CSVSource(FilesSource):
    """Tables with a heading, fields between commas or other signs."""

    kind: str = "csv"
    format: Format = setting(Format.csv, "Format of the files.")


@dataclass
class TSVSource(FilesSource):
    """Tables with a heading, fields between tabs."""

    kind: str = "tsv"
    format: Format = setting(Format.tsv, "Format of the files.")


@dataclass
class ParquetSource(FilesSource):
    """Parquet files."""

    kind: str = "parquet"
    format: Format = setting(Format.parquet, "Format of the files.")


@dataclass
class HuggingFaceSource(ColumnSource):
    """A data set of the Hugging Face `datasets` library: a folder on this machine or a name on the hub."""

    kind: str = "hugging_face"
    subset: str | None = setting(None, "A configuration of the hub's data set, such as sample-10BT.")
    split: str = setting("train", "The split to read.")
    revision: str | None = setting(None, "A commit or tag of the hub's repository.")


_PAGE_LICENSE = "License of the texts: an SPDX name such as CC-BY-4.0, page for what each page says, or unknown."


@dataclass
class HTMLSource(CorpusSource):
    """Web pages, one a file: .html, .htm or .xhtml, also compressed; their text is extracted as `html` says."""

    reads_pages: ClassVar[bool] = True
    kind: str = "html"
    license: str = setting("???", _PAGE_LICENSE)


@dataclass
class ArchiveSource(CorpusSource):
    """Files of records of a crawl (ISO 28500), one record a gzip member or one after another."""

    damaged: Damaged = setting(
        Damaged.fail, "Fail at a damaged or truncated record, or skip to the next one and count it."
    )


@dataclass
class WARCSource(ArchiveSource):
    """Responses of a crawl, .warc or .warc.gz: pages of status 2xx; their text is extracted as `html` says."""

    reads_pages: ClassVar[bool] = True
    kind: str = "warc"
    license: str = setting("???", _PAGE_LICENSE)


@dataclass
class WETSource(ArchiveSource):
    """Texts that a crawl has extracted, .wet or .warc.wet.gz: its records of type conversion."""

    kind: str = "wet"


SOURCE_KINDS: dict[str, type[CorpusSource]] = {
    "text_files": FilesSource, "jsonl": JSONLinesSource, "csv": CSVSource, "tsv": TSVSource, "parquet": ParquetSource,
    "hugging_face": HuggingFaceSource, "html": HTMLSource, "warc": WARCSource, "wet": WETSource,
}  # fmt: skip


def _share(about: str) -> Any:
    return setting(None, f"{about}; null: any.", bounds="[0.0, 1.0]", example=0.2)


@dataclass
class GopherRules(Settings):
    """Rules of Gopher (Rae et al. 2021, https://arxiv.org/abs/2112.11446, section A.1.1 and table A1)."""

    prefix: ClassVar[str] = "rules.gopher."
    min_words: int | None = setting(
        None, "Fewest words, punctuation left out.", bounds="[0, inf)", unit="words", example=50
    )
    max_words: int | None = setting(None, "Most words.", bounds="[1, inf)", unit="words", example=100_000)
    min_word_length: float | None = setting(None, "Least mean length of a word.", bounds="[0.0, inf)", example=3)
    max_word_length: float | None = setting(None, "Greatest mean length of a word.", bounds="(0.0, inf)", example=10)
    max_hashes: float | None = setting(None, "Most # characters for each word.", bounds="[0.0, inf)", example=0.1)
    max_ellipses: float | None = setting(None, "Most ellipses for each word.", bounds="[0.0, inf)", example=0.1)
    max_bullet_lines: float | None = _share("Most lines that begin with a bullet")
    max_ellipsis_lines: float | None = _share("Most lines that end with an ellipsis")
    min_alphabetic_words: float | None = _share("Fewest words with a letter")
    min_stop_words: int | None = setting(None, "Fewest different stop words.", bounds="[0, inf)", example=2)
    max_duplicate_lines: float | None = _share("Most repeated lines")
    max_duplicate_paragraphs: float | None = _share("Most repeated paragraphs")
    max_duplicate_line_characters: float | None = _share("Most characters in repeated lines")
    max_duplicate_paragraph_characters: float | None = _share("Most characters in repeated paragraphs")
    max_top_2_gram: float | None = _share("Most characters in the commonest run of 2 words")
    max_top_3_gram: float | None = _share("Most characters in the commonest run of 3 words")
    max_top_4_gram: float | None = _share("Most characters in the commonest run of 4 words")
    max_repeated_5_grams: float | None = _share("Most characters in repeated runs of 5 words")
    max_repeated_6_grams: float | None = _share("Most characters in repeated runs of 6 words")
    max_repeated_7_grams: float | None = _share("Most characters in repeated runs of 7 words")
    max_repeated_8_grams: float | None = _share("Most characters in repeated runs of 8 words")
    max_repeated_9_grams: float | None = _share("Most characters in repeated runs of 9 words")
    max_repeated_10_grams: float | None = _share("Most characters in repeated runs of 10 words")


@dataclass
class C4Rules(Settings):
    """Rules of C4 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2); they also cut lines."""

    prefix: ClassVar[str] = "rules.c4."
    lines: bool = setting(False, "Write only lines that C4 keeps; without, its other rules count but change no text.")
    terminal_punctuation: bool = setting(True, "C4 keeps only lines that end with one of . ! ? and quotes.")
    min_words_per_line: int = setting(3, "Fewest words of a line that C4 keeps.", bounds="[0, inf)", unit="words")
    max_word_length: int = setting(1000, "C4 keeps no line with a longer word.", bounds="[1, inf)", unit="characters")
    min_sentences: int | None = setting(
        None, "Fewest sentences of the lines kept; null: any.", bounds="[0, inf)", unit="sentences", example=5
    )
    lorem_ipsum: bool = setting(False, "Remove texts with placeholder text.")
    curly_bracket: bool = setting(False, "Remove texts with a curly bracket, as code has.")


@dataclass
class FineWebRules(Settings):
    """Rules of FineWeb (Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6)."""

    prefix: ClassVar[str] = "rules.fineweb."
    min_line_ends: float | None = _share("Fewest lines that end a sentence")
    max_short_lines: float | None = _share("Most lines of 30 characters or fewer")
    max_repeated_line_characters: float | None = _share("Most characters in repeated lines")
    max_newlines: float | None = setting(None, "Most line ends for each word.", bounds="[0.0, inf)", example=0.3)


@dataclass
class RulesConfig(Settings):
    """Rules that remove documents; null: not applied."""

    prefix: ClassVar[str] = "rules."
    min_characters: int | None = setting(
        None, "Fewest characters of a document; null: any.", bounds="[0, inf)", unit="characters", example=150
    )
    gopher: GopherRules = field(default_factory=GopherRules)
    c4: C4Rules = field(default_factory=C4Rules)
    fineweb: FineWebRules = field(default_factory=FineWebRules)
    max_personal_data: int | None = setting(
        None, "Most pieces of personal data in a text; null: any.", bounds="[0, inf)", example=5
    )
    min_quality: float | None = setting(
        None, "Least quality score, of settings quality; null: any.", bounds="[0.0, 1.0]", example=0.5
    )
    min_bits_per_byte: float | None = setting(
        None, "Fewest bits per byte under quality.checkpoint; null: any.", bounds="[0.0, inf)", unit="bits per byte",
        example=0.3,
    )  # fmt: skip
    max_bits_per_byte: float | None = setting(
        None, "Most bits per byte under quality.checkpoint; null: any.", bounds="(0.0, inf)", unit="bits per byte",
        example=1.5,
    )  # fmt: skip
    max_toxicity: float | None = setting(
        None, "Greatest toxicity, of settings toxicity; null: any.", bounds="[0.0, 1.0]", example=0.5
    )
    by_language: bool = setting(
        False, "Take thresholds of each source's language from FineWeb-2 where the rule is applied."
    )


@dataclass
class LicensesConfig(Settings):
    """Licenses that documents may have."""

    prefix: ClassVar[str] = "licenses."
    allow: LicenseSet = setting(LicenseSet.any, "Licenses that are kept; each set holds those before it.")
    deny: list[str] = setting(default_factory=list, about="SPDX names that are removed although the set allows them.")
    unknown: Unknown = setting(Unknown.keep, "Keep or drop documents whose license is not known.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.deny:
            check_stated("licenses.deny", name)


@dataclass
class DuplicatesConfig(NearDuplicatesConfig):
    """Which duplicates are removed."""

    exact: bool = setting(True, "Remove all but one of equal texts.")
    near: bool = setting(True, "Remove texts that are nearly those of a kept one.")
    keep: Keep = setting(Keep.longest, "Which of several duplicates stays, within the largest priority.")


class Replacement(Enum):
    """What stands where personal data was."""

    placeholder = "placeholder"  # such as <EMAIL_ADDRESS>
    nothing = "nothing"


@dataclass
class PersonalDataConfig(Settings):
    """Personal data that is replaced in the texts that are written; rules.max_personal_data drops documents."""

    prefix: ClassVar[str] = "personal_data."
    kinds: list[str] = setting(default_factory=list, about=f"Kinds that are replaced: {', '.join(KINDS)}.")
    replacement: Replacement = setting(Replacement.placeholder, "What stands there then.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"personal_data.kinds=[{kind}] is no kind of personal data. {nearest(kind, KINDS)}")

    def record(self) -> dict[str, Any]:
        """Return how texts are changed, as plain JSON."""
        kinds = [kind for kind in KINDS if kind in self.kinds]
        return {"kinds": kinds, "replacement": self.replacement.value, "version": PERSONAL_DATA_VERSION}


@dataclass
class ValidationConfig(Settings):
    """The split that a training will make, for which the corpus is kept free of leaks."""

    prefix: ClassVar[str] = "validation."
    fraction: float = setting(
        0.05, "Share of the corpus that a training on it holds out: its data.validation_fraction.", bounds="[0.0, 1.0)"
    )
    guard: bool = setting(
        True, "Leave out documents that share a band with one of the other split, where a cluster cannot hold both."
    )


@dataclass
class CurationConfig(Settings):
    """Raw text to a corpus with a manifest."""

    output: str = setting("???", "The folder to write; its work/ folder holds what an interrupted run goes on with.")
    base: str | None = setting(
        None, "A curated corpus whose documents count as older, so that only what is new is written; null: none."
    )
    append: bool = setting(
        False,
        "Also put what is new after the base corpus's own documents, for runs that read it as a stream.",
    )
    sources: dict[str, Any] = setting(
        default_factory=dict, about="Sources by name: kind, path, license, and the kind's own settings."
    )
    rules: RulesConfig = field(default_factory=RulesConfig)
    licenses: LicensesConfig = field(default_factory=LicensesConfig)
    html: HTMLConfig = field(default_factory=HTMLConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    toxicity: ToxicityConfig = field(default_factory=ToxicityConfig)
    personal_data: PersonalDataConfig = field(default_factory=PersonalDataConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    forgotten: list[str] = setting(
        default_factory=list,
        about="Other corpora whose forgotten documents are left out too, beside those of output and base.",
    )
    samples_per_rule: int = setting(
        20, "Removed documents of each rule that are kept to look at.", bounds="[0, 1000]", unit="documents"
    )
    unit_bytes: int = setting(
        64_000_000, "Input that one task reads, about; 1 GB for more than 10 TB.", bounds="[1000, inf)", unit="bytes"
    )
    workers: int | None = setting(
        None, "Processes that work side by side; null: one for each core.", bounds="[1, 1024]", example=2
    )

    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.append and self.base is None:
            raise ConfigError(
                "append=true puts documents after those of a base corpus, and base=null names none. "
                "Try base=<the corpus that grows>."
            )

    def rules_of(self, source: str) -> RulesConfig:
        """Return the rules for one source; a command's settings know the presets that sources name."""
        return self.rules


def checked_sources(sources: dict[str, Any]) -> dict[str, CorpusSource]:
    """Return the sources; raises ConfigError if there are none."""
    if not sources:
        raise ConfigError(
            "sources names no source, and a corpus needs one. "
            "Try 'sources.web={kind: jsonl, path: pages.jsonl, license: unknown}'."
        )
    return sources
