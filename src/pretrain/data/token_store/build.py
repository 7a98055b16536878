"""Write the documents of a source to two token stores, for training and validation."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.config import DataConfig
from pretrain.data.progress import Progress
from pretrain.data.sources.source import Document, Source
from pretrain.data.sources.splits import ExactDuplicates, in_batches, reserve_of, split_of
from pretrain.data.token_store.annotations import (
    FIRST_TEXT,
    LABEL,
    NUMBER,
    PROMPT_TOKENS,
    TURNS,
    Annotations,
    TargetSpans,
)
from pretrain.data.token_store.format import Vocabulary
from pretrain.data.token_store.store import StoreWriter
from pretrain.data.tokenizers.chat_template import ChatTemplate
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError

Report = Callable[[str], None]
Targets = list[tuple[int, int]]  # of a conversation: first token and the one after the last of each turn


def open_writer(folder: Path, tokenizer: Tokenizer, shard_tokens: int) -> StoreWriter:
    """Start a store in `folder` for documents that the tokenizer encodes."""
    vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id, tokenizer.eos_id)
    return StoreWriter(folder, vocabulary, shard_tokens)


def write_stores(
    folder: Path, source: Source, data: DataConfig, tokenizer: Tokenizer, report: Report
) -> dict[str, object]:
    """Write the stores `train` and, for held-out documents, `validation`; return the counts of documents.

    Exact duplicates are left out. A document that is cut in two, with its end held out, counts in both splits and as
    "in both splits": documents read = train + validation - in both splits + skipped. Raises DataError if no document is
    left for training, and for a label that only documents of a separate validation set have.
    """
    writers: dict[str, StoreWriter] = {}
    values: dict[str, list[int]] = {"train": [], "validation": []}
    targets: dict[str, list[Targets]] = {"train": [], "validation": []}
    chat_template = ChatTemplate(tokenizer) if data.has_messages else None
    labels, held_out = _labels(source, data)
    counts: Counter[str] = Counter()
    duplicates, progress = ExactDuplicates(), Progress(report)
    for batch in in_batches(with_splits(source, data), lambda item: item[1].text):
        fresh: list[tuple[str, Document, int]] = []
        for split, document in batch:
            text = "\0".join(filter(None, (document.text, document.second_text))).encode()
            if source.without_duplicates or duplicates.is_new(document, text):
                fresh.append(("train" if document.label in held_out else split, document, len(text)))
        documents = [document for _, document, _ in fresh]
        encoded = _encode(documents, tokenizer, labels, chat_template)
        for (split, document, size), (tokens, value, spans) in zip(fresh, encoded, strict=True):
            if split not in writers:
                writers[split] = open_writer(folder / split, tokenizer, data.shard_tokens)
            writers[split].add(tokens, size, document.name)
            values[split].append(value)
            targets[split].append(spans)
            counts[split] += 1
            counts["bytes"] += size
        done = counts["train"] + counts["validation"]
        progress(f"tokenized {done:,} documents", counts["bytes"], source.share_read())
    if "train" not in writers:
        raise DataError(f"no document is left to train on: all {counts['validation']} went into the validation split.")
    counts |= Counter({"exact duplicates": duplicates.count, "in both splits": duplicates.in_both_splits})
    skipped = dict(source.skipped) | {"exact duplicates": duplicates.count}
    report(_summary(counts, skipped, splits=bool(data.validation_fraction or counts["validation"])))
    provenance: dict[str, object] = {
        "source": data.kind,
        "corpus_fingerprint": source.identity,
        "skipped": skipped,
        "documents": {key: counts[key] for key in ("train", "validation", "in both splits")},
    }
    if origin := source.provenance():
        provenance["corpus"] = origin
    for split, writer in writers.items():
        annotations = _annotations(data, values[split], labels, targets[split])
        writer.finish(provenance | {"split": split}, annotations)
    tokenizer.save(folder / "tokenizer")
    return {"documents": dict(counts), "skipped": skipped}


def _encode(
    documents: Sequence[Document], tokenizer: Tokenizer, labels: list[str], template: ChatTemplate | None
) -> list[tuple[NDArray[np.uint32], int, Targets]]:
    """Return the ids of each document, its annotation, and the turns of a conversation that are targets."""
    if any(document.related for document in documents):
        return _encode_related(documents, tokenizer)
    if template is None:
        encoded = tokenizer.encode_text_pairs([(document.text, document.second_text) for document in documents])
        values = _values(documents, encoded, tokenizer, labels)
        return [(ids, value, []) for ids, value in zip(encoded, values, strict=True)]
    conversations = []
    for document in documents:
        try:
            found = template.conversation(document.messages)
        except ConfigError as error:
            raise DataError(f"{document.name}: {error}") from error
        conversations.append((np.array(found.ids, np.uint32), found.targets[0][0], found.targets))
    return conversations


def _encode_related(
    documents: Sequence[Document], tokenizer: Tokenizer
) -> list[tuple[NDArray[np.uint32], int, Targets]]:
    """Return the ids of each document's texts, every one between BOS and EOS, and the number of those of the first."""
    encoded = iter(tokenizer.encode_documents([text for document in documents for text in document.related]))
    rows = [[next(encoded) for _ in document.related] for document in documents]
    return [(np.concatenate(texts), len(texts[0]), []) for texts in rows]


