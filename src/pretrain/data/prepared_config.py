"""Settings of tokens that were prepared before, perhaps elsewhere, and of the tokenizer that comes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import setting
from pretrain.data.config import DataConfig, Mode, TokenizerConfig
from pretrain.errors import ConfigError
from pretrain.files.object_storage import check_address, is_remote

if TYPE_CHECKING:
    from pretrain.data.sources.source import Source
    from pretrain.data.tokenizers.tokenizer import Tokenizer


@dataclass
class PreparedConfig(DataConfig):
    """Token stores that `prepare.py output=...` wrote, with their tokenizer: nothing is tokenized.

    The split into training and validation is that of the stores.
    """

    kind: str = "prepared"
    path: str = setting(
        "???", "The folder that prepare.py wrote; also in an object storage, such as s3://bucket/my_store."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_remote(self.path):
            check_address("data.path", self.path)
        if self.mode is Mode.stream:
            raise ConfigError(
                "data.mode=stream tokenizes text while the run trains, and data.kind=prepared has all of its tokens. "
                "Try data.mode=prepare."
            )

    def open(self) -> Source:
        from pretrain.data.sources.prepared_stores import PreparedStores

        return PreparedStores(self)

    def check_files(self) -> None:
        if self.is_local():
            self.open()

    def is_local(self) -> bool:
        return not is_remote(self.path)


@dataclass
class PreparedTokenizerConfig(TokenizerConfig):
    """The tokenizer of the stores of data=prepared, or of the sources of that kind in a mixture."""

    trains: ClassVar[bool] = True  # it comes from the corpus
    kind: str = "prepared"

    def train(self, texts: Iterator[str], report: Callable[[str], object]) -> Tokenizer:
        raise ConfigError(
            "tokenizer.kind=prepared is the tokenizer of prepared token stores, and no source of the data has any. "
            "Try tokenizer=bpe, or data=prepared data.path=<folder>."
        )

    def largest_vocabulary(self) -> int:
        raise ConfigError(
            "tokenizer.kind=prepared is read from data.path, and no whole token stores are there on this machine, so "
            "the size of the vocabulary is unknown. Set it: vocab_size=50257 (GPT-2), or name a folder that "
            "prepare.py wrote with output=<folder>."
        )
