"""An interpolated Kneser-Ney n-gram over token ids, a baseline for trained models.

Sources: Kneser & Ney 1995, "Improved backing-off for m-gram language modeling"; the modified form with three discounts
per order: Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3 (equations
26 to 28 of the technical report TR-10-98); n-grams at the start of a document, which have no left context, keep their
own counts at the lower orders: Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.integer]
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # for counts 1, 2 and more, if counts of counts give no estimate


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order, numbered by sorted key: number of the first k - 1 tokens, then the last token."""

    keys: Ints  # (K,) sorted
    discounted: Floats  # (K,) count minus its discount
    totals: Floats  # (C,) counts of all k-grams that begin with each of the C (k - 1)-grams
    left_over: Floats  # (C,) sum of their discounts: the mass of the lower order


class KneserNey:
    """Interpolated modified Kneser-Ney, from n-grams of `order` tokens down to uniform over the vocabulary.

    A document begins with a token that is given; every later one, its end included, is predicted from at most
    `order - 1` tokens before it in the same document.
    """

    def __init__(self, documents: Sequence[Counts], vocab_size: int, order: int = 3) -> None:
        """Count documents, each the ids of BOS, text and EOS; no other special ids are needed."""
        if order < 1:
            raise ValueError(f"order={order} is below 1")
        self.vocab_size, self.order = vocab_size, order
        self.discounts: list[tuple[float, float, float]] = []  # of orders 1, 2, ...
        tokens, positions = self._flatten(documents)
        numbers = [np.zeros_like(tokens)]  # of the k-gram that ends at each position, from k = 0; -1: none
        keys: list[Ints] = []
        for k in range(1, order + 1):
            found = self._keys(tokens, numbers, k)
            number = np.full_like(tokens, -1)
            used = found >= 0
            kept, number[used] = np.unique(found[used], return_inverse=True)
            if k == 1:  # the id is the number: a context of one token may be BOS, which is never predicted
                kept, number = np.arange(vocab_size + 1), tokens
            keys.append(kept)
            numbers.append(number)
        self._orders = [self._discount(k, keys, numbers, positions) for k in range(1, order + 1)]

    def log_probabilities(self, documents: Sequence[Counts]) -> Floats:
        """Return the natural log-probability of each predicted token, of all documents concatenated."""
        tokens, positions = self._flatten(documents)
        found: Floats = np.log(self._probabilities(tokens)[positions > 0])
        return found

    def distribution(self, context: Sequence[int], begins: bool = False) -> Floats:
        """Return the probability of each id after `context`, preceded by BOS if `begins`; float64 (vocab_size,)."""
        before = [self.vocab_size] * begins + list(context)
        rows = np.full((self.vocab_size, self.order + len(before) + 1), -1, np.int64)  # -1 separates the rows
        rows[:, self.order : -1] = before
        rows[:, -1] = np.arange(self.vocab_size)
        return self._probabilities(rows.ravel()).reshape(rows.shape)[:, -1]

    def _flatten(self, documents: Sequence[Counts]) -> tuple[Ints, Ints]:
        """Return all tokens concatenated and the position of each in its document; BOS gets an id of its own."""
        lengths = np.array([len(document) for document in documents], np.int64)
        tokens = np.concatenate([np.asarray(document, np.int64) for document in documents])
        if not lengths.all() or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError("a document is empty, or holds an id outside the vocabulary")
        positions = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens[positions == 0] = self.vocab_size
        return tokens, positions

    def _keys(self, tokens: Ints, numbers: list[Ints], k: int) -> Ints:
        """Return the key of the k-gram that ends at each position; -1 if there is none, or its prefix is unknown."""
        before = np.append(-1, numbers[k - 1][:-1]) if k > 1 else np.zeros_like(tokens)
        predicted = (tokens >= 0) & (tokens < self.vocab_size)
        return np.where(predicted & (before >= 0), before * (self.vocab_size + 1) + tokens, -1)

    def _discount(self, k: int, keys: list[Ints], numbers: list[Ints], positions: Ints) -> _Order:
        """Return order k: counts at the highest order, numbers of distinct preceding tokens at lower ones."""
        number = numbers[k]
        if k == self.order:
            counts = np.bincount(number[positions >= max(k - 1, 1)], minlength=len(keys[k - 1]))
        else:
            longer, first = np.unique(numbers[k + 1], return_index=True)
            counts = np.bincount(number[first[longer >= 0]], minlength=len(keys[k - 1]))
            if k > 1:
                counts += np.bincount(number[positions == k - 1], minlength=len(keys[k - 1]))
        steps = discounts(counts)
        self.discounts.append(steps)
        taken = np.array([0.0, *steps])[np.minimum(counts, 3)]
        contexts = keys[k - 1] // (self.vocab_size + 1)
        size = len(keys[k - 2]) if k > 1 else 1
        return _Order(
            keys[k - 1],
            counts - taken,
            np.bincount(contexts, counts, minlength=size).astype(np.float64),
            np.bincount(contexts, taken, minlength=size).astype(np.float64),
        )

    def _probabilities(self, tokens: Ints) -> Floats:
        """Return the probability of each token given those before it; BOS and -1 end all contexts."""
        probabilities = np.full(len(tokens), 1.0 / self.vocab_size)
        numbers = [np.zeros_like(tokens)]
        for k, order in enumerate(self._orders, 1):
            if not len(order.keys):  # no document is that long
                break
            found = self._keys(tokens, numbers, k)
            at = np.minimum(np.searchsorted(order.keys, found), len(order.keys) - 1)
            seen = order.keys[at] == found
            context = np.append(-1, numbers[k - 1][:-1]) if k > 1 else numbers[0]
            total = np.where(context >= 0, order.totals[context], 0.0)
            mixed = np.where(seen, order.discounted[at], 0.0) + order.left_over[context] * probabilities
            probabilities = np.where(total > 0, mixed / np.maximum(total, 1.0), probabilities)
            numbers.append(tokens if k == 1 else np.where(seen, at, -1))
        return probabilities


def discounts(counts: Counts) -> tuple[float, float, float]:
    """Return the discounts of counts 1, 2 and more, estimated from counts of counts.

    With n_c k-grams of count c and Y = n1 / (n1 + 2 n2): D_c = c - (c + 1) Y n_(c+1) / n_c (Chen & Goodman 1999).
    FALLBACK_DISCOUNTS if an n_c is 0, or a D_c is not above 0, which would leave no mass for unseen tokens.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(float)
    if not n[1:5].all():
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    one, two, more = (float(c - (c + 1) * y * n[c + 1] / n[c]) for c in (1, 2, 3))
    return (one, two, more) if min(one, two, more) > 0 else FALLBACK_DISCOUNTS


def worst_sum(model: KneserNey, documents: Sequence[Counts], contexts: int = 50, seed: int = 0) -> float:
    """Return the largest error of the sum of probabilities after random contexts, seen and unseen."""
    draw = np.random.default_rng(seed)
    worst = 0.0
    for trial in range(contexts):
        document = documents[int(draw.integers(len(documents)))]
        begins = trial % 4 == 1
        start = 1 if begins else int(draw.integers(1, max(2, len(document) - model.order)))
        context = [int(token) for token in document[start : start + model.order]]
        if trial % 2:  # truncated to a length from 0
            context = context[: int(draw.integers(model.order))]
        if trial % 4 > 1:  # almost always unseen
            context = draw.integers(model.vocab_size, size=len(context)).tolist()
        worst = max(worst, abs(float(model.distribution(context, begins).sum()) - 1.0))
    return worst
