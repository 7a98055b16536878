"""Which documents are held out for validation, and how many are tokenised together."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import xxhash

from pretrain.data.sources import Document

SPLIT_PARTS = 10_000
BATCH = 256  # documents tokenised together

Item = TypeVar("Item")


def split_of(document: Document, share: float) -> str:
    """Return "validation" for about this share of all documents, else "train", by the hash of the text alone."""
    part = xxhash.xxh3_64_intdigest(document.text.encode(), seed=1) % SPLIT_PARTS
    return "validation" if part < round(share * SPLIT_PARTS) else "train"


def cut(document: Document, share: float) -> Iterator[tuple[str, Document]]:
    """Yield the beginning of a document to train on and its end to validate on, cut at a line where there is one."""
    text = document.text
    place = max(1, int(len(text) * (1 - share)))
    place = text.find("\n", place) + 1 or place
    yield "train", Document(text[:place], document.name)
    if place < len(text):
        yield "validation", Document(text[place:], f"{document.name} (end)")


def in_batches(items: Iterator[Item], text_of: Callable[[Item], str]) -> Iterator[list[Item]]:
    """Yield lists of at most 256 documents and about 4 MB of text, so that memory stays bounded."""
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
