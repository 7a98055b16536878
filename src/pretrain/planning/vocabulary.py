"""How many ids a run's tokenizer has, without training or fetching one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.config import BPETokenizerConfig, BytesTokenizerConfig, PretrainedTokenizerConfig, TokenizerConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError


@dataclass(frozen=True)
class PlannedVocabulary:
    """Stands in for a tokenizer where only its size matters; what objectives ask of one is there."""

    vocab_size: int
    mask_id: int = 0
    special_ids: frozenset[int] = frozenset()

    @property
    def word_starts(self) -> NDArray[np.bool_]:
        """Bool (vocab_size,): no token begins a word."""
        return np.zeros(self.vocab_size, dtype=np.bool_)


def vocab_size_of(config: TokenizerConfig) -> int:
    """Return the ids of the tokenizer that the settings describe; of one still to be trained, the most it can have.

    Raises ConfigError where only the files of the hub could tell.
    """
    if isinstance(config, BytesTokenizerConfig):
        from pretrain.data.tokenizers.train_bpe import byte_tokenizer

        return byte_tokenizer().vocab_size
    if isinstance(config, BPETokenizerConfig):
        return config.vocab_size
    if isinstance(config, PretrainedTokenizerConfig):
        folder = Path(config.path).expanduser()
        if folder.is_dir():
            return Tokenizer.load(folder).vocab_size
        raise ConfigError(
            f"tokenizer.path={config.path} is no folder here, and a plan fetches nothing, so the size of the "
            "vocabulary is not known. Give it: vocab_size=50257 (GPT-2)."
        )
    raise ConfigError(
        f"tokenizer.kind={config.kind} does not tell how many ids it has. Give the number: vocab_size=50257."
    )
