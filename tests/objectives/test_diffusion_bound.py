"""The proofs of masked diffusion: the loss is an unbiased bound, its gradient that of plain torch row by row."""

import math
from collections import Counter
from itertools import combinations, permutations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import random_model, shape
from subjects import Words
from torch import Tensor

from pretrain.data.collate import IGNORE, Rows
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import DiffusionConfig
from pretrain.objectives.diffusion import Diffusion
from pretrain.objectives.objective import ModelWithLoss

BEGIN, MASK, SYMBOLS, N = 0, 1, 3, 3  # a text: a begin token, then N of SYMBOLS symbols, ids 2, 3, 4
VOCAB = 2 + SYMBOLS
Places = tuple[int, ...]


class Table:
    """A denoiser of texts of N symbols: a row of log-probabilities for each place of each partly hidden text."""

    def __init__(self, log_probabilities: dict[Places, Tensor]) -> None:
        self.log_probabilities = log_probabilities  # by the ids of the text: (N, SYMBOLS)
        self.head: Any = SimpleNamespace(weight=torch.eye(VOCAB), bias=None, features=lambda hidden: hidden)

    def hidden(self, batch: Batch) -> Tensor:
        """Return logits (P B, N + 1, VOCAB)."""
        logits = torch.full((*batch.tokens.shape, VOCAB), -1e4)
        for row, tokens in enumerate(batch.tokens.tolist()):
            logits[row, 1:, 2:] = self.log_probabilities[tuple(tokens[1:])]
            logits[row, 0] = 0.0
        return logits

    def bound(self, text: Places) -> float:
        """Return the mean over all orders of -log p(text), each token given those before it in the order."""
        return float(np.mean([self._negative_log_p(text, order) for order in permutations(range(N))]))

    def negative_log_likelihood(self, text: Places) -> float:
        """Return -log p(text) of the model that generates in an order drawn at random."""
        return -math.log(np.mean([math.exp(-self._negative_log_p(text, order)) for order in permutations(range(N))]))

    def _negative_log_p(self, text: Places, order: Places) -> float:
        total = 0.0
        for step, place in enumerate(order):
            seen = tuple(MASK if other in order[step:] else symbol for other, symbol in enumerate(text))
            total -= self.log_probabilities[seen][place, text[place] - 2].item()
        return total


TEXTS = list(product(range(2, VOCAB), repeat=N))
HIDDEN = [chosen for k in range(1, N + 1) for chosen in combinations(range(N), k)]


def seen_texts() -> set[Places]:
    return {tuple(MASK if p in hidden else s for p, s in enumerate(text)) for text in TEXTS for hidden in [*HIDDEN, ()]}


def random_table() -> Table:
    draw = torch.Generator().manual_seed(0)
    return Table({seen: torch.randn(N, SYMBOLS, generator=draw).log_softmax(-1) for seen in sorted(seen_texts())})


def exact_table() -> tuple[Table, dict[Places, float]]:
    """Return the conditional probabilities of a random distribution over all texts, and the distribution."""
    p = dict(zip(TEXTS, np.random.default_rng(0).dirichlet(np.ones(len(TEXTS))), strict=True))
    table = {}
    for seen in seen_texts():
        fits = {text: q for text, q in p.items() if all(s in (MASK, t) for s, t in zip(seen, text, strict=True))}
        of_symbol = torch.zeros(N, SYMBOLS)
        for text, q in fits.items():
            of_symbol[range(N), [symbol - 2 for symbol in text]] += q
        table[seen] = (of_symbol / sum(fits.values())).log()
    return Table(table), p


