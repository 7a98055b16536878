"""Rows of a plan as arrays: tokens, what follows each, positions and documents."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.packing import Plan
from pretrain.data.token_store.annotations import LABEL, PROMPT_TOKENS
from pretrain.data.token_store.store import Store
from pretrain.errors import DataError

IGNORE = -100  # target id of a position without a target; the loss skips it
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """A batch of rows. Shapes: B rows, L tokens a row."""

    tokens: npt.NDArray[np.int64]  # (B, L) padding: pad_id
    next_tokens: npt.NDArray[np.int64]  # (B, L) what follows in the same document, even beyond a cut; else IGNORE,
    # and IGNORE where that is of a prompt, which is given
    positions: npt.NDArray[np.int64]  # (B, L) 0, 1, 2, ... within each piece, 0 in padding; or within the whole row
    documents: npt.NDArray[np.int32]  # (B, L) the piece's number within its row; padding: -1
    labels: npt.NDArray[np.int64] | None = None  # (B, L) of each token's document, IGNORE in padding; none: has none

    def __getitem__(self, rows: npt.NDArray[Any]) -> "Rows":
        """Return some of the rows, in the order asked for."""
        return Rows(*(None if values is None else values[rows] for values in self._arrays()))  # type: ignore[arg-type]

    @staticmethod
    def joined(parts: "Sequence[Rows]") -> "Rows":
        """Return the rows of all parts, one after another; either all of them have labels or none has."""
        each = zip(*(part._arrays() for part in parts), strict=True)
        return Rows(*(None if values[0] is None else np.concatenate(values) for values in each))  # type: ignore[arg-type]

    def _arrays(self) -> "list[npt.NDArray[Any] | None]":
        return [getattr(self, field.name) for field in fields(self)]


def read_rows(
    store: Store, plan: Plan, rows: npt.NDArray[np.integer], pad_id: int, reset_positions: bool = True
) -> Rows:
    """Return the given rows of a plan made from this store.

    With `reset_positions` every piece begins at position 0; without, positions count along the row.
    DataError when the plan does not fit the store, or the store turns out to be damaged here.
    """
    counts, documents, offsets, lengths = plan.pieces(rows)
    starts, whole = _locate(store, documents, offsets, lengths)
    shape, size = (len(rows), plan.row_length), len(rows) * plan.row_length
    spans = _spans(counts, lengths, plan.row_length)
    begins = spans.begins[spans.pieces]
    more = np.flatnonzero(offsets + lengths < whole)  # a token of the same document follows, in another row
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

    notes, labels = store.annotations, None
    if notes is not None and notes.kind == PROMPT_TOKENS:
        given = spans.of_pieces(notes.values[documents] - offsets, 0)
        following[spans.offsets() + 1 < spans.fill(given)] = IGNORE
    if notes is not None and notes.kind == LABEL:
        labels = spans.fill(spans.of_pieces(notes.values[documents], IGNORE))
    return Rows(
        tokens=tokens,
        next_tokens=following,
        positions=spans.offsets() if reset_positions else np.tile(np.arange(plan.row_length), (len(rows), 1)),
        documents=spans.fill(spans.number.astype(np.int32)),
        labels=labels,
    )


@dataclass(frozen=True)
class _Spans:
    """Rows, all end to end, as runs of tokens that are alike: of each row its pieces, then its padding, or none."""

    shape: tuple[int, int]
    pieces: Ints  # (pieces,) the span of each piece
    begins: Ints  # (spans,) index of its first token
    lengths: Ints  # (spans,)
    number: Ints  # (spans,) within its row; -1 of padding
    padding: list[slice]  # the padding of each row that has any

    def fill(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what each token's span has, (B, L)."""
        return np.repeat(values, self.lengths).reshape(self.shape)

    def of_pieces(self, values: npt.NDArray[Any], padding: int) -> Ints:
        """Return a value for each span from one for each piece."""
        found = np.full(len(self.lengths), padding, np.int64)
        found[self.pieces] = values
        return found

    def offsets(self) -> Ints:
        """Return each token's position within its piece, 0 in padding, (B, L)."""
        found = np.arange(self.shape[0] * self.shape[1])
        found -= np.repeat(self.begins, self.lengths)
        for gap in self.padding:
            found[gap] = 0
        return found.reshape(self.shape)


def _spans(counts: Ints, lengths: npt.NDArray[np.int32], row_length: int) -> _Spans:
    """Return the spans of rows that have so many pieces, 1 or more, of these lengths."""
    rows = np.arange(len(counts))
    row, ends = np.repeat(rows, counts), np.cumsum(counts)
    pieces = np.arange(len(row)) + row  # before it stands the padding of the rows above
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
    """Return each piece's global offset in the store, and the tokens of the whole document it is of."""
    bounds = store.document_bounds()
    if documents.size and documents.max() >= store.n_documents:
        raise DataError(f"The plan asks for document {documents.max()}, but {store.folder} has {store.n_documents}.")
    first, whole = bounds[documents], bounds[documents + 1] - bounds[documents]
    beyond = lengths > whole - offsets
    if beyond.any():
        at = int(np.argmax(beyond))
        raise DataError(
            f"The plan asks for tokens {offsets[at]} to {offsets[at] + lengths[at]} of document {documents[at]}, "
            f"but in {store.folder} it has {whole[at]}."
        )
    return first + offsets, whole
