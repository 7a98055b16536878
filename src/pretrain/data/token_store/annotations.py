"""Annotations for fine-tuning: one whole number for each document, beside a store's shards.

prompt_tokens  the number of tokens of a document's prompt, BOS included; they are no targets
first_text     the number of tokens of the first of several texts, all of which are read
turns          the number of tokens before the first target of a conversation; targets.bin has all of its targets
label          the index of its label in the manifest's list of labels
number         the bits of a float32, little-endian as the file: a number that is predicted from the text
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.format import map_array
from pretrain.errors import DataError
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import read_record, shortened

PROMPT_TOKENS, FIRST_TEXT, LABEL, TURNS, NUMBER = "prompt_tokens", "first_text", "label", "turns", "number"
# little-endian u32: the number of spans of each document, then first token and end of each span, in order
TARGETS = "targets.bin"
FILE = "annotations.bin"  # little-endian u32, one a document, in the order of the documents

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Entry:
    kind: str
    labels: list[str]
    sha256: str
    targets_sha256: str = ""


@dataclass(frozen=True)
class TargetSpans:
    """The tokens of each document that are targets, as spans of tokens."""

    counts: Ints  # (documents,)
    spans: Ints  # (spans, 2) first token and the one after the last, within the document

    @cached_property
    def _ends(self) -> Ints:
        return np.cumsum(self.counts)

    def of(self, document: int) -> list[list[int]]:
        """Return the spans of a document."""
        end = int(self._ends[document])
        spans: list[list[int]] = self.spans[end - int(self.counts[document]) : end].tolist()
        return spans

    @staticmethod
    def of_documents(spans: Sequence[Sequence[tuple[int, int]]]) -> "TargetSpans":
        """Return the spans of documents, each given as a list."""
        flat = [span for each in spans for span in each]
        return TargetSpans(np.array([len(each) for each in spans], np.int64), np.array(flat, np.int64).reshape(-1, 2))

    def save(self, folder: Path) -> str:
        """Write targets.bin into a store's folder and return its sha256."""
        data = np.concatenate([self.counts, self.spans.ravel()]).astype("<u4").tobytes()
        write_atomically(folder / TARGETS, data)
        return hashlib.sha256(data).hexdigest()

    @staticmethod
    def load(path: Path, n_documents: int, sha256: str) -> "TargetSpans":
        """Return the spans of a file; DataError unless its sha256 is this one and its spans are in order."""
        size = path.stat().st_size if path.is_file() else 0
        values = map_array(path, "<u4", size // 4) if size >= 4 * n_documents and size % 4 == 0 else np.zeros(0, "<u4")
        if hashlib.sha256(values.data).hexdigest() != sha256:
            raise DataError(f"{path} is damaged: its sha256 is not the one in the store's manifest.")
        counts, flat = values[:n_documents].astype(np.int64), values[n_documents:].astype(np.int64)
        if len(flat) != 2 * counts.sum() or (flat[::2] >= flat[1::2]).any():
            raise DataError(f"{path} is damaged: its spans are not those of {n_documents} documents.")
        return TargetSpans(counts, flat.reshape(-1, 2))


@dataclass(frozen=True)
class Annotations:
    """One number for each document of a store."""

    kind: str  # PROMPT_TOKENS, FIRST_TEXT, LABEL, TURNS or NUMBER
    values: Ints  # (documents,)
    labels: tuple[str, ...] = ()  # by index
    targets: TargetSpans | None = None  # of TURNS

    def without_target(self, lengths: Ints, row_length: int) -> npt.NDArray[np.bool_]:
        """Return which documents have no target in a row that begins with them, bool (documents,).

        `lengths` (documents,) and `row_length` are in tokens. A document has none if its prompt fills the row, so that
        the token after the row's last one still belongs to the prompt. A label or number always is a target, and
        texts that belong together are truncated one by one.
        """
        if self.kind in (FIRST_TEXT, LABEL, NUMBER):
            return np.zeros(len(lengths), np.bool_)
        return self.values > np.minimum(row_length, lengths - 1)

    def shown(self, document: int) -> str:
        """Return the label or number of a document as text."""
        value = self.values[document]
        return self.labels[value] if self.kind == LABEL else f"{value.astype(np.uint32).view(np.float32):g}"

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the numbers into a store's folder and return their entry in its manifest."""
        data = self.values.astype("<u4").tobytes()
        write_atomically(folder / FILE, data)
        entry = {"kind": self.kind, "labels": list(self.labels), "sha256": hashlib.sha256(data).hexdigest()}
        return entry if self.targets is None else entry | {"targets_sha256": self.targets.save(folder)}

    @staticmethod
    def load(folder: Path, manifest: dict[str, Any]) -> "Annotations | None":
        """Return the annotations of a store, checked against its manifest; None if that lists none.

        Raises DataError if they are missing, damaged, or impossible for such documents.
        """
        value = manifest.get("annotations")
        if value is None:
            return None
        try:
            entry = read_record(_Entry, value, "annotations")
        except ValueError as error:
            raise DataError(f"{folder / 'manifest.json'}: {error}.") from error
        if entry.kind not in (PROMPT_TOKENS, FIRST_TEXT, LABEL, TURNS, NUMBER):
            raise DataError(f"{folder / 'manifest.json'} has annotations of the unknown kind {shortened(entry.kind)}.")
        path, count = folder / FILE, manifest["n_documents"]
        size = path.stat().st_size if path.is_file() else 0
        if size != 4 * count:
            raise DataError(f"{path} has {size} bytes, but {4 * count} in the store's manifest.")
        values = map_array(path, "<u4", count)
        if hashlib.sha256(values.data).hexdigest() != entry.sha256:
            raise DataError(f"{path} is damaged: its sha256 is not the one in the store's manifest.")
        if entry.kind == LABEL and values.max(initial=0) >= len(entry.labels):
            raise DataError(f"{path} has a label {values.max()}, but the store has {len(entry.labels)} labels.")
        if entry.kind == NUMBER and not np.isfinite(values.view("<f4")).all():
            raise DataError(f"{path} is damaged: it has a number that is not finite.")
        targets = TargetSpans.load(folder / TARGETS, count, entry.targets_sha256) if entry.kind == TURNS else None
        return Annotations(entry.kind, values.astype(np.int64), tuple(entry.labels), targets)
