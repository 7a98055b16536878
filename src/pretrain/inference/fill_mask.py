"""Predictions of a masked model for each mask of a text, and the text with tokens for its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    filled: FilledText, best: Sequence[Sequence[int]], probabilities: Sequence[Sequence[float]]
) -> list[list[Prediction]]:
    """Return the predictions for each mask of a text, from its best tokens (masks, k) and their probabilities."""
    found = []
    for position, ids, values in zip(filled.positions, best, probabilities, strict=True):
        texts = [filled.text({position: token}) for token in ids]
        tokens = [filled.tokenizer.decode([token]) for token in ids]
        found.append([Prediction(*parts) for parts in zip(tokens, values, texts, strict=True)])
    return found


class FilledText:
    """A text with masks, in which tokens replace the masks; what is no mask stays as it was written."""

    def __init__(self, tokenizer: Tokenizer, text: str, tokens: Sequence[int]) -> None:
        """`tokens` are the ids of the text, in which [MASK] is the tokenizer's mask, between BOS and EOS."""
        self.tokenizer = tokenizer
        self.tokens = list(tokens)
        self.positions = [position for position, token in enumerate(tokens) if token == tokenizer.mask_id]
        mask = tokenizer.token(tokenizer.mask_id) if tokenizer.mask_id is not None else "[MASK]"
        self._first, *self._behind = text.replace("[MASK]", mask).split(mask)

    def text(self, found: Mapping[int, int]) -> str:
        """Return the text with tokens for masks, by position; the other masks are [MASK].

        Tokens of masks beside each other are decoded together: they may be parts of one word or character.
        """
        row = [found.get(position, token) for position, token in enumerate(self.tokens)]
        if len(self._behind) != len(self.positions):  # the tokenizer takes something else for its mask, too
            return text_with_masks(self.tokenizer, row)
        text, start = self._first, 0
        while start < len(self.positions):
            end = self._end_of_run(start, found)
            first, last = self.positions[start], self.positions[end - 1]
            is_filled = first in found
            text = self._joined(text, row[max(1, first - 2) : first], row[first : last + 1]) if is_filled else (
                text + "[MASK]"
            )  # fmt: skip
            text, start = text + self._behind[end - 1], end
        return text

    def _end_of_run(self, start: int, found: Mapping[int, int]) -> int:
        """Return the number after the last mask that is decoded together with mask number `start`."""
        end = start + 1
        while (
            end < len(self.positions)
            and self.positions[end] == self.positions[end - 1] + 1
            and self._behind[end - 1] in ("", " ")
            and self.positions[end - 1] in found
            and self.positions[end] in found
        ):
            end += 1
        return end

    def _joined(self, text: str, before: list[int], tokens: list[int]) -> str:
        """Return the text with tokens after it; `before` are the ids just before them, two at most.

        A space before the mask and one that the tokens bring are the same. White space that no token stands for belongs
        to the mask, as RoBERTa's takes it and WordPiece drops all: a token that brings none continues the word before.
        """
        decode, added = self.tokenizer.decode, self.tokenizer.decode(tokens)
        if before:
            alone, both = (decode([before[-1], *more], skip_special=False) for more in ([], tokens))
            added = both.removeprefix(alone) if both.startswith(alone) else added
        has_gap = text[-1:].isspace() and not decode(before, skip_special=False)[-1:].isspace()
        brings_space = self.tokenizer.token(tokens[0])[:1].isspace()  # else only the decoder writes it between words
        if added.startswith(" "):
            is_written = text[-1:].isspace() and bool(added.strip())
            is_double = has_gap or is_written or not (brings_space or text[-1:].isalnum())
            return text + (added[1:] if is_double else added)
        return (text.removesuffix(" ") if has_gap and before else text) + added


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
