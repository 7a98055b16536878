"""The validation split, and batches of documents to tokenize.

The hash of its text decides the split of a document. If a small corpus has no validation document by hash, one document
of about the right size is held out, or the end of the longest document. If it has no other and more than half is to be
held out, one document is left to train on.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from pretrain.data.sources.source import Document, Part

SPLIT_PARTS = 10_000
BATCH = 256  # documents tokenized together
MAX_SCANNED = 200_000  # documents scanned for a validation document by hash
Item = TypeVar("Item")


def split_of(document: Document, share: float) -> str:
    """Return "validation" for about `share` of all documents, else "train".

    The hash of its text decides, or the document's `split_key`.
    """
    key = _digest(document.text) if document.split_key is None else document.split_key
    return "validation" if is_held_out(key, share) else "train"


def is_held_out(key: Any, share: float) -> Any:
    """Return whether documents with a key are validation documents: bool of an int, or an array of one of uint64.

    The share counts in 1/10,000; below half of that, the rest of the key decides on a fraction of the first part.
    """
    if is_below_one_part(share):
        return (key % SPLIT_PARTS == 0) & (key // SPLIT_PARTS < share * 2**64)
    return key % SPLIT_PARTS < round(share * SPLIT_PARTS)


def is_below_one_part(share: float) -> bool:
    """Return whether a share above 0 rounds to no part, so that earlier versions held out no document by hash."""
    return share > 0 and round(share * SPLIT_PARTS) == 0


def split_rules(share: float) -> list[str]:
    """Return what the split by a share has of rules that earlier versions did not have, for the keys of caches."""
    if is_below_one_part(share):
        return ["fraction of a part"]
    return ["one held back"] if share > 0.5 else []


@dataclass(frozen=True)
class Reserve:
    """The document of a corpus whose hashes give one split only that is held out, or held back from validation."""

    digest: int | None  # of the document's text; None: nothing can be held out
    share: float  # fraction of the document, from its end; 1: the full document
    is_back: bool = False  # whether it alone is trained on

    def split(self, document: Document) -> Iterator[tuple[str, Document]]:
        """Yield a document with its split, or both parts of the document that is split."""
        if self.is_back:
            yield "train" if _digest(document.text) == self.digest else "validation", document
        elif _digest(document.text) != self.digest:
            yield "train", document
        elif self.share == 1.0:
            yield "validation", document
        else:
            yield from split_document(document, self.share)


def reserve_of(documents: Iterator[Document], share: float, whole_only: bool) -> Reserve | None:
    """Return the held-out document of a corpus with an empty split by hash; else None.

    `documents` are read until both splits have one, about 1/share of them. With `whole_only` no document is cut, and at
    most twice the share is held out. A document with a unique label is never held out. Where all are validation
    documents by hash and a share over 1/2 is, the one whose size is nearest to the rest is held back, unless texts have
    labels: a single one to train on has no second label.
    """
    sizes: dict[int, tuple[int, str | None]] = {}  # size and label of each text, by digest
    splits = set()
    for document in documents:
        splits.add(split_of(document, share))
        sizes[_digest(document.text)] = (1 if whole_only else len(document.text), document.label)
        if len(splits) == 2 or len(sizes) == MAX_SCANNED:
            return None
    total, labels = sum(size for size, _ in sizes.values()), Counter(label for _, label in sizes.values())
    least, most = (0.0 if whole_only else share * total / 2), max(2 * share, 0.01) * total
    if share > 0.5 and splits == {"validation"} and len(sizes) > 1 and labels.keys() == {None}:
        nearest = min(sizes, key=lambda digest: (abs(sizes[digest][0] - (1 - share) * total), digest))
        return Reserve(nearest, 1.0, is_back=True)
    fitting = [
        digest
        for digest, (size, label) in sizes.items()
        if least <= size <= most and (label is None or labels[label] > 1)
    ]
    if fitting:
        return Reserve(min(fitting, key=lambda digest: (digest % SPLIT_PARTS, digest)), 1.0)
    if whole_only or not sizes:
        return Reserve(None, 0.0)
    longest = max(sizes, key=lambda digest: (sizes[digest][0], digest))
    # the share of a single document is exact: earlier versions cut it there
    return Reserve(longest, share if len(sizes) == 1 else min(0.5, share * total / sizes[longest][0]))


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode(), seed=1)


def split_document(document: Document, share: float) -> Iterator[tuple[str, Document]]:
    """Yield the head of a document for training and its end for validation.

    The split is at the first line end after the exact position; at that position if there is none.
    """
    text = document.text
    cut = max(1, int(len(text) * (1 - share)))
    cut = text.find("\n", cut) + 1 or cut
    if not text[cut:].strip():
        cut = max(1, int(len(text.rstrip()) * (1 - share)))
    if not text[cut:].strip():
        yield "train", document
        return
    yield "train", Document(text[:cut], document.name, part=Part.head)
    yield "validation", Document(text[cut:], f"{document.name} (end)", part=Part.end)


class ExactDuplicates:
    """Counter of exact duplicates; a document may come in two parts."""

    def __init__(self) -> None:
        self.count = 0  # documents without new text
        self.in_both_splits = 0  # documents split in two, with new text in both parts
        self._seen: set[int] = set()
        self._head_was_new = False

    def is_new(self, document: Document, text: bytes) -> bool:
        """Return whether the text of a document or part is new; `text` is its UTF-8."""
        digest = xxhash.xxh3_64_intdigest(text)
        new = digest not in self._seen
        self._seen.add(digest)
        if document.part is Part.head:
            self._head_was_new = new
        elif document.part is Part.end:
            self.in_both_splits += new and self._head_was_new
            self.count += not (new or self._head_was_new)
        else:
            self.count += not new
        return new


def in_batches(items: Iterator[Item], text_of: Callable[[Item], str]) -> Iterator[list[Item]]:
    """Yield lists of at most 256 documents and about 4 MB of text, to bound memory."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(text_of(item))
        if len(batch) == BATCH or characters > 4_000_000:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
