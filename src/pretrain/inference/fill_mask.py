"""Predictions of a masked model for each mask of a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError
from pretrain.models.transformer import Transformer


@dataclass(frozen=True)
class Prediction:
    """One answer for one mask."""

    token: str
    probability: float
    text: str  # the whole text with this answer in place of the mask, other masks still open


@torch.inference_mode()
def mask_probabilities(model: Transformer, tokens: Sequence[int], mask_id: int, suppress_tokens: Tensor) -> Tensor:
    """Return the probability of every token at every mask of a text, float32 (masks, V).

    The first token must not be a mask. `suppress_tokens` is bool (V,): tokens that are no answer. A model that also
    continues
    texts predicts a mask at the place before it, as it does the next token. Raises ConfigError where the text has no
    mask or is too long.
    """
    if len(tokens) > model.config.context_length:
        raise ConfigError(
            f"the text has {len(tokens)} tokens, the model's context {model.config.context_length}. Try a shorter text."
        )
    row = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    places = (row[0] == mask_id).nonzero().squeeze(1)
    if not len(places):
        raise ConfigError("the text has no [MASK] to fill. Try: The quick [MASK] fox jumps over the lazy dog.")
    both_ways = torch.zeros(1, dtype=torch.bool, device=row.device) if model.causal else None
    hidden = model(row, is_causal=both_ways)[0]
    logits: Tensor = model.head(hidden[places - int(model.causal)])
    return logits.float().masked_fill(suppress_tokens, -torch.inf).softmax(-1)


def text_with_masks(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of tokens with masks that are still open shown as [MASK], and other special tokens left out.

    All is decoded at once: what stands before a word decides whether it has a space.
    """
    mask = tokenizer.token(tokenizer.mask_id) if tokenizer.mask_id is not None else ""
    kept = [token for token in tokens if token == tokenizer.mask_id or token not in tokenizer.special_ids]
    first, *others = tokenizer.decode(kept, skip_special=False).split(mask) if mask else [tokenizer.decode(kept)]
    text = first
    for part in others:
        took_space = tokenizer.mask_takes_space and text and not text[-1].isspace()
        text += f"{' ' if took_space else ''}[MASK]{part}"
    return text
