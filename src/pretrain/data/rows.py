"""Rows of a plan as arrays: tokens, what follows each, positions and documents."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.annotations import LABEL, PROMPT_TOKENS
from pretrain.data.packing import Plan
from pretrain.data.store import Store
from pretrain.errors import DataError

IGNORE = -100  # in the place of a target: nothing is to be predicted here

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
    more = offsets + lengths < whole  # a token of the same document follows, in another row
    source = np.append(store.read(starts, lengths + more), IGNORE)

    before = np.cumsum(lengths) - lengths  # tokens in earlier pieces
    piece = np.repeat(np.arange(len(lengths)), lengths)  # of each token
    token = np.arange(len(piece))
    at = token + (np.cumsum(more) - more)[piece]  # in `source`, where a cut piece has one token more
    following = source[at + 1]
    following[(before + lengths)[~more] - 1] = IGNORE

    notes = store.annotations
    if notes is not None and notes.kind == PROMPT_TOKENS:
        next_offset = offsets[piece] + token - before[piece] + 1
        following[next_offset < notes.values[documents][piece]] = IGNORE

    length = plan.row_length
    used = np.bincount(np.repeat(np.arange(len(rows)), counts), weights=lengths, minlength=len(rows))
    filled = np.arange(length) < used[:, None]  # (B, L); row after row, exactly the tokens in their order
    number = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each piece within its row
    positions = _fill(filled, token - before[piece], 0)
    if not reset_positions:
        positions[:] = np.arange(length)
    return Rows(
        tokens=_fill(filled, source[at], pad_id),
        next_tokens=_fill(filled, following, IGNORE),
        positions=positions,
        documents=_fill(filled, number[piece], -1).astype(np.int32),
        labels=_fill(filled, notes.values[documents][piece], IGNORE) if notes and notes.kind == LABEL else None,
    )


def _fill(filled: npt.NDArray[np.bool_], values: Ints, padding: int) -> Ints:
    """Return an array of the shape of `filled` with `values` where it is true and `padding` elsewhere."""
    out = np.full(filled.shape, padding, np.int64)
    out[filled] = values
    return out


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
