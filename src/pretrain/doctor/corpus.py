"""Check the corpus on this disk: file hashes, tokenizer round trip, packing, shuffle, mixture weights."""

from collections.abc import Callable, Iterator

import numpy as np

from pretrain.data.mixture import MixtureDataset
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context

ROUND_TRIPS = 20  # documents per source
ROUND_TRIP_TOKENS = 200_000  # longer documents are skipped
MAX_SEARCHED = 2_000  # documents per source, evenly spaced
MAX_ORDERED = 2_000_000  # rows per source; of a larger source, the first samples of an epoch are checked
READ_ROWS = 64  # per source, compared with the documents
DRAWS = 10_000  # samples of a mixture


def prepared(context: Context) -> CheckResult:
    """Check that the corpus is in the cache or can be prepared."""
    counts = [f"{name + ' ' if name else ''}{store.n_tokens:,}" for name, store in _training_stores(context)]
    tokenizer = context.prepared.tokenizer
    return CheckResult(True, f"training tokens: {', '.join(counts)}; vocabulary size: {tokenizer.vocab_size:,}")


def files_verify(context: Context) -> CheckResult:
    """Check every file of every store against its sha256; raise DataError naming the first that differs."""
    corpora = context.prepared.corpora.values()
    stores = [store for corpus in corpora for store in (corpus.train, corpus.validation) if store is not None]
    for store in stores:
        store.verify()
    documents, tokens = (sum(getattr(store, name) for store in stores) for name in ("n_documents", "n_tokens"))
    return CheckResult(
        True, f"sha256 of every file in {len(stores)} stores, {documents:,} documents, {tokens:,} tokens"
    )


def round_trip(context: Context) -> CheckResult:
    """Check that documents, decoded and encoded again, give the same text; ids may differ."""
    tokenizer, documents, other_ids, other_text = context.prepared.tokenizer, 0, 0, 0
    for _, store in _training_stores(context):
        for index in range(min(ROUND_TRIPS, store.n_documents)):
            if store.document_lengths()[index] > ROUND_TRIP_TOKENS:
                continue
            ids = store.document(index)
            text = tokenizer.decode(ids)
            (again,) = tokenizer.encode_documents([text])
            documents += 1
            other_ids += not np.array_equal(ids, again)
            other_text += tokenizer.decode(again) != text
    return CheckResult(
        not other_text and bool(documents),
        f"{documents} documents: {other_text} change in text, {other_ids} in ids",
    )


def special_tokens_apart(context: Context) -> CheckResult:
    """Check that no document holds a special token except its first and last: text cannot spell one."""
    tokenizer, searched, counts = context.prepared.tokenizer, 0, dict[str, int]()
    stores = [*(store for _, store in _training_stores(context)), *context.prepared.validation.values()]
    for store in stores:
        chosen = np.unique(np.linspace(0, store.n_documents - 1, MAX_SEARCHED).astype(np.int64))
        for index in chosen[store.document_lengths()[chosen] <= ROUND_TRIP_TOKENS].tolist():
            text = store.document(index)[1:-1]
            searched += 1
            for token_id in np.unique(text[tokenizer.never_text[text]]).tolist():
                counts[tokenizer.token(token_id)] = counts.get(tokenizer.token(token_id), 0) + 1
    found = ", ".join(f"{token!a} in {count:,}" for token, count in counts.items())
    return CheckResult(not counts and bool(searched), f"{searched:,} documents; special tokens: {found or 'none'}")


def packed_once(context: Context) -> CheckResult:
    """Check that pieces cover each document once, without gaps, and that rows hold the tokens of their pieces."""
    documents, wrong, misread = 0, 0, 0
    for _, stream in _row_streams(context):
        lengths = stream.store.document_lengths()
        documents += len(lengths)
        wrong += _count_not_covered_once(stream, lengths)
        misread += _count_misread(stream)
    return CheckResult(
        not wrong and not misread,
        f"of {documents:,} documents, {wrong:,} are not covered once; {misread:,} pieces are read wrong",
    )


