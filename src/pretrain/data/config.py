"""Settings of the data: where text comes from, how it becomes tokens, how tokens become rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError, DataError
from pretrain.files.object_storage import check_address, is_remote

if TYPE_CHECKING:
    from pretrain.data.sources.source import Source
    from pretrain.data.tokenizers.tokenizer import Tokenizer


class Packing(Enum):
    """How documents share rows of a fixed length."""

    best_fit = "best_fit"  # cut only documents longer than a row (Ding et al. 2024, https://arxiv.org/abs/2404.10830)
    concat = "concat"  # one long stream cut every row length
    whole = "whole"  # as best_fit; of a document longer than a row only its beginning is read


class Mode(Enum):
    """When text becomes tokens."""

    prepare = "prepare"  # all of it before the first step
    stream = "stream"  # while the run trains, an era at a time


class Format(Enum):
    """The format of a corpus's files."""

    auto = "auto"  # by each file's name and a look at its beginning
    text = "text"
    jsonl = "jsonl"  # one JSON object a line
    json = "json"  # one array of objects, or one object a line
    csv = "csv"  # a heading, then rows; fields may be quoted
    tsv = "tsv"
    parquet = "parquet"


@dataclass
class DataConfig(Settings):
    """Settings that all sources of text share; each adds where its documents are.

    A source of your own is a subclass with a `kind` and `open()`, which returns a `Source`: it reads the documents in
    an order that never changes, and has a fingerprint that changes whenever they do.
    """

    prefix: ClassVar[str] = "data."
    has_prompts: ClassVar[bool] = False  # documents begin with a prompt, `Document.prompt_characters`
    has_labels: ClassVar[bool] = False  # documents have a label, `Document.label`
    has_messages: ClassVar[bool] = False  # documents are conversations, `Document.messages`
    has_related: ClassVar[bool] = False  # documents are several texts that belong together or not, `Document.related`
    kind: str = "?"
    mode: Mode = setting(Mode.prepare, "Tokenize all of the text before the first step, or stream it during the run.")
    era_tokens: int = setting(
        16_777_216, "mode=stream: tokens of an era, which are tokenized before its first step and shuffled together.",
        bounds="[1024, inf)", unit="tokens",
    )  # fmt: skip
    packing: Packing = setting(Packing.best_fit, "How documents share rows of a fixed length.")
    document_mask: bool = setting(
        True, "Documents of one row do not attend to one another, and positions restart with each."
    )
    validation_fraction: float = setting(
        0.05, "Share of the documents (of a stream: of its first era) for validation, chosen by their hash.",
        bounds="[0.0, 1.0)",
    )  # fmt: skip
    max_validation_rows: int = setting(
        512, "Rows of each validation; 0: all of them.", bounds="[0, inf)", unit="rows", example=0
    )
    shard_tokens: int = setting(
        134_217_728, "Tokens in one file of the token store; 2^27 are 256 MiB at two bytes a token.",
        bounds="[1024, inf)", unit="tokens",
    )  # fmt: skip
    prefetch: int = setting(
        0, "Micro-batches that a thread prepares, and copies to a GPU, ahead of the step; 0: none, as fast on a CPU.",
        bounds="[0, 256]",
    )  # fmt: skip

    @property
    def annotated(self) -> bool:
        """Whether documents have prompts, labels, messages or related texts, for fine-tuning; they are never split."""
        return self.has_prompts or self.has_labels or self.has_messages or self.has_related

    @property
    def has_numbers(self) -> bool:
        """Whether the label of a document is a number, `Document.number`, instead of a class."""
        return False

    def open(self) -> Source:
        """Return the source of the documents, without reading them.

        Raises DataError if files that the settings name do not exist, ConfigError for settings of no source.
        """
        raise ConfigError(f"data.kind={self.kind} is not a source of text. Try data=python_docs.")

    def check_files(self) -> None:
        """Raise DataError if files on this machine that the settings name do not exist; nothing is read."""

    def is_local(self) -> bool:
        """Whether the documents are on this machine; if not, a plan does not look for them."""
        return True

    def known_characters(self) -> int | None:
        """Return about how many characters the documents have where a file says so without reading them, else None.

        Raises DataError if that file is missing or damaged.
        """
        return None

    def prompt_template(self) -> tuple[str, str] | None:
        """Return the text before and after each document's prompt; None without prompts."""
        return None

    def parts(self) -> dict[str, DataConfig]:
        """Return the settings of each source of text by its name; a single source has the name ""."""
        return {"": self}

    def by_setting(self) -> dict[str, DataConfig]:
        """Return these settings and those within them, as they are, each by its setting's full name."""
        return {"data": self}

    def weights(self, rows: Mapping[str, int]) -> dict[str, Fraction]:
        """Return the exact weight of each source in the rows drawn; `rows` are the rows that each source has."""
        return dict.fromkeys(rows, Fraction(1))


