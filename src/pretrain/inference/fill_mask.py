"""Predictions of a masked model for each mask of a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.inference.sampling import check_logits
from pretrain.models.interface import LanguageModule, hidden_states


@dataclass(frozen=True)
class Prediction:
    """One predicted token for one mask."""

    token: str
    probability: float
    text: str  # the whole text with this token instead of the mask, and [MASK] for the others


@torch.inference_mode()
def mask_probabilities(
    model: LanguageModule, tokens: Sequence[int], mask_id: int, suppress_tokens: Tensor, shift_targets: bool = False
) -> Tensor:
    """Return the probability of every token at every mask of a text, float32 (masks, V).

    `suppress_tokens` is bool (V,): tokens that are never predicted. With `shift_targets` the position before a mask
    predicts it, so the first token must not be a mask. Raises ConfigError if the text has no mask or is too long,
    DivergenceError for NaN.
    """
    if len(tokens) > model.config.context_length:
        raise ConfigError(
            f"the text has {len(tokens)} tokens, the model's context {model.config.context_length}. Try a shorter text."
        )
    row = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    check_has_mask(tokens, mask_id)
    positions = (row[0] == mask_id).nonzero().squeeze(1)
    bidirectional = torch.zeros(1, dtype=torch.bool, device=row.device) if model.causal else None
    hidden = hidden_states(model, row, is_causal=bidirectional)[0]
    logits: Tensor = model.head(hidden[positions - int(shift_targets)])
    check_logits(logits)
    return logits.float().masked_fill(suppress_tokens, -torch.inf).softmax(-1)


def check_has_mask(tokens: Sequence[int], mask_id: int) -> None:
    """Raise ConfigError for a text without a mask."""
    if mask_id not in tokens:
        raise ConfigError("the text has no [MASK] to fill. Try: The quick [MASK] fox jumps over the lazy dog.")


def predictions(
    tokenizer: Tokenizer, tokens: Sequence[int], best: Sequence[Sequence[int]], probabilities: Sequence[Sequence[float]]
) -> list[list[Prediction]]:
    """Return the predictions for each mask of a row of ids, from their best tokens and the probabilities of these."""
    positions = [position for position, token in enumerate(tokens) if token == tokenizer.mask_id]
    found = []
    for position, ids, values in zip(positions, best, probabilities, strict=True):
        rows = [[*tokens[:position], token, *tokens[position + 1 :]] for token in ids]
        texts = [text_with_masks(tokenizer, row) for row in rows]
        found.append(
            [Prediction(tokenizer.decode([new]), p, text) for new, p, text in zip(ids, values, texts, strict=True)]
        )
    return found


def text_with_masks(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of tokens with masks as [MASK] and without other special tokens.

    All tokens are decoded together: the token before a word decides whether the word has a space.
    """
    mask = tokenizer.token(tokenizer.mask_id) if tokenizer.mask_id is not None else ""
    shown = [token for token in tokens if token == tokenizer.mask_id or token not in tokenizer.special_ids]
    first, *others = tokenizer.decode(shown, skip_special=False).split(mask) if mask else [tokenizer.decode(shown)]
    text = first
    for part in others:
        took_space = tokenizer.mask_takes_space and text and not text[-1].isspace()
        text += f"{' ' if took_space else ''}[MASK]{part}"
    return text
