"""The documents of a source from a stream position on, each with the position after it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import xxhash

from pretrain.data.config import DataConfig
from pretrain.data.sources.source import Document, ResumeToken, Source
from pretrain.data.sources.splits import split_document, split_of
from pretrain.data.streaming.ledger import StreamPosition
from pretrain.data.token_store.format import read_json
from pretrain.errors import DataError
from pretrain.files.records import read_record

RESUME_TOKEN_EVERY = 64  # documents


@dataclass(frozen=True)
class Reading:
    """One document with its split, and the state of its source right after it."""

    split: str  # train or validation
    document: Document
    read: int  # documents of the source up to and with this one
    skipped: dict[str, int]  # by the source before this document, by reason
    last_document: str  # as in `StreamPosition`
    resume_token: ResumeToken | None  # latest position before this document from which the source can be read


def resume_readings(
    source: Source, data: DataConfig, reached: StreamPosition | None, hint: Path, report: Callable[[str], object]
) -> Iterator[Reading]:
    """Yield the documents after the stream position `reached`, or all if that is None.

    `hint` is the file of a resume token, which may be missing or useless: documents are counted, and the last one
    before the position is compared. At the start, a separate validation set comes first, and so does the end of a
    corpus of a single document. Raises DataError if the corpus is not the one read before.
    """
    separate = source.validation_documents()
    share = 0.0 if separate is not None else data.validation_fraction
    if reached is not None:
        yield from _after(source, share, reached, hint, report)
        return
    for document in separate or ():
        yield Reading("validation", document, 0, {}, "", None)
    readings = _readings(source, share)
    first = list(islice(readings, 2))
    if len(first) == 1 and share:
        parts = dict(split_document(first[0].document, share))
        for split in sorted(parts, reverse=True):  # validation first: the other part ends the era
            yield Reading(split, parts[split], 1, first[0].skipped, first[0].last_document, None)
        return
    yield from chain(first, readings)


def save_resume_token(token: ResumeToken, path: Path) -> None:
    """Write a resume token to a file for `resume_readings`."""
    record = {"documents": token.documents, "skipped": token.skipped, "place": token.position}
    path.write_text(json.dumps(record), encoding="utf8")


def _load_resume_token(path: Path) -> ResumeToken:
    record = read_json(path)
    return read_record(ResumeToken, {**record, "position": record["place"]}, str(path))


def _readings(source: Source, share: float, resume_token: ResumeToken | None = None) -> Iterator[Reading]:
    """Yield the documents of a source, from a resume token on if there is one."""
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


def _after(
    source: Source, share: float, reached: StreamPosition, hint: Path, report: Callable[[str], object]
) -> Iterator[Reading]:
    """Return the readings after a position, found by its resume token or by counting."""
    try:
        resume_token = _load_resume_token(hint)
        readings = _readings(source, share, resume_token)
        if _skip_to(reached, readings, resume_token.documents):
            return readings
    except FileNotFoundError:
        pass  # the source can be read from its start only
    except Exception as error:  # whatever a damaged hint causes, counting finds the position
        report(f"{hint} cannot be used ({type(error).__name__}): the corpus is read again up to its position")
    readings = _readings(source, share)
    if not _skip_to(reached, readings, 0):
        raise DataError(
            f"the corpus has changed since it was read: its document {reached.documents:,} is another one. "
            "Restore the old text, or delete the stream's folder to start anew: "
            f"{hint.parents[2]}"
        )
    return readings


def _skip_to(reached: StreamPosition, readings: Iterator[Reading], start: int) -> bool:
    """Skip documents up to a position; return whether the last one is the expected one."""
    last = next(islice(readings, reached.documents - start - 1, None), None)
    return last is not None and last.last_document == reached.last_document
