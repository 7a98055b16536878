"""The rows that a run trains on, from what was prepared."""

from pretrain.data.config import DataConfig
from pretrain.data.mixture import MixedStream, mixed_stream
from pretrain.data.prepare import Prepared
from pretrain.data.streaming.dataset import StreamedRows


def training_rows(prepared: Prepared, config: DataConfig, row_length: int, seed: int) -> MixedStream | StreamedRows:
    """Return the stream of packed rows of `row_length` tokens; raises DataError where a source has none."""
    pad_id = prepared.tokenizer.padding_id
    if prepared.stream is None:
        return mixed_stream(prepared.train, config, row_length, pad_id, seed)
    return StreamedRows(prepared.stream, config, row_length, pad_id, seed)
