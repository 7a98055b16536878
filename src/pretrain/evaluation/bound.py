"""A lower bound of the log-likelihood of passages under a masked diffusion model, with its standard error.

Of a passage's n targets k are hidden, k uniform over 1..n, and n / k times the sum of their log-probabilities is one
draw of the bound (Ou et al. 2024, https://arxiv.org/abs/2406.03736; Nie et al. 2025, https://arxiv.org/abs/2502.09992).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.evaluation.likelihood import (
    BATCH_TOKENS,
    Floats,
    Ints,
    Passage,
    Report,
    Score,
    batches,
    ignore_progress,
    padded,
    predict_targets,
    read_padded,
)
from pretrain.models.interface import LanguageModule
from pretrain.objectives.config import ObjectiveConfig


@dataclass(frozen=True)
class BoundEstimate:
    """How a bound is estimated."""

    draws: int = 32  # of masks, for each passage
    shift_targets: bool = False  # the position before a masked token predicts it

    def __post_init__(self) -> None:
        draws: Any = self.draws  # from Python also a number of NumPy's
        if not isinstance(draws, Integral) or int(draws) < 2 or int(draws) % 2:
            raise ConfigError(f"draws={draws} is not an even number from 2 up. Try draws=32.")


@dataclass(frozen=True)
class Bound:
    """An estimated lower bound of a log-likelihood, in nats."""

    draws: Floats  # (K,) the estimate by each draw of masks, two of each stratum next to each other
    tokens: int

    @property
    def log_likelihood(self) -> float:
        """The mean of the draws."""
        return float(self.draws.mean())

    @property
    def variance(self) -> float:
        """The variance of the mean over draws of masks."""
        return variance_of_mean(self.draws)

    def __add__(self, other: "Bound") -> "Bound":
        """Return the bound of two passages together, whose draws are independent."""
        return Bound(self.draws + other.draws, self.tokens + other.tokens)


def variance_of_mean(draws: Floats) -> float:
    """Return the variance of the mean of draws (K,), two of each stratum next to each other."""
    first, second = draws[::2], draws[1::2]
    return float(((first - second) ** 2).sum() / 4 / len(first) ** 2)


def undecided(answers: Sequence[Sequence[Floats | None]]) -> dict[str, float]:
    """Return as `undecided` the share of answers that other masks could change; nothing for scores without draws.

    An answer is the draws (K,) of the text that was chosen and then of the others. It is undecided if one of them
    differs from the first by less than twice the standard error of the difference. That error is smaller than those of
    the two texts, as they share their masks.
    """
    of_bounds = [[draws for draws in answer if draws is not None] for answer in answers]
    if not any(of_bounds):
        return {}
    undecided_ones = [any(_is_close(draws - chosen) for draws in others) for chosen, *others in of_bounds]
    return {"undecided": sum(undecided_ones) / len(undecided_ones)}


def undecided_pairs(scores: Sequence[Score]) -> dict[str, float]:
    """Return `undecided` of pairs of texts, of which two after each other are compared."""
    return undecided([[score.draws for score in scores[at : at + 2]] for at in range(0, len(scores), 2)])


def _is_close(difference: Floats) -> bool:
    """Return whether the mean of draws (K,) of a difference is less than two standard errors from 0."""
    return bool(difference.mean() ** 2 < 4 * variance_of_mean(difference))


@dataclass(frozen=True)
class _Draws:
    """The masks of one passage: K copies of it."""

    targets: Ints  # (n,) positions of the tokens that may be hidden
    hidden: NDArray[np.bool_]  # (K, n)

    @property
    def weights(self) -> Floats:
        """Return n / k of each copy, (K,)."""
        return len(self.targets) / self.hidden.sum(1)


def estimate_of(objective: ObjectiveConfig, draws: int = 32) -> BoundEstimate | None:
    """Return how a bound is estimated for a model of this objective; None for one that is scored without a bound."""
    return BoundEstimate(draws, objective.shift_targets) if objective.denoises and not objective.causal else None


@torch.no_grad()
def bounds(
    model: LanguageModule,
    groups: Sequence[Sequence[Passage]],
    tokenizer: Tokenizer,
    estimate: BoundEstimate,
    batch_tokens: int = BATCH_TOKENS,
    report: Report = ignore_progress,
) -> list[Bound]:
    """Return the bound of each passage, in the order of the groups; no special token but an unknown one is a target.

    Passages of a group are compared with each other, so they share their random numbers: equal tokens are hidden
    together, which leaves less chance in the difference. The numbers are a function of the group's tokens.
    """
    assert tokenizer.mask_id is not None
    passages = [passage for group in groups for passage in group]
    draws = [each for group in groups for each in _draw(group, tokenizer, estimate)]
    copies = np.array([len(each.hidden) for each in draws], np.int64)
    lengths = np.array([len(passage.tokens) for passage in passages], np.int64) * (copies > 0)
    found = [Bound(np.zeros(estimate.draws), 0)] * len(passages)
    for chosen in batches(lengths, copies, batch_tokens, report):
        of_chosen = [passages[i] for i in chosen], [draws[i] for i in chosen]
        sums = _sums(model, *of_chosen, tokenizer.mask_id, estimate, batch_tokens)
        for i, values in zip(chosen.tolist(), np.split(sums, np.cumsum(copies[chosen])[:-1]), strict=True):
            each = np.broadcast_to(values * draws[i].weights, estimate.draws)  # one token: there is one way to hide it
            found[i] = Bound(each, len(draws[i].targets))
    return found


@torch.no_grad()
def filled_greedily(
    model: LanguageModule, passages: Sequence[Passage], tokenizer: Tokenizer, estimate: BoundEstimate
) -> list[bool]:
    """Return whether filling each passage's targets from left to right, always by the most likely token, gives them."""
    return [
        _is_filled(model, passage, _targets(passage, tokenizer, estimate), tokenizer, estimate) for passage in passages
    ]