COMMON = frozenset(f.name for f in fields(DataConfig)) - {"kind"}  # settings that a mixture has once, for all sources


@dataclass
class PythonDocsConfig(DataConfig):
    """The English that every Python carries: its help topics and the docstrings of its standard library."""

    kind: str = "python_docs"

    def open(self) -> Source:
        from pretrain.data.sources.python_docs import PythonDocs

        return PythonDocs(self)


@dataclass
class TextFilesConfig(DataConfig):
    """Files on this machine: text, .jsonl, .json, .csv, .tsv or .parquet, also as .gz, .xz, .zst or .bz2."""

    kind: str = "text_files"
    path: str = setting("???", "A file, a folder (read recursively, in sorted order) or a glob pattern.")
    validation_path: str | None = setting(
        None, "A file, folder or pattern of validation documents, instead of validation_fraction."
    )
    text_column: str = setting("text", "Column of the text, in files that are not plain text.")
    separator: str | None = setting(
        None,
        r"Text between the documents of a plain text file; \n is any line end, \t a tab. null: a file is one document.",
    )
    format: Format = setting(Format.auto, "Format of the files; auto: by each file's name and its beginning.")

    def open(self) -> Source:
        from pretrain.data.sources.text_files import TextFiles

        return TextFiles(self)

    def check_files(self) -> None:
        self.open()


@dataclass
class HuggingFaceConfig(DataConfig):
    """A data set of the Hugging Face `datasets` library: a folder on this machine or a name on the hub."""

    kind: str = "hugging_face"
    path: str = setting(
        "???", "A folder (raw files or `save_to_disk`) or a hub name such as HuggingFaceFW/fineweb-edu."
    )
    subset: str | None = setting(None, "A configuration of the hub's data set, such as sample-10BT.")
    split: str = setting("train", "The split to train on.")
    validation_split: str | None = setting(None, "The split to validate on, instead of validation_fraction.")
    revision: str | None = setting(None, "A commit or tag of the hub's repository.")
    text_column: str = setting("text", "Column of the text.")
    max_documents: int = setting(
        0,
        "Read only the first documents, this many; 0: all.",
        bounds="[0, inf)",
        unit="documents",
        hint="which reads all",
    )

    def open(self) -> Source:
        from pretrain.data.sources.hugging_face import HuggingFace

        return HuggingFace(self)

    def is_local(self) -> bool:
        return Path(self.path).is_dir()


@dataclass
class CuratedOnly(Settings):
    """A part of a curated corpus: documents that have one of the values of each list that is not empty."""

    prefix: ClassVar[str] = "data.only."
    source: list[str] = setting(default_factory=list, about="Names of sources; empty: all.")
    license: list[str] = setting(default_factory=list, about="SPDX names of licenses, or unknown; empty: all.")
    language: list[str] = setting(default_factory=list, about="Languages as two letters; empty: all.")