def order_is_a_permutation(context: Context) -> CheckResult:
    """Check that an epoch reads every row once, and that the next epoch has another order."""
    rows, repeated, outside, same = 0, 0, 0, 0
    for order, size in _shuffles(context):
        count = min(size, MAX_ORDERED)
        first, second = order(np.arange(count)), order(np.arange(size, size + count))
        rows += count
        for epoch in (first, second):
            repeated += count - len(np.unique(epoch))
            outside += int(((epoch < 0) | (epoch >= size)).sum())
        same += size > 20 and bool((first == second).all())  # a few rows can have the same order by chance
    return CheckResult(
        not (repeated or outside or same),
        f"{rows:,} samples in each of 2 epochs: {repeated:,} repeat a row, {outside:,} have a row out of range"
        + ("; both epochs have the same order" if same else ""),
    )


def mixture_shares(context: Context) -> CheckResult:
    """Check that each source's number of samples is within two of its share, and its sample indices have no gaps."""
    stream = _mixture(context) if context.prepared.stream is None else None
    if stream is None or len(stream.streams) < 2:
        raise NotApplicableError(f"data.kind={context.config.data.kind} is one source")
    weights = context.config.data.weights({name: len(part) for name, part in stream.streams.items()})
    total = sum(weights[name] for name in stream.streams)
    sources, indices = stream.proportions(np.arange(DRAWS))
    deviation, disorder, shares = 0.0, 0, []
    for number, name in enumerate(stream.streams):
        of_source = indices[sources == number]
        target = float(weights[name] / total)
        deviation = max(deviation, abs(len(of_source) - target * DRAWS))
        disorder += int((of_source != np.arange(len(of_source))).sum())
        shares.append(f"{name} {len(of_source) / DRAWS:.2%} (target: {target:.2%})")
    figures = f"{', '.join(shares)}; largest deviation: {deviation:.1f} of {DRAWS:,} samples"
    return CheckResult(deviation < 2 and not disorder, figures)


def _training_stores(context: Context) -> Iterator[tuple[str, Store]]:
    """Yield the name of each source or era, and its training store."""
    stream = context.prepared.stream
    if stream is None:
        yield from context.prepared.train.items()
        return
    for era in range(len(stream.ledger.eras)):
        yield f"era {era}", stream.era(era)


def _mixture(context: Context) -> MixtureDataset:
    return context.rows_of(context.prepared, context.config)


def _row_streams(context: Context) -> Iterator[tuple[str, ShuffledRows]]:
    """Yield the name and the rows of each source or era, as the user's run reads them."""
    if context.prepared.stream is None:
        yield from _mixture(context).streams.items()
        return
    config = context.config
    for name, store in _training_stores(context):
        yield name, ShuffledRows(store, config.data, config.model.context_length, 0, config.seed)


def _shuffles(context: Context) -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], int]]:
    """Yield each function from sample indices to rows, and its number of rows per epoch."""
    corpus, config = context.prepared.stream, context.config
    if corpus is None:
        for stream in _mixture(context).streams.values():
            yield stream.order, len(stream)
        return
    streamed = StreamingDataset(corpus, config.data, config.model.context_length, 0, config.seed)
    streamed.available()
    yield streamed.order, sum(len(stream) for _, stream in _row_streams(context))


def _count_not_covered_once(stream: ShuffledRows, lengths: np.ndarray) -> int:
    """Return the number of documents whose tokens are not all in exactly one piece."""
    plan = stream.plan
    order = np.lexsort((plan.offsets, plan.documents))
    documents, offsets = plan.documents[order], plan.offsets[order]
    ends = offsets + plan.lengths[order]
    expected = np.where(np.diff(documents, prepend=-1) != 0, 0, np.concatenate(([0], ends[:-1])))
    broken = np.unique(documents[offsets != expected])
    covered = np.zeros(len(lengths), np.int64)
    np.maximum.at(covered, documents, ends)
    return len(np.union1d(broken, np.flatnonzero(covered != lengths)))


def _count_misread(stream: ShuffledRows) -> int:
    """Return the number of pieces, of `READ_ROWS` rows, that differ from their document's tokens."""
    numbers = np.unique(np.linspace(0, len(stream) - 1, READ_ROWS).astype(np.int64))
    rows, wrong = stream.read(numbers), 0
    counts, documents, offsets, lengths = stream.plan.pieces(numbers)
    piece = 0
    for row, count in enumerate(counts.tolist()):
        start = 0
        for _ in range(count):
            document, offset, length = int(documents[piece]), int(offsets[piece]), int(lengths[piece])
            expected = stream.store.document(document)[offset : offset + length]
            wrong += not np.array_equal(rows.tokens[row, start : start + length], expected)
            start, piece = start + length, piece + 1
    return wrong
