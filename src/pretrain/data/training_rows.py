"""The rows that a run trains on, from what was prepared."""

from pretrain.data.config import DataConfig
from pretrain.data.mixture import MixtureDataset, mixture_dataset
from pretrain.data.prepare import Prepared
from pretrain.data.streaming.dataset import StreamingDataset


def training_rows(
    prepared: Prepared, config: DataConfig, row_length: int, seed: int
) -> MixtureDataset | StreamingDataset:
    """Return the stream of packed rows of `row_length` tokens; raises DataError where a source has none."""
    pad_id = prepared.tokenizer.padding_id
    if prepared.stream is None:
        return mixture_dataset(prepared.train, config, row_length, pad_id, seed)
    return StreamingDataset(prepared.stream, config, row_length, pad_id, seed)
