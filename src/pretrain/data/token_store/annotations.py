"""Annotations for fine-tuning: one whole number for each document, beside a store's shards.

prompt_tokens  the number of tokens of a document's prompt, BOS included; they are no targets
label          the index of its label in the manifest's list of labels
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.format import map_array
from pretrain.errors import DataError
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import read_record, shortened

PROMPT_TOKENS, LABEL = "prompt_tokens", "label"
FILE = "annotations.bin"  # little-endian u32, one a document, in the order of the documents

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Entry:
    kind: str
    labels: list[str]
    sha256: str


@dataclass(frozen=True)
class Annotations:
    """One number for each document of a store."""

    kind: str  # PROMPT_TOKENS or LABEL
    values: Ints  # (documents,)
    labels: tuple[str, ...] = ()  # by index

    def without_target(self, lengths: Ints, row_length: int) -> npt.NDArray[np.bool_]:
        """Return which documents have no target in a row that begins with them, bool (documents,).

        `lengths` (documents,) and `row_length` are in tokens. A document has none if its prompt fills the row, so that
        the token after the row's last one still belongs to the prompt. A label always is a target.
        """
        if self.kind != PROMPT_TOKENS:
            return np.zeros(len(lengths), np.bool_)
        return self.values > np.minimum(row_length, lengths - 1)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the numbers into a store's folder and return their entry in its manifest."""
        data = self.values.astype("<u4").tobytes()
        write_atomically(folder / FILE, data)
        return {"kind": self.kind, "labels": list(self.labels), "sha256": hashlib.sha256(data).hexdigest()}

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
        if entry.kind not in (PROMPT_TOKENS, LABEL):
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
        return Annotations(entry.kind, values.astype(np.int64), tuple(entry.labels))
