"""Settings of the data: where text comes from, how it becomes tokens, how tokens become rows."""

from dataclasses import dataclass
from enum import Enum

from pretrain.errors import ConfigError


class Packing(Enum):
    """How documents share rows of a fixed length."""

    best_fit = "best_fit"  # cut only documents longer than a row (Ding et al. 2024, https://arxiv.org/abs/2404.10830)
    concat = "concat"  # one long stream cut every row length


class Mode(Enum):
    """When text becomes tokens."""

    prepare = "prepare"  # all of it before the first step
    stream = "stream"  # while the run trains, an era at a time


@dataclass
class DataConfig:
    """What every source of text has in common; a source adds where its documents are."""

    kind: str = "?"
    mode: Mode = Mode.prepare
    era_tokens: int = 16_777_216  # of a stream: so many are read before the first step, and shuffled together
    packing: Packing = Packing.best_fit
    document_mask: bool = True  # documents that share a row do not attend to one another; positions restart with each
    validation_fraction: float = 0.05  # of the documents (of a stream: of its first era), chosen by their text's hash
    max_validation_rows: int = 512  # rows scored at each validation; 0 scores all of them
    shard_tokens: int = 134_217_728  # tokens in one file of the store (2^27: 256 MiB at two bytes a token)
    num_workers: int = 0  # processes that assemble batches; 0: the main process does, which is as fast

    def __post_init__(self) -> None:
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} is not a share from 0 up to but not including 1. "
                "Try data.validation_fraction=0.05."
            )
        for name in ("max_validation_rows", "num_workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}={getattr(self, name)} is negative. Try data.{name}=0.")
        for name, usual in (("shard_tokens", 134_217_728), ("era_tokens", 16_777_216)):
            if getattr(self, name) < 1024:
                raise ConfigError(f"data.{name}={getattr(self, name)} is below 1024. Try data.{name}={usual}.")


@dataclass
class PythonDocsConfig(DataConfig):
    """The English that every Python carries: its help topics and the docstrings of its standard library."""

    kind: str = "python_docs"


@dataclass
class TextFilesConfig(DataConfig):
    """Files on this machine: text, .jsonl or .parquet; .gz, .xz and .zst are read by suffix."""

    kind: str = "text_files"
    path: str = "???"  # a file, a folder (read recursively, in sorted order) or a glob pattern
    validation_path: str | None = None  # a file, folder or pattern of its own instead of `validation_fraction`
    text_column: str = "text"  # of .jsonl and .parquet files
    separator: str | None = None  # string between documents of a plain text file; none: a file is one document


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