def _summary(counts: Counter[str], skipped: dict[str, int], splits: bool) -> str:
    cut = " (the end of one of them)" if counts["in both splits"] else ""
    use = f" to train on and {counts['validation']:,} to validate on{cut}" if splits else ""
    reasons = "".join(f", {count:,} skipped ({reason})" for reason, count in sorted(skipped.items()) if count)
    return f"tokenized {counts['train']:,} documents{use}{reasons}"


def with_splits(source: Source, data: DataConfig) -> Iterator[tuple[str, Document]]:
    """Yield each document with its split, which the hash of its text alone decides.

    If the hashes hold out no document of a corpus, one document or the end of one is held out all the same
    (`reserve_of`); this reads the beginning of the corpus twice.
    """
    held_out = source.validation_documents()
    if held_out is not None:
        source.skipped.clear()
        yield from (("validation", document) for document in held_out)
        skipped = Counter(source.skipped)
        documents = source.documents()  # which restarts the counts
        source.skipped.update(skipped)
        yield from (("train", document) for document in documents)
        return
    share, reserve = data.validation_fraction, None
    if share:
        with closing(source.documents()) as documents:  # type: ignore[type-var]  # a generator
            reserve = reserve_of(documents, share, whole_only=data.annotated)
    for document in source.documents():
        if reserve is None:
            yield split_of(document, share), document
        else:
            yield from reserve.split(document)


def _labels(source: Source, data: DataConfig) -> tuple[list[str], frozenset[str]]:
    """Return the sorted labels of the training documents, none if texts have no labels; and those held out otherwise.

    Documents with a label that the hashes hold out altogether are trained on. Those of a separate validation set stay.
    """
    if not data.has_labels or data.has_numbers:
        return [], frozenset()
    found: dict[str, set[str]] = {"train": set(), "validation": set()}
    for split, document in with_splits(source, data):
        found[split].add(str(document.label))
    is_separate = source.validation_documents() is not None
    held_out = frozenset[str]() if is_separate else frozenset(found["validation"] - found["train"])
    labels = sorted(found["train"] | held_out)
    if len(labels) < 2:
        raise DataError(
            f"{_name(data)} has {len(labels)} label in its training documents ({', '.join(labels)}), and a "
            "classifier needs two. Name a file in which texts have two labels or more."
        )
    return labels, held_out


def _name(data: DataConfig) -> str:
    """Return the setting and value that name a source in an error."""
    path = getattr(data, "path", None)
    return f"data.kind={data.kind}" if path is None else f"data.path={path}"


def _values(
    documents: Sequence[Document], encoded: list[NDArray[np.uint32]], tokenizer: Tokenizer, labels: list[str]
) -> list[int]:
    """Return each document's annotation: its label's index, number's bits or prompt's length in tokens, else 0.

    If the tokens of a text do not begin with those of its prompt, as the model will read it, prompt and response are
    encoded apart and replace its tokens in `encoded`.
    """
    if labels:
        return [_label_index(document, labels) for document in documents]
    if any(document.number is not None for document in documents):
        return np.array([document.number for document in documents], np.float32).view(np.uint32).tolist()
    pairs = [(n, document.prompt_characters) for n, document in enumerate(documents) if document.prompt_characters]
    prompts = tokenizer.encode_documents([documents[number].text[:end] for number, end in pairs])
    values = [1 if document.prompt_characters is not None else 0 for document in documents]  # BOS of an empty prompt
    for (number, end), prompt in zip(pairs, prompts, strict=True):
        begin, tokens = prompt[:-1], encoded[number]
        if len(begin) >= len(tokens) or not np.array_equal(tokens[: len(begin)], begin):
            response = tokenizer.encode_following(documents[number].text[end:])
            encoded[number] = np.concatenate([begin, np.array([*response, tokenizer.eos_id], np.uint32)])
        values[number] = len(begin)
    return values


def _label_index(document: Document, labels: list[str]) -> int:
    try:
        return labels.index(str(document.label))
    except ValueError:
        raise DataError(
            f"{document.name} has the label {document.label!r}, which no training document has. "
            f"Labels are {', '.join(labels[:10])}. Leave the document out of data.validation_path."
        ) from None


def _annotations(data: DataConfig, values: list[int], labels: list[str], targets: list[Targets]) -> Annotations | None:
    if not data.annotated:
        return None
    numbers = np.array(values, np.int64)
    if data.has_messages:
        return Annotations(TURNS, numbers, targets=TargetSpans.of_documents(targets))
    kind = NUMBER if data.has_numbers else LABEL if labels else FIRST_TEXT if data.has_related else PROMPT_TOKENS
    return Annotations(kind, numbers, tuple(labels))
