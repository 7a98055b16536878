"""Read rows of a plan as arrays: tokens, next tokens, positions, documents, labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.packing import Plan
from pretrain.data.token_store.annotations import LABEL, NUMBER, PROMPT_TOKENS, TargetSpans
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError

IGNORE = -100  # target id of a position without a target; the loss skips it
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """A batch of rows. Shapes: B rows, L tokens a row."""

    tokens: npt.NDArray[np.int64]  # (B, L) ids; padding: pad_id
    # (B, L) the next token of the same document, even if it is in another row; IGNORE at the end of a document, in
    # padding, and where the next token is part of a prompt
    next_tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]  # (B, L) 0, 1, 2, ... within each piece, 0 in padding; or within the row
    documents: npt.NDArray[np.int32]  # (B, L) index of the piece within its row; padding: -1
    labels: npt.NDArray[np.int64] | None = None  # (B, L) label of each token's document, IGNORE in padding
    numbers: npt.NDArray[np.float32] | None = None  # (B, L) number of each token's document, 0 in padding

    def __getitem__(self, rows: npt.NDArray[Any]) -> "Rows":
        """Return the rows that a numpy index selects, in its order."""
        return Rows(*(None if values is None else values[rows] for values in self._arrays()))  # type: ignore[arg-type]

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """Concatenate the rows of all parts; either all parts have labels, or none."""
        columns = zip(*(part._arrays() for part in parts), strict=True)
        return Rows(*(None if values[0] is None else np.concatenate(values) for values in columns))  # type: ignore[arg-type]

    def _arrays(self) -> "list[npt.NDArray[Any] | None]":
        return [getattr(self, field.name) for field in fields(self)]


def read_rows(
    store: Store, plan: Plan, rows: npt.NDArray[np.integer], pad_id: int, reset_positions: bool = True
) -> Rows:
    """Return the rows (B,) of a plan made from this store, padded to L tokens with `pad_id`.

    With `reset_positions` positions start at 0 in each piece, without it at 0 in each row.
    Raises DataError if the plan does not fit the store, or the store is damaged where it is read.
    """
    counts, documents, offsets, lengths = plan.pieces(rows)
    starts, document_lengths = _locate(store, documents, offsets, lengths)
    shape, size = (len(rows), plan.row_length), len(rows) * plan.row_length
    spans = _spans(counts, lengths, plan.row_length)
    begins = spans.begins[spans.pieces]
    more = np.flatnonzero(offsets + lengths < document_lengths)  # pieces that another row continues
    source = np.empty(size + len(more), np.int64)
    following = np.empty(size, np.int64)
    for gap in spans.padding:
        source[gap] = pad_id
    store.read_into(
        source,
        np.concatenate([begins, np.arange(size, len(source))]),
        np.concatenate([starts, (starts + lengths)[more]]),
        np.concatenate([lengths, np.ones_like(more)]),
    )
    following[:-1] = source[1:size]
    last = begins + lengths - 1
    following[last] = IGNORE
    following[last[more]] = source[size:]
    for gap in spans.padding:
        following[gap] = IGNORE
    tokens, following = source[:size].reshape(shape), following.reshape(shape)

    annotations, labels, numbers = store.annotations, None, None
    if annotations is not None and annotations.kind == PROMPT_TOKENS:
        prompt_lengths = spans.of_pieces(annotations.values[documents] - offsets, 0)
        following[spans.offsets() + 1 < spans.fill(prompt_lengths)] = IGNORE
    if annotations is not None and annotations.targets is not None:
        pieces = zip(begins.tolist(), documents.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        following[~_has_target(annotations.targets, pieces, size).reshape(shape)] = IGNORE
    if annotations is not None and annotations.kind == LABEL:
        labels = spans.fill(spans.of_pieces(annotations.values[documents], IGNORE))
    if annotations is not None and annotations.kind == NUMBER:
        numbers = spans.fill(spans.of_pieces(annotations.values[documents], 0).astype(np.uint32)).view(np.float32)
    return Rows(
        tokens=tokens,
        next_tokens=following,
        positions=spans.offsets() if reset_positions else np.tile(np.arange(plan.row_length), (len(rows), 1)),
        documents=spans.fill(spans.number.astype(np.int32)),
        labels=labels,
        numbers=numbers,
    )


def _has_target(targets: TargetSpans, pieces: Iterable[tuple[int, int, int, int]], size: int) -> npt.NDArray[np.bool_]:
    """Return which tokens are followed by a target, bool (size,).

    `pieces` have the position of the first token, the document, and the piece's offset and length in it.
    """
    found = np.zeros(size, np.bool_)
    for begin, document, offset, length in pieces:
        for first, end in targets.of(document):  # the token before a target predicts it
            found[begin + max(0, first - 1 - offset) : begin + max(0, min(end - 1 - offset, length))] = True
    return found


@dataclass(frozen=True)
class _Spans:
    """The flattened rows as spans: the pieces of each row, then its padding, which may be empty."""

    shape: tuple[int, int]
    pieces: Ints  # (pieces,) index of each piece's span
    begins: Ints  # (spans,) index of the first token
    lengths: Ints  # (spans,)
    number: Ints  # (spans,) index of the piece within its row; padding: -1
    padding: list[slice]  # the padding of each row that has any

    def fill(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `values` (spans,) repeated for each token, (B, L)."""
        return np.repeat(values, self.lengths).reshape(self.shape)

    def of_pieces(self, values: npt.NDArray[Any], padding: int) -> Ints:
        """Return values (spans,) from `values` (pieces,), with `padding` for spans of padding."""
        by_span = np.full(len(self.lengths), padding, np.int64)
        by_span[self.pieces] = values
        return by_span

    def offsets(self) -> Ints:
        """Return each token's position within its piece, 0 in padding, (B, L)."""
        offsets = np.arange(self.shape[0] * self.shape[1])
        offsets -= np.repeat(self.begins, self.lengths)
        for gap in self.padding:
            offsets[gap] = 0
        return offsets.reshape(self.shape)


