"""Settings of the data: where text comes from, how it becomes tokens, how tokens become rows."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from fractions import Fraction
from typing import Any

from pretrain.errors import ConfigError, DataError


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
    """What the files of a corpus hold."""

    auto = "auto"  # by each file's name and a look at its beginning
    text = "text"
    jsonl = "jsonl"  # one JSON object a line
    json = "json"  # one array of objects, or one object a line
    csv = "csv"  # a heading, then rows; fields may be quoted
    tsv = "tsv"
    parquet = "parquet"


@dataclass
class DataConfig:
    """What every source of text has in common; a source adds where its documents are."""

    kind: str = "?"
    mode: Mode = Mode.prepare
    era_tokens: int = 16_777_216  # of a stream: so many are read before the first step, and shuffled together
    packing: Packing = Packing.best_fit
    document_mask: bool = True  # documents that share a row do not attend to one another; positions restart with each
    # of the documents (of a stream: of its first era), by their text's hash; of a few, one or the end of the longest
    validation_fraction: float = 0.05
    max_validation_rows: int = 512  # rows scored at each validation; 0 scores all of them
    shard_tokens: int = 134_217_728  # tokens in one file of the store (2^27: 256 MiB at two bytes a token)
    prefetch: int = 0  # micro-batches that a thread assembles ahead of the step; 0: none, as fast on a CPU

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} is not a share from 0 up to but not including 1. "
                "Try data.validation_fraction=0.05."
            )
        for name in ("max_validation_rows", "prefetch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}={getattr(self, name)} is negative. Try data.{name}=0.")
        for name, usual in (("shard_tokens", 134_217_728), ("era_tokens", 16_777_216)):
            if getattr(self, name) < 1024:
                raise ConfigError(f"data.{name}={getattr(self, name)} is below 1024. Try data.{name}={usual}.")

    def parts(self) -> dict[str, "DataConfig"]:
        """Return the settings of each source of text by its name; one that is read alone has the name ""."""
        return {"": self}

    def weights(self, rows: Mapping[str, int]) -> dict[str, Fraction]:
        """Return the weight of each source in the rows drawn, exact; `rows` are how many each source has."""
        return dict.fromkeys(rows, Fraction(1))


COMMON = frozenset(f.name for f in fields(DataConfig)) - {"kind"}  # settings that a mixture has once, for all sources


@dataclass
class PythonDocsConfig(DataConfig):
    """The English that every Python carries: its help topics and the docstrings of its standard library."""

    kind: str = "python_docs"


@dataclass
class TextFilesConfig(DataConfig):
    """Files on this machine: text, .jsonl, .json, .csv, .tsv or .parquet, also as .gz, .xz, .zst or .bz2."""

    kind: str = "text_files"
    path: str = "???"  # a file, a folder (read recursively, in sorted order) or a glob pattern
    validation_path: str | None = None  # a file, folder or pattern of its own instead of `validation_fraction`
    text_column: str = "text"  # of files that are not plain text
    # between the documents of a plain text file, \n being any line end and \t a tab; none: a file is one document
    separator: str | None = None
    format: Format = Format.auto  # text, jsonl, json, csv, tsv, parquet; auto: by each file's name and its beginning


@dataclass
class HuggingFaceConfig(DataConfig):
    """A data set of the Hugging Face `datasets` library: a folder on this machine or a name on the hub."""

    kind: str = "hugging_face"
    path: str = "???"  # a folder (raw files or `save_to_disk`) or a hub name such as HuggingFaceFW/fineweb-edu
    subset: str | None = None  # what the hub calls a configuration, such as sample-10BT
    split: str = "train"
    validation_split: str | None = None  # a split of its own instead of `validation_fraction`
    revision: str | None = None  # a commit or tag of the hub repository
    text_column: str = "text"
    max_documents: int = 0  # read only the first so many; 0 reads all of them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_documents < 0:
            raise ConfigError(f"data.max_documents={self.max_documents} is negative. Try data.max_documents=0 for all.")


@dataclass
class MixtureSource:
    """One source of a mixture: its text, and how much of it is read."""

    text: DataConfig
    weight: float | None = None  # its part of the rows drawn, relative to the other sources' weights
    epochs: float | None = None  # instead of `weight`: its part is its own rows so many times
    validation_fraction: float | None = None  # none given: the mixture's

    def settings(self) -> dict[str, Any]:
        """Return the one mapping in which these settings are written, without what belongs to the whole mixture."""
        own = {f.name: getattr(self.text, f.name) for f in fields(self.text) if f.name not in COMMON}
        given = {name: getattr(self, name) for name in ("weight", "epochs", "validation_fraction")}
        return own | {name: value for name, value in given.items() if value is not None}


@dataclass
class MixtureConfig(DataConfig):
    """Several sources, each with its exact share of the rows drawn. What sources have in common is set here for all."""

    kind: str = "mixture"
    # by name: the kind, that kind's own settings, weight or epochs, and where wanted a validation_fraction;
    # `config/mixture_sources.py` makes a MixtureSource of each
    sources: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is Mode.stream:
            raise ConfigError(
                "data.mode=stream reads one corpus, and data.kind=mixture has several, whose rows are counted before "
                "the first step. Try data.mode=prepare."
            )

    def parts(self) -> dict[str, DataConfig]:
        """Return the settings of each source by its name, what is common to all filled in."""
        common = {name: getattr(self, name) for name in COMMON}
        found = {}
        for name, source in self.sources.items():
            own = source.validation_fraction
            with errors_of(name):
                found[name] = replace(source.text, **common | ({} if own is None else {"validation_fraction": own}))
        return found

    def weights(self, rows: Mapping[str, int]) -> dict[str, Fraction]:
        """Return what each source's `weight` says, as it was written in decimals; or its epochs times its rows."""
        return {
            name: Fraction(str(source.weight)) if source.epochs is None else Fraction(str(source.epochs)) * rows[name]
            for name, source in self.sources.items()
        }


@contextmanager
def errors_of(source: str) -> Iterator[None]:
    """Have an error name settings of a mixture's source as they are written there: data.sources.<source>.path=..."""

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
class TokenizerConfig:
    """What every tokenizer has in common."""

    kind: str = "?"


@dataclass
class BytesTokenizerConfig(TokenizerConfig):
    """Every byte of the UTF-8 text is a token: nothing to train, 256 ids and the special ones."""

    kind: str = "bytes"


@dataclass
class BPETokenizerConfig(TokenizerConfig):
    """Byte-level byte-pair encoding trained on the data (Sennrich et al. 2016; Radford et al. 2019, section 2.2)."""

    kind: str = "bpe"
    vocab_size: int = 2048  # special tokens and the 256 bytes included
    max_training_bytes: int = 100_000_000  # learned from, spread evenly over the corpus; of a stream, its beginning

    def __post_init__(self) -> None:
        if not 260 <= self.vocab_size <= 4_294_967_296:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} cannot hold the 256 bytes and the special tokens. "
                "Try tokenizer.vocab_size=2048."
            )
        if self.max_training_bytes < 1:
            raise ConfigError(
                f"tokenizer.max_training_bytes={self.max_training_bytes} leaves nothing to learn from. "
                "Try tokenizer.max_training_bytes=100000000."
            )


@dataclass
class PretrainedTokenizerConfig(TokenizerConfig):
    """A Hugging Face tokenizer: a folder (tokenizer.json, vocab.json + merges.txt or vocab.txt) or a hub name."""

    kind: str = "pretrained"
    path: str = "???"
    revision: str | None = None