@dataclass
class CuratedConfig(DataConfig):
    """A corpus that curate.py wrote: its manifest goes with the tokens, the checkpoints and the exported model."""

    kind: str = "curated"
    path: str = setting(
        "???", "The folder that curate.py wrote; also in an object storage, such as s3://bucket/corpus."
    )
    only: CuratedOnly = field(default_factory=CuratedOnly)
    growth_timeout_s: float | None = setting(
        None, "mode=stream: also read what is added later, until nothing was added for so long; null: nothing later.",
        bounds="(0.0, inf)", unit="seconds", example=86400,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_remote(self.path):
            check_address("data.path", self.path)
        if is_remote(self.path) and self.growth_timeout_s is not None:
            raise ConfigError(
                f"data.growth_timeout_s={self.growth_timeout_s:g} waits for what is added to a corpus, and data.path="
                f"{self.path} is copied once, before the first step. Try data.growth_timeout_s=null."
            )
        if self.growth_timeout_s is not None and self.mode is not Mode.stream:
            raise ConfigError(
                f"data.growth_timeout_s={self.growth_timeout_s:g} reads a corpus that grows, and data.mode="
                f"{self.mode.value} counts all rows before the first step. Try data.mode=stream."
            )

    def open(self) -> Source:
        from pretrain.data.sources.curated import Curated

        return Curated(self)

    def check_files(self) -> None:
        if self.is_local():
            self.open()

    def is_local(self) -> bool:
        return not is_remote(self.path)

    def known_characters(self) -> int | None:
        from pretrain.data.sources.curated import Curated

        return Curated(self).characters() if self.is_local() else None


@dataclass
class MixtureSource:
    """One source of a mixture: its text, and its part of the rows drawn."""

    prefix: ClassVar[str] = "data.sources.<name>."
    text: DataConfig
    weight: float | None = setting(
        None, "Part of the rows drawn, relative to the weights of the other sources.", bounds="(0.0, inf)", example=1
    )
    epochs: float | None = setting(
        None, "Times that the rows of this source are read, instead of a weight.", bounds="(0.0, inf)", example=1
    )
    validation_fraction: float | None = setting(
        None, "Share of this source's documents for validation; null: the mixture's."
    )

    def settings(self) -> dict[str, Any]:
        """Return the source as the mapping that a user writes, without the settings of the whole mixture."""
        own = {f.name: getattr(self.text, f.name) for f in fields(self.text) if f.name not in COMMON}
        given = {name: getattr(self, name) for name in ("weight", "epochs", "validation_fraction")}
        return own | {name: value for name, value in given.items() if value is not None}


@dataclass
class MixtureConfig(DataConfig):
    """Several sources, each with its exact share of the rows drawn; settings that all share are set once."""

    kind: str = "mixture"
    # config/mixture_sources.py makes a MixtureSource of each
    sources: dict[str, Any] = setting(
        default_factory=dict,
        about="Sources by name: kind, the kind's own settings, weight or epochs, and optionally validation_fraction.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is Mode.stream:
            raise ConfigError(
                "data.mode=stream reads one corpus, and data.kind=mixture has several, whose rows are counted before "
                "the first step. Try data.mode=prepare."
            )

    def parts(self) -> dict[str, DataConfig]:
        """Return the settings of each source by its name, with those of the whole mixture filled in."""
        common = {name: getattr(self, name) for name in COMMON}
        found = {}
        for name, source in self.sources.items():
            own = source.validation_fraction
            with errors_of(name):
                found[name] = replace(source.text, **common | ({} if own is None else {"validation_fraction": own}))
        return found

    def by_setting(self) -> dict[str, DataConfig]:
        within: dict[str, DataConfig] = {f"data.sources.{name}": each.text for name, each in self.sources.items()}
        return super().by_setting() | within

    def weights(self, rows: Mapping[str, int]) -> dict[str, Fraction]:
        """Return each source's `weight`, exact as it was written in decimals; or its epochs times its rows."""
        return {
            name: Fraction(str(source.weight)) if source.epochs is None else Fraction(str(source.epochs)) * rows[name]
            for name, source in self.sources.items()
        }


@contextmanager
def errors_of(source: str) -> Iterator[None]:
    """Rewrite errors to name a mixture source's settings as a user writes them: data.sources.<source>.path=..."""

    def in_mixture(setting: re.Match[str]) -> str:
        own = setting[1] not in COMMON or setting[1] == "validation_fraction"
        return f"data.sources.{source}.{setting[1]}=" if own else setting[0]

    try:
        yield
    except (ConfigError, DataError) as error:
        if not source:
            raise
        raise type(error)(re.sub(r"\bdata\.(\w+)=", in_mixture, str(error))) from error


@dataclass
class TokenizerConfig(Settings):
    """Settings that all tokenizers share.

    A tokenizer of your own is a subclass with a `kind` and `load()`; or with `trains = True` and `train()`, which
    learns from the training documents, once. Either returns a `Tokenizer` around any of the `tokenizers` library. Runs
    and checkpoints hold it as tokenizer.json, so that they are read without your package.
    """

    prefix: ClassVar[str] = "tokenizer."
    trains: ClassVar[bool] = False  # learned from the corpus, or comes with it
    kind: str = "?"

    def load(self) -> Tokenizer:
        """Return the tokenizer, which does not depend on the corpus; DataError if it cannot be read."""
        raise ConfigError(f"tokenizer.kind={self.kind} is not a tokenizer. Try tokenizer=bytes.")

    def train(self, texts: Iterator[str], report: Callable[[str], object]) -> Tokenizer:
        """Return the tokenizer learned from the texts, and always the same from the same texts.

        `report` takes lines of progress. Raises DataError if nothing can be learned from the texts.
        """
        raise ConfigError(f"tokenizer.kind={self.kind} cannot be trained. Try tokenizer=bpe.")

    def training_bytes(self) -> int | None:
        """Return the most UTF-8 of a stream to train on, its beginning; None: all of it."""
        return None

    def largest_vocabulary(self) -> int:
        """Return the size of the vocabulary, or of one that is not trained yet its largest; nothing is downloaded.

        Raises ConfigError where it is unknown.
        """
        if not self.trains:
            return self.load().vocab_size
        raise ConfigError(f"tokenizer.kind={self.kind} has no known vocabulary size. Set it: vocab_size=50257.")


@dataclass
class BytesTokenizerConfig(TokenizerConfig):
    """Every byte of the UTF-8 text is a token: nothing to train, 256 ids and the special ones."""

    kind: str = "bytes"

    def load(self) -> Tokenizer:
        from pretrain.data.tokenizers.train_bpe import byte_tokenizer

        return byte_tokenizer()


@dataclass
class BPETokenizerConfig(TokenizerConfig):
    """Byte-level byte-pair encoding trained on the data (Sennrich et al. 2016; Radford et al. 2019, section 2.2)."""

    trains: ClassVar[bool] = True
    kind: str = "bpe"
    vocab_size: int = setting(
        2048, "Size of the vocabulary, the 256 bytes and the special tokens included.", bounds="[260, 4294967296]",
        unit="tokens",
    )  # fmt: skip
    max_training_bytes: int = setting(
        100_000_000, "Text to train the tokenizer on, spread evenly over the corpus; of a stream, its beginning.",
        bounds="[1, inf)", unit="bytes",
    )  # fmt: skip

    def train(self, texts: Iterator[str], report: Callable[[str], object]) -> Tokenizer:
        from pretrain.data.tokenizers.train_bpe import subsample, train_bpe

        return train_bpe(subsample(texts, self.max_training_bytes), self.vocab_size, report)

    def training_bytes(self) -> int | None:
        return self.max_training_bytes

    def largest_vocabulary(self) -> int:
        return self.vocab_size


@dataclass
class PretrainedTokenizerConfig(TokenizerConfig):
    """A Hugging Face tokenizer: a folder (tokenizer.json, vocab.json + merges.txt or vocab.txt) or a hub name."""

    kind: str = "pretrained"
    path: str = setting("???", "A folder with the tokenizer's files, or a hub name.")
    revision: str | None = setting(None, "A commit or tag of the hub's repository.")
    mask_token: str | None = setting(
        None, "What hides text, where the tokenizer has no mask token: a token to add, or one of its unused added "
        "tokens.", example="[MASK]",
    )  # fmt: skip

    def load(self) -> Tokenizer:
        from pretrain.data.tokenizers.load import find_tokenizer
        from pretrain.data.tokenizers.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(find_tokenizer(self.path, self.revision))
        return tokenizer if self.mask_token is None else tokenizer.with_mask(self.mask_token)

    def largest_vocabulary(self) -> int:
        if Path(self.path).expanduser().is_dir():
            return self.load().vocab_size
        raise ConfigError(
            f"tokenizer.path={self.path} is not a folder here, and plan downloads nothing, so the vocabulary "
            "size is unknown. Set it: vocab_size=50257 (GPT-2)."
        )
