"""A source's documents from the place that a stream has reached, each with where the source stands after it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path

import xxhash

from pretrain.data.config import DataConfig
from pretrain.data.sources.source import Document, ResumeToken, Source
from pretrain.data.sources.splits import split_document, split_of
from pretrain.data.streaming.ledger import StreamPosition
from pretrain.data.token_store.format import read_json
from pretrain.errors import DataError

RESUME_TOKEN_EVERY = 64  # documents


@dataclass(frozen=True)
class Reading:
    """One document, with the split that it falls in and where its source stood right after it."""

    split: str  # train or validation
    document: Document
    read: int  # documents of the source, up to and with this one
    skipped: dict[str, int]  # by the source, before this one
    last_document: str  # as `StreamPosition` has it
    resume_token: ResumeToken | None  # the newest place before this document where its source can be read on


def resume_readings(
    source: Source, data: DataConfig, reached: StreamPosition | None, hint: Path, report: Callable[[str], object]
) -> Iterator[Reading]:
    """Yield what comes behind the place reached, or everything from the beginning on where that is None.

    `hint` is the file of a bookmark, which may be missing or useless: documents are counted, and the last one before
    the place is compared. At the beginning a validation set of its own comes first, and the end of a corpus that is a
    single document. Raises DataError where the corpus is no longer the one that was read.
    """
    has_own = source.validation_documents() is not None
    share = 0.0 if has_own else data.validation_fraction
    if reached is not None:
        yield from _behind(source, share, reached, hint, report)
        return
    own = source.validation_documents()
    for document in own or ():
        yield Reading("validation", document, 0, {}, "", None)
    readings = _readings(source, share)
    first = list(islice(readings, 2))
    if len(first) == 1 and share:
        parts = dict(split_document(first[0].document, share))
        for split in sorted(parts, reverse=True):  # validation first: the other part ends the era
            yield Reading(split, parts[split], 1, first[0].skipped, first[0].last_document, None)
        return
    yield from chain(first, readings)


def save_resume_token(resume_token: ResumeToken, path: Path) -> None:
    """Write a bookmark for `resume_readings` to find."""
    path.write_text(json.dumps(asdict(resume_token)), encoding="utf8")


def _readings(source: Source, share: float, resume_token: ResumeToken | None = None) -> Iterator[Reading]:
    """Yield every document of a source, or those from a bookmark on."""
    documents = source.documents(resume_token)
    start = resume_token.documents if resume_token else 0
    for number in count(start):
        if number % RESUME_TOKEN_EVERY == 0 and number > start:
            resume_token = source.resume_token()
        document = next(documents, None)
        if document is None:
            return
        last = xxhash.xxh3_64_hexdigest(document.text.encode())
        yield Reading(split_of(document, share), document, number + 1, dict(source.skipped), last, resume_token)


def _behind(
    source: Source, share: float, reached: StreamPosition, hint: Path, report: Callable[[str], object]
) -> Iterator[Reading]:
    """Return the readings behind a place, by its bookmark or by counting from the beginning on."""
    try:
        resume_token = ResumeToken(**read_json(hint))
        readings = _readings(source, share, resume_token)
        if _skip_to(reached, readings, resume_token.documents):
            return readings
    except FileNotFoundError:
        pass  # a source that can only be read from its beginning
    except Exception as error:  # whatever a damaged hint sets off, counting finds the place
        report(f"{hint} is of no use ({type(error).__name__}): the corpus is read again up to its place")
    readings = _readings(source, share)
    if not _skip_to(reached, readings, 0):
        raise DataError(
            f"the corpus is no longer the one that was read: its document {reached.documents:,} is another one. "
            "Bring the old text back, or delete the stream's folder to start anew: "
            f"{hint.parents[2]}"
        )
    return readings


def _skip_to(reached: StreamPosition, readings: Iterator[Reading], start: int) -> bool:
    """Skip documents up to the place reached; return whether the last of them is the one that was there."""
    last = next(islice(readings, reached.documents - start - 1, None), None)
    return last is not None and last.last_document == reached.last_document