def _is_filled(
    model: LanguageModule, passage: Passage, targets: Ints, tokenizer: Tokenizer, estimate: BoundEstimate
) -> bool:
    assert tokenizer.mask_id is not None
    size = max(1, BATCH_TOKENS // max(1, len(passage.tokens)))
    for start in range(0, len(targets), size):
        places = targets[start : start + size]
        rows = np.repeat(passage.tokens[None], len(places), axis=0)  # in the row of a target all from it on are hidden
        rows[:, targets] = np.where(targets >= places[:, None], tokenizer.mask_id, rows[:, targets])
        states = read_padded(model, rows, np.full(len(rows), rows.shape[1]))
        at = torch.arange(len(rows)), torch.from_numpy(places - int(estimate.shift_targets))
        _, correct = predict_targets(model, states[at], torch.from_numpy(passage.tokens[places]))
        if not correct.all():
            return False
    return True


def _targets(passage: Passage, tokenizer: Tokenizer, estimate: BoundEstimate) -> Ints:
    """Return the positions of a passage's tokens that may be hidden: no special ones, but for unknown characters."""
    first = max(passage.first, int(estimate.shift_targets))
    special = np.array(sorted(tokenizer.unscored_ids), np.int64)
    return first + np.flatnonzero(~np.isin(passage.tokens[first:], special))


def _draw(group: Sequence[Passage], tokenizer: Tokenizer, estimate: BoundEstimate) -> list[_Draws]:
    """Return the masks of each passage of a group.

    Two draws fall into each of K / 2 equal shares of 0..1, and k = 1 + floor(u n). Random numbers belong to positions
    from the left, and in the end that all have in common to positions from the right.
    """
    targets = [_targets(passage, tokenizer, estimate) for passage in group]
    sizes = [len(each) for each in targets]
    common = _common_end([passage.tokens[each] for passage, each in zip(group, targets, strict=True)])
    left = max(sizes) - common
    key = blake2b(b"".join(passage.tokens.astype(np.int64).tobytes() for passage in group), digest_size=8).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    strata = np.repeat(np.arange(estimate.draws // 2), 2)
    uniforms = (strata + random.random(estimate.draws)) / (estimate.draws // 2)
    scores = random.random((estimate.draws, left + common))
    drawn = []
    for places, n in zip(targets, sizes, strict=True):
        columns = np.concatenate([np.arange(n - common), left + np.arange(common)])
        count = min(n, 1) if n < 2 else estimate.draws
        k = 1 + np.floor(uniforms[:count] * n).astype(np.int64)
        ranks = scores[:count, columns].argsort(1).argsort(1)
        drawn.append(_Draws(places, ranks < k[:, None]))
    return drawn


def _common_end(rows: Sequence[Ints]) -> int:
    """Return how many last tokens all rows have in common; 0 for a single row."""
    if len(rows) < 2:
        return 0
    count = 0
    for tokens in zip(*(row[::-1].tolist() for row in rows), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def _sums(
    model: LanguageModule, passages: Sequence[Passage], draws: Sequence[_Draws], mask_id: int, estimate: BoundEstimate,
    batch_tokens: int,
) -> Floats:  # fmt: skip
    """Return the summed log-probability of the masked tokens of each copy of each passage, in nats."""
    rows = padded([passage.tokens for passage in passages])  # (R, T)
    lengths = np.array([len(passage.tokens) for passage in passages])
    row_of = np.repeat(np.arange(len(draws)), [len(each.hidden) for each in draws])
    hidden = np.zeros((len(row_of), rows.shape[1]), bool)  # (copies, T)
    for row, each in enumerate(draws):
        hidden[np.ix_(row_of == row, each.targets)] = each.hidden
    size = max(1, batch_tokens // rows.shape[1])  # the copies of one long passage may exceed a batch
    sums = []
    for start in range(0, len(row_of), size):
        chosen, masked = row_of[start : start + size], hidden[start : start + size]
        states = read_padded(model, np.where(masked, mask_id, rows[chosen]), lengths[chosen])
        copy, place = np.nonzero(masked)
        at = torch.from_numpy(copy), torch.from_numpy(place - int(estimate.shift_targets))
        log_p, _ = predict_targets(model, states[at], torch.from_numpy(rows[chosen][masked]))
        sums.append(np.bincount(copy, log_p.double().numpy(), minlength=len(masked)))
    return np.concatenate(sums)
