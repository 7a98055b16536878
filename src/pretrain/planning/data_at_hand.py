"""What is known of a run's text without reading any: only what an earlier run or prepare.py left in the cache."""

from dataclasses import dataclass
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.data.prepare import find_prepared
from pretrain.errors import DataError


@dataclass(frozen=True)
class DataAtHand:
    """A prepared corpus."""

    vocab_size: int  # of its tokenizer
    tokens: int | None  # to train on; none where the corpus is read while runs train


def data_at_hand(config: RunConfig) -> DataAtHand | None:
    """Return what the cache knows of a run's text; None where it has to be prepared first, or cannot be read here."""
    try:
        found = find_prepared(config.data, config.tokenizer, Path(config.paths.cache_dir))
    except DataError:  # a plan may be made where the text is not
        return None
    if found is None:
        return None
    stores = found.train
    return DataAtHand(found.tokenizer.vocab_size, sum(store.n_tokens for store in stores.values()) if stores else None)
