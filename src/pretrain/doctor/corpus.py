"""Check the corpus on this disk: undamaged, decodes to text and back, each row read once an epoch."""

from collections.abc import Callable, Iterator

import numpy as np

from pretrain.data.mixture import MixtureDataset
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.token_store.store import Store
from pretrain.data.train_stream import ShuffledRows
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context

ROUND_TRIPS = 20  # documents of each source
ROUND_TRIP_TOKENS = 200_000  # of one document; longer ones are skipped
MAX_SEARCHED = 2_000  # documents of each source, evenly spaced
MAX_ORDERED = 2_000_000  # rows whose order is drawn; of a larger corpus, the first ones of the order
READ_ROWS = 64  # of each source, compared with the documents
DRAWS = 10_000  # of a mixture


def prepared(context: Context) -> CheckResult:
    """Check that the corpus is in the cache or can be prepared."""
    counts = [f"{name + ' ' if name else ''}{store.n_tokens:,} tokens" for name, store in _training(context)]
    tokenizer = context.prepared.tokenizer
    return CheckResult(True, f"{', '.join(counts)} to train on, a vocabulary of {tokenizer.vocab_size:,}")


def files_verify(context: Context) -> CheckResult:
    """Compare every file of every store with its hash; raises DataError naming the first that differs."""
    found = context.prepared.corpora.values()
    stores = [store for corpus in found for store in (corpus.train, corpus.validation) if store is not None]
    for store in stores:
        store.verify()
    documents, tokens = (sum(getattr(store, name) for store in stores) for name in ("n_documents", "n_tokens"))
    return CheckResult(
        True, f"sha256 of every file in {len(stores)} stores, {documents:,} documents, {tokens:,} tokens"
    )


def round_trip(context: Context) -> CheckResult:
    """Check that ids decode to text that encodes to the same ids, or to the same text if it is normalized."""
    tokenizer, texts, other_ids, other_text = context.prepared.tokenizer, 0, 0, 0
    for _, store in _training(context):
        for index in range(min(ROUND_TRIPS, store.n_documents)):
            if store.document_lengths()[index] > ROUND_TRIP_TOKENS:
                continue
            ids = store.document(index)
            text = tokenizer.decode(ids)
            (again,) = tokenizer.encode_documents([text])
            texts += 1
            other_ids += not np.array_equal(ids, again)
            other_text += tokenizer.decode(again) != text
    return CheckResult(
        not other_text and bool(texts),
        f"of {texts} documents, {other_text} come back as another text, {other_ids} as other ids",
    )


def special_tokens_apart(context: Context) -> CheckResult:
    """Check that no document holds a special token except its first and last: text cannot spell one."""
    tokenizer, looked_at, gained = context.prepared.tokenizer, 0, dict[str, int]()
    stores = [*(store for _, store in _training(context)), *context.prepared.validation.values()]
    for store in stores:
        chosen = np.unique(np.linspace(0, store.n_documents - 1, MAX_SEARCHED).astype(np.int64))
        for index in chosen[store.document_lengths()[chosen] <= ROUND_TRIP_TOKENS].tolist():
            text = store.document(index)[1:-1]
            looked_at += 1
            for token_id in np.unique(text[tokenizer.never_text[text]]).tolist():
                gained[tokenizer.token(token_id)] = gained.get(tokenizer.token(token_id), 0) + 1
    found = ", ".join(f"{token!a} in {count:,}" for token, count in gained.items())
    return CheckResult(not gained and bool(looked_at), f"of {looked_at:,} documents: {found or 'none'}")


def packed_once(context: Context) -> CheckResult:
    """The pieces of documents in all rows are each document once, without a gap, and rows hold what the plan says."""
    documents, wrong, misread = 0, 0, 0
    for _, stream in _row_streams(context):
        lengths = stream.store.document_lengths()
        documents += len(lengths)
        wrong += _not_once(stream, lengths)
        misread += _misread(stream)
    return CheckResult(
        not wrong and not misread,
        f"of {documents:,} documents, {wrong:,} are not covered once; {misread:,} pieces read differ from them",
    )


