"""What the documents of a store carry beside their tokens: one whole number each, in a file of its own.

prompt_tokens  how many tokens a document begins with that are given and not to be predicted, BOS included
label          the number of its label, in the list of labels that the manifest has
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.token_store.format import map_array, write_atomically
from pretrain.errors import DataError
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
    labels: tuple[str, ...] = ()  # by their numbers

    def without_target(self, lengths: Ints, row_length: int) -> npt.NDArray[np.bool_]:
        """Return which documents have nothing to predict in a row of `row_length` tokens that begins with them.

        `lengths` (documents,) are their tokens. It is so where the prompt fills the row: the token after the row's last
        one is still of the prompt. A text with a label always has its label to predict.
        """
        if self.kind != PROMPT_TOKENS:
            return np.zeros(len(lengths), np.bool_)
        return self.values > np.minimum(row_length, lengths - 1)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the numbers into a store's folder and return what its manifest says of them."""
        data = self.values.astype("<u4").tobytes()
        write_atomically(folder / FILE, data)
        return {"kind": self.kind, "labels": list(self.labels), "sha256": hashlib.sha256(data).hexdigest()}

    @staticmethod
    def load(folder: Path, manifest: dict[str, Any]) -> "Annotations | None":
        """Return the annotations of a store, compared with its manifest; None where that lists none.

        DataError where they are missing, damaged, or no numbers that such documents can have.
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
        found = path.stat().st_size if path.is_file() else 0
        if found != 4 * count:
            raise DataError(f"{path} has {found} bytes, but by the store's manifest it has {4 * count}.")
        values = map_array(path, "<u4", count)
        if hashlib.sha256(values.data).hexdigest() != entry.sha256:
            raise DataError(f"{path} is not as it was written: its sha256 is not the one in the store's manifest.")
        if entry.kind == LABEL and values.max(initial=0) >= len(entry.labels):
            raise DataError(f"{path} has a label {values.max()}, but the store has {len(entry.labels)} labels.")
        return Annotations(entry.kind, values.astype(np.int64), tuple(entry.labels))