def _spans(counts: Ints, lengths: npt.NDArray[np.int32], row_length: int) -> _Spans:
    """Return the spans of rows with `counts` (rows,) pieces each, at least 1, of `lengths` (pieces,) tokens."""
    rows = np.arange(len(counts))
    row, ends = np.repeat(rows, counts), np.cumsum(counts)
    pieces = np.arange(len(row)) + row  # skips one span of padding for each earlier row
    firsts = ends - counts
    used = np.add.reduceat(lengths, firsts)
    size = np.empty(len(row) + len(counts), np.int64)
    size[pieces] = lengths
    size[ends + rows] = row_length - used
    number = np.full(len(size), -1)
    number[pieces] = np.arange(len(row)) - firsts[row]
    gaps = np.flatnonzero(used < row_length).tolist()
    padding = [slice(gap * row_length + int(used[gap]), (gap + 1) * row_length) for gap in gaps]
    return _Spans((len(counts), row_length), pieces, np.cumsum(size) - size, size, number, padding)


def _locate(store: Store, documents: Ints, offsets: Ints, lengths: npt.NDArray[np.int32]) -> tuple[Ints, Ints]:
    """Return each piece's start in the store, and its document's length, both in tokens (pieces,)."""
    bounds = store.document_bounds()
    if documents.size and documents.max() >= store.n_documents:
        raise DataError(
            f"The plan has document {documents.max()}, but {store.folder} has {store.n_documents} documents."
        )
    first, document_lengths = bounds[documents], bounds[documents + 1] - bounds[documents]
    beyond = lengths > document_lengths - offsets
    if beyond.any():
        piece = int(np.argmax(beyond))
        raise DataError(
            f"The plan has tokens {offsets[piece]} to {offsets[piece] + lengths[piece]} of document "
            f"{documents[piece]}, but in {store.folder} it has {document_lengths[piece]}."
        )
    return first + offsets, document_lengths
