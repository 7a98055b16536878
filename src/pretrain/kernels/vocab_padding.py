"""Ids behind a tokenizer's last, which `model.vocab_multiple` adds: logits of a head that predicts none of them."""

import torch
from torch import Tensor


def exclude_padding(head: object, n_tokens: int) -> None:
    """Have a head over the vocabulary leave out the logits from id `n_tokens` on, in losses and in its own outputs."""
    head.n_tokens = n_tokens  # type: ignore[attr-defined]


def n_tokens_of(head: object) -> int | None:
    """Return the number of ids that a head predicts, from 0 on; None where that is every row of its matrix."""
    n_tokens = getattr(head, "n_tokens", None)
    return n_tokens if isinstance(n_tokens, int) else None


def hide_padding(logits: Tensor, n_tokens: int | None, start: int = 0) -> Tensor:
    """Return logits (..., V), of ids from `start` on, with minus infinity for excluded ids, written in place."""
    if n_tokens is not None:
        logits[..., max(0, n_tokens - start) :] = -torch.inf
    return logits
