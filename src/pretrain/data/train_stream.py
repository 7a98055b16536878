"""The shuffled rows of a store, repeated without limit: a pure function of seed and sample index."""

import math
from dataclasses import dataclass, replace

import numpy as np

from pretrain.data.collate import IGNORE, Rows, read_rows
from pretrain.data.config import DataConfig
from pretrain.data.packing import documents_without_target, plan_rows
from pretrain.data.shuffle import Shuffle
from pretrain.data.token_store.store import Store
from pretrain.data.truncation import truncated
from pretrain.errors import DataError


class ShuffledRows:
    """Packed rows of a store in training order.

    Every row is read once per epoch, in another order each epoch. Without state: the row of a sample depends on the
    seed and the sample index alone.
    """

    def __init__(self, store: Store, config: DataConfig, row_length: int, pad_id: int, seed: int) -> None:
        self.store = store
        self.plan = plan_rows(store, config.packing, row_length, cache=store.folder / "plans")
        # (documents,) bool; None if every document has a target
        self.without_target = documents_without_target(store, row_length)
        if len(self.plan) == 0:
            raise DataError(f"the token store {store.folder} has {self._reason(row_length)}")
        self.order = Shuffle(len(self.plan), seed)
        self.pad_id = pad_id
        self.reset_positions = config.document_mask
        self.document_mask = config.document_mask
        self._truncates = config.has_labels or config.has_related  # several texts may be one document

    def __len__(self) -> int:
        """Return the number of rows in an epoch."""
        return len(self.plan)

    def _reason(self, row_length: int) -> str:
        """Return the end of the error message if there are no rows: the reason and a remedy."""
        if self.without_target is None:
            return "no tokens to read. Prepare it again, from text that has some."
        return (
            f"{self.store.n_documents:,} pairs whose prompts all fill the context of {row_length} tokens, so no token "
            f"of a response is a target. Try model.context_length={self.fitting_length()}, or shorter prompts."
        )

    def fitting_length(self) -> int:
        """Return the smallest row length at which every document has a target."""
        assert self.store.annotations is not None
        return int(self.store.annotations.values.max())

    def rows(self, sample_indices: np.ndarray) -> Rows:
        """Return the rows of these samples, (len(sample_indices), row_length)."""
        return self.read(self.order(sample_indices))

    def read(self, rows: np.ndarray) -> Rows:
        """Return rows of the plan by number, (len(rows), row_length)."""
        batch = read_rows(self.store, self.plan, rows, self.pad_id, self.reset_positions)
        for row in self._truncated_rows(rows) if self._truncates else ():
            self._truncate(batch, row, int(rows[row]))
        if self.document_mask:
            return batch
        return replace(batch, documents=np.minimum(batch.documents, 0))  # one document per row

    def truncated_documents(self) -> int:
        """Return the number of documents of several texts that are longer than a row, so that texts lose their ends."""
        return int((self.store.document_lengths() > self.plan.row_length).sum()) if self._truncates else 0

    def tokens_of(self, document: int, offset: int, length: int) -> np.ndarray:
        """Return the ids of a piece of a document, as they are read, (length,)."""
        ids = self.store.document(document)
        return truncated(ids, length) if self._truncates else ids[offset : offset + length]

    def _truncated_rows(self, rows: np.ndarray) -> list[int]:
        """Return which of these rows (B,) hold a document that is longer than they are."""
        counts, documents, _, _ = self.plan.pieces(rows)
        first = documents[np.cumsum(counts) - counts]
        bounds = self.store.document_bounds()
        return np.flatnonzero(bounds[first + 1] - bounds[first] > self.plan.row_length).tolist()

    def _truncate(self, batch: Rows, row: int, number: int) -> None:
        """Write a row's only document, truncated, over its beginning."""
        _, documents, offsets, lengths = self.plan.pieces(np.array([number]))
        ids = self.tokens_of(int(documents[0]), int(offsets[0]), int(lengths[0])).astype(np.int64)
        batch.tokens[row], batch.next_tokens[row] = self.pad_id, IGNORE
        batch.tokens[row, : len(ids)] = ids
        batch.next_tokens[row, : len(ids) - 1] = ids[1:]
        batch.documents[row, len(ids) :] = -1


def validation_rows(store: Store, config: DataConfig, row_length: int, pad_id: int) -> ShuffledRows | None:
    """Return the rows of a validation store in fixed order; None if no document has a target."""
    without_target = documents_without_target(store, row_length)
    if store.n_documents == 0 or (without_target is not None and without_target.all()):
        return None
    return ShuffledRows(store, config, row_length, pad_id, seed=0)


def bits_per_byte_of_a_nat(*stores: Store) -> float | None:
    """Return the factor from mean loss (nats per token) to bits per byte of the stores' text.

    The first token of a document is not predicted. None if documents have prompts or labels: their loss does not cover
    the full text.
    """
    if any(store.annotations is not None for store in stores):
        return None
    predicted = sum(store.n_tokens - store.n_documents for store in stores)
    return predicted / max(1, sum(store.text_bytes for store in stores)) / math.log(2)


@dataclass(frozen=True)
class RowOrigin:
    """The origin of a row: its source and its number there."""

    id: str  # the same in every epoch
    source: str  # name in a mixture, else ""; or "era <n>" of a streamed corpus
    stream: ShuffledRows
    row: int  # row number in `stream`

    def pieces(self) -> list[tuple[int, str, int, list[int]]]:
        """Return the pieces of the row: document index, document name, offset in the document, token ids."""
        _, documents, offsets, lengths = self.stream.plan.pieces(np.array([self.row]))
        store = self.stream.store
        pieces = []
        for document, offset, length in zip(documents.tolist(), offsets.tolist(), lengths.tolist(), strict=True):
            tokens = self.stream.tokens_of(document, offset, length).tolist()
            pieces.append((document, store.document_name(document), offset, tokens))
        return pieces
