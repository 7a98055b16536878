"""The n-gram baseline of the quality benchmark."""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from kneser_ney import KneserNey, discounts, worst_sum

A, B, END = 0, 1, 2
BEGIN = "begin"


def _documents(seed, count=30, vocab=12, length=40):
    """Return documents of a text with structure: each token is mostly decided by the two before it."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = [vocab - 1, *draw.integers(vocab - 1, size=2).tolist()]
        for _ in range(int(draw.integers(1, length))):
            guess = (3 * tokens[-1] + 5 * tokens[-2]) % (vocab - 1)
            tokens.append(int(guess if draw.random() < 0.8 else draw.integers(vocab - 1)))
        found.append(np.array([*tokens, vocab - 1]))
    return found


def _slow(documents, vocab, order):
    """Return p(token, context) by the textbook's recursion over dictionaries of tuples."""
    texts = [(BEGIN, *document[1:].tolist()) for document in documents]
    raw = [Counter(t[i : i + k] for t in texts for i in range(len(t) - k + 1)) for k in range(1, order + 1)]
    counts = []
    for k in range(1, order + 1):
        before = defaultdict(set)
        for gram in raw[k] if k < order else ():
            before[gram[1:]].add(gram[0])
        own = {g: c if k == order or g[0] == BEGIN else len(before[g]) for g, c in raw[k - 1].items() if g != (BEGIN,)}
        counts.append(own)
    steps = [(0.0, *discounts(np.array(list(own.values())))) for own in counts]

    def p(token, context):
        context = context[max(0, len(context) - order + 1) :]
        k = len(context) + 1
        lower = p(token, context[1:]) if context else 1 / vocab
        after = {gram: c for gram, c in counts[k - 1].items() if gram[:-1] == context}
        if not after:
            return lower
        total = sum(after.values())
        count = after.get((*context, token), 0)
        left_over = sum(steps[k - 1][min(c, 3)] for c in after.values())
        return (count - steps[k - 1][min(count, 3)] + left_over * lower) / total

    return p


def test_equals_values_computed_by_hand():
    # One document, A B A: the bigrams (begin A) (A B) (B A) (A end), once each, so that the fallback discounts hold.
    model = KneserNey([np.array([END, A, B, A, END])], vocab_size=3, order=2)
    assert model.discounts == [(0.5, 1.0, 1.5), (0.5, 1.0, 1.5)]
    # Different tokens before A, B and end: 2, 1, 1. Discounts 1, 0.5, 0.5 leave 1, 0.5, 0.5 and 2 for uniform, of 4.
    one = {A: (1 + 2 / 3) / 4, B: (0.5 + 2 / 3) / 4, END: (0.5 + 2 / 3) / 4}
    # After A: B and end once each, 0.5 left of each, 1 of 2 to share. After B and the begin: A once, 0.5 to share.
    after_a = [0.5 * one[A], (0.5 + one[B]) / 2, (0.5 + one[END]) / 2]
    after_b = [0.5 + 0.5 * one[A], 0.5 * one[B], 0.5 * one[END]]
    assert model.distribution([]) == pytest.approx([one[A], one[B], one[END]])
    assert model.distribution([A]) == pytest.approx(after_a)
    assert model.distribution([B]) == pytest.approx(after_b)
    assert model.distribution([], begins=True) == pytest.approx(after_b)
    assert model.distribution([END]) == pytest.approx([one[A], one[B], one[END]])  # the end is not the begin
    found = model.log_probabilities([np.array([END, A, END])])
    assert found == pytest.approx(np.log([after_b[A], after_a[END]]))


def test_discounts_follow_counts_of_counts():
    # n1 to n4 are 8, 4, 2, 1: Y = 8 / 16; 1 - 2 Y 4 / 8, 2 - 3 Y 2 / 4, 3 - 4 Y 1 / 2
    assert discounts(np.repeat([0, 1, 2, 3, 4, 9], [5, 8, 4, 2, 1, 7])) == pytest.approx((0.5, 1.25, 2.0))
    assert discounts(np.array([1, 1, 2, 3])) == (0.5, 1.0, 1.5)  # n4 is 0
    assert discounts(np.repeat([1, 2, 3, 4], [9, 1, 1, 90])) == (0.5, 1.0, 1.5)  # 2 - 3 (9 / 11) 1 / 1 is negative


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_recursion_over_dictionaries(order):
    train, held_out = _documents(0), _documents(1, count=4)
    model, slow = KneserNey(train, 12, order), _slow(train, 12, order)
    expected = []
    for document in held_out:
        text = (BEGIN, *document[1:].tolist())
        expected += [slow(text[i], text[:i]) for i in range(1, len(text))]
    assert np.exp(model.log_probabilities(held_out)) == pytest.approx(np.array(expected), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one(order):
    documents = _documents(2)
    model = KneserNey(documents, vocab_size=40, order=order)  # 28 ids never occur
    assert worst_sum(model, documents, contexts=80) < 1e-12
    assert model.distribution([39, 38, 37]).min() > 0


def test_more_context_predicts_better_where_it_decides():
    train, held_out = _documents(3, count=200), _documents(4)
    two, three = (-KneserNey(train, 12, order).log_probabilities(held_out).mean() for order in (2, 3))
    assert three < 0.7 * two


def test_documents_are_independent():
    train, held_out = _documents(5), _documents(6, count=3)
    model = KneserNey(train, 12, 3)
    apart = [model.log_probabilities([document]) for document in held_out]
    assert np.array_equal(np.concatenate(apart), model.log_probabilities(held_out))
    assert np.array_equal(KneserNey(train[::-1], 12, 3).distribution([4, 7]), model.distribution([4, 7]))


def test_documents_shorter_than_the_order():
    model = KneserNey([np.array([END, A]), np.array([END, B])], vocab_size=3, order=4)
    assert model.distribution([A, B, A]).sum() == pytest.approx(1)


@pytest.mark.parametrize("bad", [[], [0, 3], [-1, 0]])
def test_refuses_ids_outside_the_vocabulary(bad):
    with pytest.raises(ValueError, match="document"):
        KneserNey([np.array(bad, np.int64)], vocab_size=3)
