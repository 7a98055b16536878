"""Log-likelihoods of passages under causal and masked models, in batches.

Passages of similar length share a batch, padded on the right; a score does not depend on the rest of its batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.models.interface import LanguageModule, features_of, hidden_states
from pretrain.objectives.loss import token_losses

BATCH_TOKENS = 4096  # of one forward pass, padding included

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Report = Callable[[int, int], object]  # receives the tokens read so far, and the total


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a text; for a masked model a pseudo-likelihood, each token masked in turn.

    A diffusion model has an estimated lower bound of the log-likelihood given the number of tokens, so that loss,
    perplexity and bits per byte are upper bounds. Source of the pseudo-likelihood: Salazar et al. 2020,
    https://arxiv.org/abs/1910.14659, section 2.
    """

    log_likelihood: float  # nats, summed over the tokens
    tokens: int  # predicted
    text_bytes: int  # UTF-8
    is_bound: bool = False
    standard_error: float = 0.0  # nats, of the log-likelihood's estimate; 0 unless it is a bound
    draws: Floats | None = field(default=None, repr=False, compare=False)  # (K,) of a bound: the estimate by each

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token; NaN if no token was predicted."""
        return -self.log_likelihood / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; a pseudo-perplexity for a masked model."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text; NaN for an empty text."""
        return -self.log_likelihood / math.log(2) / self.text_bytes if self.text_bytes else math.nan


@dataclass(frozen=True)
class Passage:
    """Token ids that fit into a context; those from index `first` on are the targets."""

    tokens: Ints  # (T,)
    first: int


@dataclass(frozen=True)
class Predicted:
    """Predictions of a passage's N targets, in their order."""

    log_probabilities: Tensor  # of the targets in nats, float32 (N,)
    correct: Tensor  # bool (N,): whether the target is the argmax


def ignore_progress(done: int, total: int) -> None:
    """Discard progress."""


@torch.no_grad()
def causal_predictions(
    model: LanguageModule,
    passages: Sequence[Passage],
    batch_tokens: int = BATCH_TOKENS,
    report: Report = ignore_progress,
) -> list[Predicted]:
    """Return the predictions of each passage's targets from the tokens before them; `first` is at least 1."""
    device = next(model.parameters()).device
    lengths = np.array([len(p.tokens) - 1 if p.first < len(p.tokens) else 0 for p in passages], np.int64)
    predicted = [_nothing()] * len(passages)
    for chosen in batches(lengths, np.ones_like(lengths), batch_tokens, report):
        batch = [passages[i] for i in chosen]
        rows = padded([p.tokens[:-1] for p in batch])  # (R, T)
        counts = [len(p.tokens) - p.first for p in batch]
        positions = np.concatenate(
            [np.arange(p.first - 1, len(p.tokens) - 1) + row * rows.shape[1] for row, p in enumerate(batch)]
        )
        hidden = model(torch.from_numpy(rows).to(device)).flatten(0, 1)
        targets = torch.from_numpy(np.concatenate([p.tokens[p.first :] for p in batch]))
        outputs = predict_targets(model, hidden[torch.from_numpy(positions).to(device)], targets)
        _distribute(predicted, chosen, outputs, counts)
    return predicted


@torch.no_grad()
def masked_predictions(
    model: LanguageModule,
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    batch_tokens: int = BATCH_TOKENS,
    report: Report = ignore_progress,
) -> list[Predicted]:
    """Return the predictions of each passage's targets, each masked in a copy of its own.

    Special tokens are no targets, but for an unknown one: a text must not be likely because it cannot be read.

    The copies of all passages are batched together. The tokenizer must have a mask token. Of a hybrid model the
    position before a mask predicts it, so that the first token of a passage is no target.
    """
    special = np.array(sorted(tokenizer.unscored_ids), np.int64)
    firsts = [max(p.first, int(model.causal)) for p in passages]
    target_positions = [
        first + np.flatnonzero(~np.isin(p.tokens[first:], special)) for p, first in zip(passages, firsts, strict=True)
    ]
    copies = np.array([len(positions) for positions in target_positions], np.int64)
    lengths = np.array([len(p.tokens) for p in passages], np.int64) * (copies > 0)
    predicted = [_nothing()] * len(passages)
    for chosen in batches(lengths, copies, batch_tokens, report):
        rows = padded([passages[i].tokens for i in chosen])  # (R, T)
        positions = np.concatenate([target_positions[i] for i in chosen])
        row_indices = np.repeat(np.arange(len(chosen)), copies[chosen])
        assert tokenizer.mask_id is not None
        size = max(1, batch_tokens // rows.shape[1])  # the copies of one long passage may exceed a batch
        outputs = []
        for start in range(0, len(positions), size):
            indices = row_indices[start : start + size]
            masked = positions[start : start + size]
            outputs.append(_predict_masked(model, rows[indices], lengths[chosen][indices], masked, tokenizer.mask_id))
        log_probabilities, correct = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        _distribute(predicted, chosen, (log_probabilities, correct), copies[chosen].tolist())
    return predicted


def _predict_masked(
    model: LanguageModule, rows: Ints, lengths: Ints, positions: Ints, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Return the prediction of one token of each row (R, T), at `positions` (R,), after masking it."""
    device = next(model.parameters()).device
    row_indices = np.arange(len(rows))
    targets = torch.from_numpy(rows[row_indices, positions])
    rows[row_indices, positions] = mask_id
    hidden = read_padded(model, rows, lengths)
    at = torch.from_numpy(row_indices).to(device), torch.from_numpy(positions - int(model.causal)).to(device)
    return predict_targets(model, hidden[at], targets)


def read_padded(model: LanguageModule, rows: Ints, lengths: Ints) -> Tensor:
    """Return the hidden states (R, T, d) of rows (R, T) of these lengths (R,) with attention to both sides."""
    device = next(model.parameters()).device
    documents = None
    if lengths.min() < rows.shape[1]:  # padding is a document of its own, so that no token attends to it
        documents = torch.from_numpy((np.arange(rows.shape[1]) >= lengths[:, None]).astype(np.int32)).to(device)
    is_causal = torch.zeros(len(rows), dtype=torch.bool, device=device) if model.causal else None
    return hidden_states(model, torch.from_numpy(rows).to(device), documents=documents, is_causal=is_causal)


def predict_targets(model: LanguageModule, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and whether each target is the argmax, on the CPU, in chunks of the logits."""
    head = model.head
    losses, predictions = token_losses(features_of(head, hidden), head, targets.to(hidden.device))
    return -losses.cpu(), predictions.cpu() == targets.cpu()


def _nothing() -> Predicted:
    return Predicted(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def _distribute(predicted: list[Predicted], chosen: Ints, outputs: tuple[Tensor, Tensor], counts: list[int]) -> None:
    """Split the outputs of a batch into those of its passages."""
    split = (output.split(counts) for output in outputs)
    for i, log_probabilities, correct in zip(chosen.tolist(), *split, strict=True):
        predicted[i] = Predicted(log_probabilities, correct)


def batches(lengths: Ints, copies: Ints, batch_tokens: int, report: Report) -> Iterator[Ints]:
    """Yield the indices of passages to batch, longest first: one passage, or more in at most `batch_tokens` tokens.

    Passages of length 0 are left out.
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


def padded(rows: Sequence[Ints]) -> Ints:
    """Return rows of unequal length as one array (R, T), zeros after the shorter ones."""
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), int(lengths.max())), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded
