"""The documents of a source as two token stores: one to train on, one to validate on."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.config import DataConfig
from pretrain.data.fine_tuning_config import AnnotatedConfig, LabelledTextConfig
from pretrain.data.progress import Progress
from pretrain.data.sources.source import Document, Source
from pretrain.data.sources.splits import ExactDuplicates, in_batches, reserve_of, split_of
from pretrain.data.token_store.annotations import LABEL, PROMPT_TOKENS, Annotations
from pretrain.data.token_store.store import StoreWriter
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import DataError

Report = Callable[[str], None]


def write_stores(
    folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report
) -> dict[str, object]:
    """Write the stores `train` and, where documents are held out, `validation`; return how many documents came of it.

    Exact duplicates are left out. A document that is cut in two, its end held out, is counted in both splits, and under
    "in both splits": documents read = train + validation - in both splits + skipped. Raises DataError where no document
    is left to train on, and for a label that only validation documents have.
    """
    writers: dict[str, StoreWriter] = {}
    notes: dict[str, list[int]] = {"train": [], "validation": []}
    labels = _labels(source, data)
    counts: Counter[str] = Counter()
    duplicates = ExactDuplicates()
    progress = Progress(report)
    for batch in in_batches(with_splits(source, data), lambda item: item[1].text):
        fresh, sizes = [], []
        for split, document in batch:
            text = document.text.encode()
            if duplicates.is_new(document, text):
                fresh.append((split, document))
                sizes.append(len(text))
        documents = [document for _, document in fresh]
        encoded = tokenizer.encode_documents([document.text for document in documents])
        noted = _notes(documents, encoded, tokenizer, labels)
        for (split, document), tokens, note, size in zip(fresh, encoded, noted, sizes, strict=True):
            if split not in writers:
                writers[split] = StoreWriter(
                    folder / split,
                    vocab_size=tokenizer.vocab_size,
                    tokenizer_fingerprint=tokenizer.fingerprint,
                    bos_id=tokenizer.bos_id,
                    eos_id=tokenizer.eos_id,
                    shard_tokens=data.shard_tokens,
                )
            writers[split].add(tokens, size, document.name)
            notes[split].append(note)
            counts[split] += 1
            counts["bytes"] += size
        done = counts["train"] + counts["validation"]
        progress(f"tokenized {done:,} documents", counts["bytes"], source.share_read())
    if "train" not in writers:
        raise DataError(f"no document is left to train on: all {counts['validation']} went into the validation split.")
    counts |= Counter({"exact duplicates": duplicates.count, "in both splits": duplicates.in_both_splits})
    skipped = dict(source.skipped) | {"exact duplicates": duplicates.count}
    splits = data.validation_fraction or counts["validation"]  # else they may be there to be scored
    cut = " (the end of one of them)" if duplicates.in_both_splits else ""
    use = f" to train on and {counts['validation']:,} to validate on{cut}" if splits else ""
    report(
        f"tokenized {counts['train']:,} documents{use}"
        + "".join(f", {count:,} skipped ({reason})" for reason, count in sorted(skipped.items()) if count)
    )
    provenance: dict[str, object] = {
        "source": data.kind,
        "corpus_fingerprint": source.identity,
        "skipped": skipped,
        "documents": {key: counts[key] for key in ("train", "validation", "in both splits")},
    }
    for split, writer in writers.items():
        writer.finish(
            provenance | {"split": split},
            _annotations(data, notes[split], labels),
        )
    tokenizer.save(folder / "tokenizer")
    return {"documents": dict(counts), "skipped": skipped}


def with_splits(source: Source, data: DataConfig) -> Iterator[tuple[str, Document]]:
    """Yield each document with its split, decided by the hash of its text alone.

    Where no document of a corpus falls in that way, one is held out all the same, or the end of one (`reserve_of`): its
    beginning is read twice to know.
    """
    own = source.validation_documents()
    if own is not None:
        source.skipped.clear()
        yield from (("validation", document) for document in own)
        of_validation = Counter(source.skipped)
        documents = source.documents()  # which counts anew
        source.skipped.update(of_validation)
        yield from (("train", document) for document in documents)
        return
    share, reserve = data.validation_fraction, None
    if share:
        with closing(source.documents()) as documents:  # type: ignore[type-var]  # a generator
            reserve = reserve_of(documents, share, whole_only=isinstance(data, AnnotatedConfig))
    for document in source.documents():
        if reserve is None:
            yield split_of(document, share), document
        else:
            yield from reserve.split(document)


def _labels(source: Source, data: DataConfig) -> list[str]:
    """Return the labels of the training documents in the order of their spelling; none where texts have none."""
    if not isinstance(data, LabelledTextConfig):
        return []
    found = sorted({str(document.label) for split, document in with_splits(source, data) if split == "train"})
    if len(found) < 2:
        raise DataError(
            f"data.path={data.path} has {len(found)} label in its training documents ({', '.join(found)}), and there "
            "is nothing to tell apart. Name a file in which texts have two labels or more."
        )
    return found


def _notes(
    documents: Sequence[Document], encoded: list[NDArray[np.uint32]], tokenizer: Tokenizer, labels: list[str]
) -> list[int]:
    """Return the number that each document carries, 0 where it carries none.

    Where a text's tokens do not begin with those of its prompt, as the model will read it, they are put in `encoded`
    from both parts.
    """
    if labels:
        return [_label(document, labels) for document in documents]
    pairs = [(n, document.prompt_characters) for n, document in enumerate(documents) if document.prompt_characters]
    prompts = tokenizer.encode_documents([documents[number].text[:end] for number, end in pairs])
    notes = [1 if document.prompt_characters is not None else 0 for document in documents]  # BOS, of an empty prompt
    for (number, end), prompt in zip(pairs, prompts, strict=True):
        given, whole = prompt[:-1], encoded[number]
        if len(given) >= len(whole) or not np.array_equal(whole[: len(given)], given):
            response = tokenizer.encode_following(documents[number].text[end:])
            encoded[number] = np.concatenate([given, np.array([*response, tokenizer.eos_id], np.uint32)])
        notes[number] = len(given)
    return notes


def _label(document: Document, labels: list[str]) -> int:
    try:
        return labels.index(str(document.label))
    except ValueError:
        raise DataError(
            f"{document.name} has the label {document.label!r}, which no training document has. "
            f"Labels are {', '.join(labels[:10])}."
        ) from None


def _annotations(data: DataConfig, notes: list[int], labels: list[str]) -> Annotations | None:
    if not isinstance(data, AnnotatedConfig):
        return None
    return Annotations(LABEL if labels else PROMPT_TOKENS, np.array(notes, np.int64), tuple(labels))