def losses_by_mask(
    kind: type[Diffusion], table: Table, text: Places, **changes: Any
) -> tuple[dict[Any, float], Counter[Any]]:
    """Return the loss of a text under each mask that `collate` drew in 3,000 samples, and how often each was drawn."""
    config = DiffusionConfig(random_length_rows=0.0, **changes)
    objective = kind(config, mask_id=MASK, bos_id=BEGIN, seed=0)
    tokens = np.tile([BEGIN, *text], (3000, 1))
    following = np.c_[tokens[:, 1:], np.full(3000, IGNORE)]
    rows = Rows(tokens, following, np.tile(np.arange(N + 1), (3000, 1)), np.zeros(tokens.shape, np.int32))
    batch = objective.collate(rows, torch.arange(3000))
    assert set(batch.row_counts().tolist()) == {N * config.passes}, "the count is not n"
    losses, counts = {}, Counter[Any]()
    for row in range(3000):
        passes = slice(row * config.passes, (row + 1) * config.passes)
        mask = tuple(map(tuple, (batch.tokens[passes, 1:] == MASK).tolist()))
        counts[mask] += 1
        if mask not in losses:
            one = Batch(**{
                name: None if (value := getattr(batch, name)) is None
                else value[passes if name in ("tokens", "positions", "documents") else slice(row, row + 1)]
                for name in batch.__dataclass_fields__
            })  # fmt: skip
            losses[mask] = objective(table.hidden(one), table.head, one)[0].item()
    return losses, counts


def probability(mask: tuple[tuple[bool, ...], ...]) -> float:
    """Return how often a mask is drawn: k has probability 1 / n, and so has each set of k tokens among all of them."""
    k = sum(mask[0])
    return 1 / N / math.comb(N, k)


def check_unbiased(kind: type[Diffusion], **changes: Any) -> None:
    """Check by enumeration that the mean loss of each text is its bound, once for each pass."""
    table = random_table()
    for text in TEXTS[::7]:
        losses, counts = losses_by_mask(kind, table, text, **changes)
        passes = len(next(iter(losses)))
        assert len(losses) == len(HIDDEN)
        mean = sum(probability(mask) * loss for mask, loss in losses.items())
        assert mean == pytest.approx(passes * table.bound(text), rel=1e-5)
        for mask, count in counts.items():
            p = probability(mask)
            assert abs(count - 3000 * p) < 5 * math.sqrt(3000 * p)


def test_the_mean_loss_is_the_bound() -> None:
    check_unbiased(Diffusion)


def test_the_mean_loss_of_complementary_pairs_is_twice_the_bound() -> None:
    check_unbiased(Diffusion, complementary=True)


class WrongWeight(Diffusion):
    """Weights k / n instead of n / k."""

    def _weights(self, n: Any, k: Any) -> Any:
        return [1 / weights for weights in super()._weights(n, k)]


class WrongCount(Diffusion):
    """Counts the k hidden tokens instead of all n."""

    def collate(self, rows: Any, sample_indices: Tensor) -> Batch:
        batch = super().collate(rows, sample_indices)
        return Batch(**{**vars(batch), "counts": (batch.targets != IGNORE).sum(1)})


@pytest.mark.parametrize("kind", [WrongWeight, WrongCount])
def test_a_planted_error_is_found(kind: type[Diffusion]) -> None:
    with pytest.raises(AssertionError):
        check_unbiased(kind)
    with pytest.raises(AssertionError):
        check_gradient(kind)


def test_the_bound_is_above_the_likelihood_and_equals_it_at_the_optimum() -> None:
    table = random_table()
    above = [table.bound(text) - table.negative_log_likelihood(text) for text in TEXTS]
    assert min(above) > 1e-6
    exact, p = exact_table()
    for text in TEXTS:
        assert exact.bound(text) == pytest.approx(-math.log(p[text]), abs=1e-4)
        assert exact.negative_log_likelihood(text) == pytest.approx(-math.log(p[text]), abs=1e-4)
    at_optimum = sum(q * exact.bound(text) for text, q in p.items())
    assert at_optimum < sum(q * table.bound(text) for text, q in p.items())


