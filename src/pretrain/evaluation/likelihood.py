"""How likely a model finds a text, for both families."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models.transformer import Transformer

_ROWS = 32  # masked copies of a text scored at once


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
        """Mean cross-entropy in nats per token."""
        return -self.log_likelihood / max(1, self.tokens)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; a pseudo-perplexity for a masked model."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits needed per byte of text."""
        return -self.log_likelihood / math.log(2) / max(1, self.text_bytes)


@torch.inference_mode()
def causal_log_likelihoods(model: Transformer, tokens: Sequence[int]) -> Tensor:
    """Return the log-probability in nats of every token but the first, float32 (len(tokens) - 1,).

    A text longer than the context is read in windows that do not overlap but for one token.
    """
    device = next(model.parameters()).device
    row = torch.tensor([list(tokens)], device=device)
    found = []
    for start in range(0, row.shape[1] - 1, model.config.context_length):
        inputs = row[:, start : start + model.config.context_length]
        targets = row[0, start + 1 : start + 1 + inputs.shape[1]]
        logits = model.head(model(inputs)[0, : len(targets)]).float()
        found.append(-F.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(found) if found else torch.zeros(0)


@torch.inference_mode()
def masked_log_likelihoods(
    model: Transformer, tokens: Sequence[int], mask_id: int, special_ids: frozenset[int]
) -> Tensor:
    """Return the log-probability in nats of every token that is not special, each hidden in turn, float32."""
    device = next(model.parameters()).device
    row = torch.tensor(list(tokens), device=device)
    found = []
    for start in range(0, len(row), model.config.context_length):
        window = row[start : start + model.config.context_length]
        places = [i for i, token in enumerate(window.tolist()) if token not in special_ids]
        for first in range(0, len(places), _ROWS):
            chosen = torch.tensor(places[first : first + _ROWS], device=device)
            copies = window.repeat(len(chosen), 1)
            each = torch.arange(len(chosen), device=device)
            copies[each, chosen] = mask_id
            logits = model.head(model(copies)[each, chosen]).float()
            found.append(-F.cross_entropy(logits, window[chosen], reduction="none"))
    return torch.cat(found) if found else torch.zeros(0)