def order_is_a_permutation(context: Context) -> CheckResult:
    """Check that an epoch reads every row once, and the next epoch in another order."""
    rows, repeated, missing, same = 0, 0, 0, 0
    for order, size in _orders(context):
        drawn = min(size, MAX_ORDERED)
        first, second = order(np.arange(drawn)), order(np.arange(size, size + drawn))
        rows += drawn
        for epoch in (first, second):
            repeated += drawn - len(np.unique(epoch))
            missing += int(((epoch < 0) | (epoch >= size)).sum())
        same += size > 20 and bool((first == second).all())  # a few rows may well come in the same order
    return CheckResult(
        not (repeated or missing or same),
        f"of {rows:,} positions in each of 2 epochs, {repeated:,} repeat a row and {missing:,} name none"
        + ("; both epochs have one order" if same else ""),
    )


def mixture_shares(context: Context) -> CheckResult:
    """Check that each source has its share of the draws, within two, and its own draws in sequence."""
    stream = _mixed(context) if context.prepared.stream is None else None
    if stream is None or len(stream.streams) < 2:
        raise NotApplicableError(f"data.kind={context.config.data.kind} is one source")
    weights = context.config.data.weights({name: len(part) for name, part in stream.streams.items()})
    whole = sum(weights[name] for name in stream.streams)
    sources, draws = stream.proportions(np.arange(DRAWS))
    off, disorder, shares = 0.0, 0, []
    for number, name in enumerate(stream.streams):
        own = draws[sources == number]
        off = max(off, abs(len(own) - float(weights[name] / whole) * DRAWS))
        disorder += int((own != np.arange(len(own))).sum())
        shares.append(f"{name} {len(own) / DRAWS:.2%} (asked: {float(weights[name] / whole):.2%})")
    return CheckResult(off < 2 and not disorder, f"{', '.join(shares)}: off by {off:.1f} of {DRAWS:,} draws at most")


def _training(context: Context) -> Iterator[tuple[str, Store]]:
    """Yield each store to train on, with the name of its source or era."""
    stream = context.prepared.stream
    if stream is None:
        yield from context.prepared.train.items()
        return
    for era in range(len(stream.ledger.eras)):
        yield f"era {era}", stream.era(era)


def _mixed(context: Context) -> MixtureDataset:
    return context.rows_of(context.prepared, context.config)


def _row_streams(context: Context) -> Iterator[tuple[str, ShuffledRows]]:
    """Yield the rows of each store as the user's run reads them."""
    if context.prepared.stream is None:
        yield from _mixed(context).streams.items()
        return
    config = context.config
    for name, store in _training(context):
        yield name, ShuffledRows(store, config.data, config.model.context_length, 0, config.seed)


def _orders(context: Context) -> Iterator[tuple[Callable[[np.ndarray], np.ndarray], int]]:
    """Yield each function from a position to a row, with the rows of an epoch."""
    corpus, config = context.prepared.stream, context.config
    if corpus is None:
        for stream in _mixed(context).streams.values():
            yield stream.order, len(stream)
        return
    streamed = StreamingDataset(corpus, config.data, config.model.context_length, 0, config.seed)
    streamed.available()
    yield streamed.order, sum(len(stream) for _, stream in _row_streams(context))


def _not_once(stream: ShuffledRows, lengths: np.ndarray) -> int:
    """Return how many documents are not covered by their pieces exactly once."""
    plan = stream.plan
    order = np.lexsort((plan.offsets, plan.documents))
    documents, offsets = plan.documents[order], plan.offsets[order]
    ends = offsets + plan.lengths[order]
    expected = np.where(np.diff(documents, prepend=-1) != 0, 0, np.concatenate(([0], ends[:-1])))
    broken = np.unique(documents[offsets != expected])
    covered = np.zeros(len(lengths), np.int64)
    np.maximum.at(covered, documents, ends)
    return len(np.union1d(broken, np.flatnonzero(covered != lengths)))


def _misread(stream: ShuffledRows) -> int:
    """Return how many pieces of some rows are not the documents' tokens where the plan says they are."""
    numbers = np.unique(np.linspace(0, len(stream) - 1, READ_ROWS).astype(np.int64))
    rows, wrong = stream.read(numbers), 0
    counts, documents, offsets, lengths = stream.plan.pieces(numbers)
    piece = 0
    for row, count in enumerate(counts.tolist()):
        at = 0
        for _ in range(count):
            document, offset, length = int(documents[piece]), int(offsets[piece]), int(lengths[piece])
            expected = stream.store.document(document)[offset : offset + length]
            wrong += not np.array_equal(rows.tokens[row, at : at + length], expected)
            at, piece = at + length, piece + 1
    return wrong
