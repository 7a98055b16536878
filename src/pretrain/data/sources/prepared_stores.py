"""A source that has tokens instead of text: finished token stores with their tokenizer."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain.data.config import DataConfig, TokenizerConfig
from pretrain.data.prepared_config import PreparedConfig, PreparedTokenizerConfig
from pretrain.data.sources.source import Document, Source
from pretrain.data.token_store.prepared_folder import check_there, read_prepared
from pretrain.data.token_store.store import Store
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, printable


class PreparedStores(Source):
    """Token stores that were prepared before; they are checked as they are read, as those of the cache are."""

    config: PreparedConfig

    def __init__(self, config: PreparedConfig) -> None:
        """Raise DataError for a folder that is unfinished or damaged, ConfigError for another split."""
        super().__init__(config)
        self.stores = self.folder = Path(config.path).expanduser()
        try:
            self.manifest = read_prepared(self.folder)
            check_there(self.folder, self.manifest)
            train = Store(self.folder / "train")
        except DataError as error:
            raise DataError(f"{self.origin()} cannot be read: {error} Copy or prepare it again.") from error
        if train.fingerprint != self.manifest.fingerprint:
            raise DataError(
                f"{self.origin()} is damaged: its training store is another than its manifest lists. Copy or prepare "
                "it again."
            )
        if train.annotations is not None:
            raise DataError(
                f"{self.origin()} has annotations for fine-tuning, and data.kind=prepared reads text for pre-training. "
                "Name the files with the annotations: data=pairs, data=chat, data=labeled or data=related."
            )
        self._check_split()

    def _check_split(self) -> None:
        """Raise ConfigError if the settings ask for another split than the one that was made."""
        held_out = any(entry.file.startswith("validation/") for entry in self.manifest.files)
        made, wanted = self.manifest.validation_fraction if held_out else 0.0, self.config.validation_fraction
        if wanted != made and not (held_out and wanted == DataConfig.validation_fraction):
            raise ConfigError(
                f"data.validation_fraction={wanted:g} is not the share that was held out when {self.origin()} was "
                f"prepared. Try data.validation_fraction={made:g}, or prepare the text again."
            )

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the stores."""
        return Tokenizer.load(self.folder / "tokenizer")

    def origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def fingerprint(self) -> str:
        return self.manifest.fingerprint[:32]

    def read(self, position: Any = None) -> Iterator[Document]:
        raise DataError(
            f"{self.origin()} has tokens and no text to read. Name the text that it was made of, such as "
            "data=text_files data.path=<folder>."
        )


def tokenizer_of(sources: Sequence[PreparedStores], config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer of all prepared sources; ConfigError if the settings or two sources have different ones."""
    first = sources[0]
    found = first.tokenizer()
    advice = "Try tokenizer=prepared, or leave tokenizer out."
    if not isinstance(config, PreparedTokenizerConfig):
        if config.trains:
            raise ConfigError(
                f"tokenizer.kind={config.kind} is learned from text, and {first.origin()} has tokens of a tokenizer "
                f"that comes with it. {advice}"
            )
        if config.load().fingerprint != found.fingerprint:
            raise ConfigError(
                f"tokenizer.kind={config.kind} is another tokenizer than the one that {first.origin()} was prepared "
                f"with, of {found.vocab_size:,} tokens. {advice}"
            )
    for other in sources[1:]:
        if other.manifest.tokenizer_fingerprint != found.fingerprint:
            raise ConfigError(
                f"{first.origin()} and {other.origin()} were prepared with different tokenizers, and a model has one. "
                "Prepare one of them again with the tokenizer of the other: tokenizer=pretrained tokenizer.path="
                f"{printable(str(first.folder / 'tokenizer'))}."
            )
    return found
