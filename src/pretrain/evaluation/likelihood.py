"""Log-likelihoods of passages under causal and masked models, in batches.

Passages of about the same length are batched, padded on the right: a score does not depend on the rest of its batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.models.transformer import Transformer
from pretrain.objectives.loss import token_losses

BATCH_TOKENS = 4096  # of one forward pass, padding included

Ints = NDArray[np.int64]
Report = Callable[[int, int], object]  # receives the tokens read so far, and the total


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text. For a masked model each token is hidden in turn: a pseudo-likelihood.

    Source of the latter: Salazar et al. 2020, https://arxiv.org/abs/1910.14659, section 2.
    """

    log_likelihood: float  # nats, summed over the tokens
    tokens: int  # predicted
    text_bytes: int  # UTF-8

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token; NaN, which is no figure, of a text without a token to predict."""
        return -self.log_likelihood / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; a pseudo-perplexity for a masked model."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text; NaN of an empty one."""
        return -self.log_likelihood / math.log(2) / self.text_bytes if self.text_bytes else math.nan


@dataclass(frozen=True)
class Passage:
    """Tokens that a context holds, of which those from place `first` on are to be predicted."""

    tokens: Ints  # (T,)
    first: int


@dataclass(frozen=True)
class Predicted:
    """Log-probabilities of a passage's predicted tokens, in their order, and whether each is the argmax."""

    log_probabilities: Tensor  # nats, float32 (N,)
    predictions: Tensor  # bool (N,): whether the token is the argmax


def ignore_progress(done: int, total: int) -> None:
    """Discard progress."""


@torch.no_grad()
def causal_predictions(
    model: Transformer, passages: Sequence[Passage], batch_tokens: int = BATCH_TOKENS, report: Report = ignore_progress
) -> list[Predicted]:
    """Return for each passage how its tokens from `first`, at least 1, on are predicted from those before them."""
    lengths = np.array([len(p.tokens) - 1 if p.first < len(p.tokens) else 0 for p in passages], np.int64)
    found = [_nothing()] * len(passages)
    for chosen in _batches(lengths, np.ones_like(lengths), batch_tokens, report):
        batch = [passages[i] for i in chosen]
        rows = _padded([p.tokens[:-1] for p in batch])  # (R, T)
        places = [np.arange(p.first - 1, len(p.tokens) - 1) + row * rows.shape[1] for row, p in enumerate(batch)]
        device = next(model.parameters()).device
        hidden = model(torch.from_numpy(rows).to(device)).flatten(0, 1)
        targets = torch.from_numpy(np.concatenate([p.tokens[p.first :] for p in batch]))
        predicted = _at_targets(model, hidden[torch.from_numpy(np.concatenate(places)).to(device)], targets)
        _hand_out(found, chosen, predicted, [len(each) for each in places])
    return found


@torch.no_grad()
def masked_predictions(
    model: Transformer,
    passages: Sequence[Passage],
    mask_id: int,
    special_ids: frozenset[int],
    batch_tokens: int = BATCH_TOKENS,
    report: Report = ignore_progress,
) -> list[Predicted]:
    """Return for each passage how its tokens from `first` on that are not special are predicted, each hidden in turn.

    The copies of all passages, one for each hidden token, are read side by side.
    """
    special = np.array(sorted(special_ids), np.int64)
    hidden_at = [p.first + np.flatnonzero(~np.isin(p.tokens[p.first :], special)) for p in passages]
    copies = np.array([len(places) for places in hidden_at], np.int64)
    lengths = np.array([len(p.tokens) for p in passages], np.int64) * (copies > 0)
    found = [_nothing()] * len(passages)
    for chosen in _batches(lengths, copies, batch_tokens, report):
        rows = _padded([passages[i].tokens for i in chosen])  # (R, T)
        places = np.concatenate([hidden_at[i] for i in chosen])
        of_row = np.repeat(np.arange(len(chosen)), copies[chosen])
        size = max(1, batch_tokens // rows.shape[1])  # the copies of one long passage may be too many
        parts = [slice(start, start + size) for start in range(0, len(places), size)]
        read = [
            _hide(model, rows[of_row[part]], lengths[chosen][of_row[part]], places[part], mask_id) for part in parts
        ]
        losses, right = (torch.cat(each) for each in zip(*read, strict=True))
        _hand_out(found, chosen, (losses, right), copies[chosen].tolist())
    return found


def _hide(model: Transformer, rows: Ints, lengths: Ints, places: Ints, mask_id: int) -> tuple[Tensor, Tensor]:
    """Return how the token at one place of each row (R, T) is predicted once it is hidden."""
    device = next(model.parameters()).device
    each = np.arange(len(rows))
    targets = torch.from_numpy(rows[each, places])
    rows[each, places] = mask_id
    documents = None
    if lengths.min() < rows.shape[1]:  # nothing may see the padding
        documents = torch.from_numpy((np.arange(rows.shape[1]) >= lengths[:, None]).astype(np.int32)).to(device)
    hidden = model(torch.from_numpy(rows).to(device), documents=documents)
    return _at_targets(model, hidden[torch.from_numpy(each).to(device), torch.from_numpy(places).to(device)], targets)


def _at_targets(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and whether each target is the argmax, on the CPU, in chunks of the logits."""
    head = model.head
    losses, predictions = token_losses(head.features(hidden), head, targets.to(hidden.device))
    return -losses.cpu(), predictions.cpu() == targets.cpu()


def _nothing() -> Predicted:
    return Predicted(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def _hand_out(found: list[Predicted], chosen: Ints, predicted: tuple[Tensor, Tensor], counts: list[int]) -> None:
    for i, losses, right in zip(chosen.tolist(), *(each.split(counts) for each in predicted), strict=True):
        found[i] = Predicted(losses, right)


def _batches(lengths: Ints, copies: Ints, batch_tokens: int, report: Report) -> Iterator[Ints]:
    """Yield which passages to read together, longest first: at most `batch_tokens`, if that is one passage or more.

    A passage of length 0 is in none.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[: int((lengths > 0).sum())]
    done, total, start = 0, int((lengths * copies).sum()), 0
    while start < len(order):
        rows = batch_tokens // int(lengths[order[start]])
        ahead = order[start : start + rows + 1]
        count = max(1, int(np.searchsorted(np.cumsum(copies[ahead]), rows, side="right")))
        chosen = ahead[:count]
        yield chosen
        done += int((lengths[chosen] * copies[chosen]).sum())
        start += count
        report(done, total)


def _padded(rows: Sequence[Ints]) -> Ints:
    """Return rows of unequal length as one array (R, T), zeros behind the shorter ones."""
    lengths = np.array([len(row) for row in rows])
    whole = np.zeros((len(rows), int(lengths.max())), np.int64)
    whole[np.arange(whole.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return whole