def packed_rows(draw: np.random.Generator) -> Rows:
    """Return 4 rows of 24 tokens: documents of unequal length, and padding in all rows but one."""
    tokens, documents = draw.integers(3, 131, (4, 24)), np.full((4, 24), -1, np.int32)
    positions, following = np.zeros((4, 24), np.int64), np.full((4, 24), IGNORE)
    for row, sizes in enumerate(([10, 9], [24], [3, 4, 11], [2, 2])):
        start = 0
        for number, size in enumerate(sizes):
            place = slice(start, start + size)
            tokens[row, start] = BEGIN
            documents[row, place], positions[row, place] = number, np.arange(size)
            following[row, start : start + size - 1] = tokens[row, start + 1 : start + size]
            start += size
    return Rows(tokens, following, positions, documents)


def plain_loss(model: Transformer, rows: Rows, batch: Batch) -> tuple[Tensor, int]:
    """Return the loss of a batch with one pass as defined: each piece of a document alone, in plain torch."""
    total, count = torch.zeros(()), 0
    for row in range(len(rows.tokens)):
        for number in range(rows.documents[row].max() + 1):
            place = np.flatnonzero(rows.documents[row] == number)
            original, seen = torch.from_numpy(rows.tokens[row, place]), batch.tokens[row, place]
            hidden, n = seen == MASK, len(place) - 1
            logits = model.head(model(seen[None]))[0]
            total = total + n / int(hidden.sum()) * F.cross_entropy(logits[hidden], original[hidden], reduction="sum")
            count += n
    return total, count


def check_gradient(kind: type[Diffusion]) -> None:
    """Check the mean gradient over packed micro-batches of unequal counts against that of pieces one by one."""
    model = random_model(shape("llama"), 131, causal=False)
    objective = kind(DiffusionConfig(random_length_rows=0.0), mask_id=MASK, bos_id=BEGIN, seed=0)
    rows = packed_rows(np.random.default_rng(0))
    parts = [np.array([0, 1]), np.array([2]), np.array([3])]
    batches = [objective.collate(rows[part], torch.from_numpy(part)) for part in parts]
    found = [ModelWithLoss(model, objective)(batch) for batch in batches]
    count = sum(int(counted) for _, counted in found)
    gradients = torch.autograd.grad(sum(loss for loss, _ in found) / count, list(model.parameters()))  # type: ignore[arg-type]
    plain = [plain_loss(model, rows[part], batch) for part, batch in zip(parts, batches, strict=True)]
    expected = torch.autograd.grad(sum(loss for loss, _ in plain) / sum(n for _, n in plain), list(model.parameters()))  # type: ignore[arg-type]
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_plain_torch_piece_by_piece() -> None:
    check_gradient(Diffusion)


def test_static_shapes_change_nothing() -> None:
    """What a GPU computes, whose head also runs at places without a target."""
    model, rows = random_model(shape("llama"), 131, causal=False), packed_rows(np.random.default_rng(1))
    for changes in ({}, {"complementary": True}, {"shift": True}):
        objective = DiffusionConfig(**changes, z_loss=0.01).build(Words(), seed=0)  # type: ignore[arg-type]
        batch = objective.collate(rows, torch.arange(4))
        results = []
        for objective.static_shapes in (False, True):
            loss, count = ModelWithLoss(model, objective)(batch)
            results.append((loss, count, *torch.autograd.grad(loss, list(model.parameters()))))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)
    empty = Batch(**{**vars(batch), "targets": torch.full_like(batch.targets, IGNORE)})
    objective.static_shapes = False
    loss, count = ModelWithLoss(model, objective)(empty)
    assert (loss.item(), count.item()) == (0.0, 0)
    loss.backward()  # a step whose rows have no target has a gradient of zero


def test_the_first_loss_is_n_log_v() -> None:
    model = random_model(shape("llama"), 131, causal=False)
    with torch.no_grad():
        model.head.weight.zero_()
    objective, rows = DiffusionConfig().build(Words(), seed=0), packed_rows(np.random.default_rng(0))
    loss, count = ModelWithLoss(model, objective)(objective.collate(rows, torch.arange(4)))
    n = [sum(sizes) - len(sizes) for sizes in ([10, 9], [24], [3, 4, 11], [2, 2])]
    assert count.item() == sum(n)
    assert loss.item() == pytest.approx(sum(n) * math.log(131), rel=1e-5)
