"""Exact repeats of long paragraphs: cut everywhere but at their first occurrence.

Three stages, as for exact duplicates: paragraphs of a unit by partition, repeats of a partition by unit, and the cut.
They come after near-duplicates, over the documents that are kept: the first occurrence of a paragraph then stays.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pretrain.data.curation.near_duplicates.shingles import Ints
from pretrain.data.curation.near_duplicates.shuffle_files import (
    Rows,
    partitions_of_keys,
    read_partition,
    write_rows,
)

PARAGRAPHS_VERSION = 1  # increase when what is cut changes

PARAGRAPH = np.dtype(
    [
        ("hash", "<u8", (2,)),  # of 128 bits, upper and lower half
        ("document", "<u8"),  # it and the next four decide the canonical order, as in `verification.MEMBER`
        ("base", "?"),
        ("priority", "<i8"),
        ("preference", "<i8"),
        ("id", "<u8", (2,)),
        ("unit", "<u4"),
        ("index", "<u4"),  # of the paragraph in its document
    ]
)
REPEAT = np.dtype([("document", "<u8"), ("index", "<u4")])


@dataclass(frozen=True)
class _Paragraph:
    """A paragraph of a text, with the line breaks after it."""

    first: int
    end: int  # of the paragraph
    last: int  # of the line breaks after it


def _paragraphs(text: str) -> list[_Paragraph]:
    """Return the paragraphs: what blank lines divide; in a text without blank lines, what line breaks divide."""
    pattern = r"\n[^\S\n]*(?:\n[^\S\n]*)+" if re.search(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S", text) else r"\n"
    positions, first = [], 0
    for found in re.finditer(pattern, text):
        positions.append(_Paragraph(first, found.start(), found.end()))
        first = found.end()
    return [*positions, _Paragraph(first, len(text), len(text))]


def paragraph_rows(member: Rows, text: str, characters: int, unit: int) -> Rows:
    """Return a row of `PARAGRAPH` for each paragraph of a document with `characters` or more, outer spaces left out.

    `member` is one row of dtype MEMBER.
    """
    found = []
    for index, position in enumerate(_paragraphs(text)):
        words = text[position.first : position.end].strip()
        if len(words) >= characters:
            found.append((index, xxhash.xxh3_128_intdigest(words.encode("utf8", "surrogatepass"))))
    rows = np.empty(len(found), PARAGRAPH)
    for name in ("document", "base", "priority", "preference", "id"):
        rows[name] = member[name]
    rows["unit"], rows["index"] = unit, [index for index, _ in found]
    rows["hash"] = np.array([divmod(digest, 1 << 64) for _, digest in found], np.uint64).reshape(-1, 2)
    return rows


def shuffle_paragraphs(rows: Rows, output: Path, partitions: int) -> None:
    """Write the paragraphs of a unit for `partitions` partitions."""
    write_rows(output, rows, partitions_of_keys(rows["hash"][:, 0], partitions), partitions)


def repeats(rows: Rows) -> Rows:
    """Return the rows that repeat a paragraph, in canonical order of the documents; those of the base corpus are not.

    The first occurrence is in the first document of the canonical order, so the result depends on no order of input.
    """
    by = (
        rows["index"],
        rows["document"],
        rows["id"][:, 1],
        rows["id"][:, 0],
        -rows["preference"],
        -rows["priority"],
        ~rows["base"],
        rows["hash"][:, 1],
        rows["hash"][:, 0],
    )
    rows = rows[np.lexsort(by)]
    same = (rows["hash"][1:] == rows["hash"][:-1]).all(axis=1)
    found = rows[1:][same]
    return found[~found["base"]]


def find_repeats(paragraphs: Sequence[Path], partition: int, output: Path, units: int) -> None:
    """Write the repeats of a partition for the units."""
    found = repeats(read_partition(paragraphs, partition, PARAGRAPH))
    rows = np.empty(len(found), REPEAT)
    rows["document"], rows["index"] = found["document"], found["index"]
    write_rows(output, rows, found["unit"].astype(np.int64), units)


def repeats_of(outputs: Sequence[Path], unit: int) -> dict[int, Ints]:
    """Return the paragraphs to cut from each document of a unit, by its number."""
    rows = read_partition(outputs, unit, REPEAT)
    rows = rows[np.lexsort((rows["index"], rows["document"]))]
    documents, starts = np.unique(rows["document"], return_index=True)
    parts = np.split(rows["index"].astype(np.int64), starts[1:])
    return dict(zip(documents.tolist(), parts, strict=False))


def cut(text: str, paragraphs: Collection[int]) -> str:
    """Return the text without these paragraphs and the line breaks after them."""
    if len(paragraphs) == 0:  # an array of one 0 is not empty
        return text
    gone = {int(index) for index in paragraphs}
    kept = [text[each.first : each.last] for index, each in enumerate(_paragraphs(text)) if index not in gone]
    return "".join(kept).rstrip("\n")
