"""What the objective has the model predict: the next token of the same document, or hidden tokens in their shares."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.collate import Rows
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.objectives.batch import IGNORE, Batch
from pretrain.objectives.config import HybridConfig, MaskingConfig, MaskingUnit

MASKABLE_TOKENS = 50_000  # drawn from
MAX_ROWS = 2048
SIGMAS = 4.5  # 7 in a million fair draws are further off
_WORD_TOKENS = 4.0  # of a word, more than on average

Bools = NDArray[np.bool_]


def next_tokens(context: Context) -> CheckResult:
    """Every target of a causal row is the token that follows in its document, and no document predicts the next."""
    if not context.config.objective.causal:
        raise NotApplicableError(f"objective={context.config.objective.kind} predicts hidden tokens only")
    rows, batch = _draw(context)
    causal = np.ones(len(rows.tokens), bool) if batch.is_causal is None else batch.is_causal.numpy()
    tokens, documents, targets = rows.tokens[causal], rows.documents[causal], batch.targets.numpy()[causal]
    same = (documents[:, 1:] == documents[:, :-1]) & (documents[:, :-1] >= 0)
    if not context.config.data.document_mask:  # documents of a row are not told apart, and this one may end here
        same &= tokens[:, :-1] != context.prepared.tokenizer.eos_id
    wrong = int((targets[:, :-1] != tokens[:, 1:])[same].sum())
    beyond = targets[:, :-1][~same]  # the last token of a piece: the document goes on in another row, or nowhere
    ends = tokens[:, :-1][~same] == context.prepared.tokenizer.eos_id
    wrong += int((beyond[ends & context.config.data.document_mask] != IGNORE).sum())
    untouched = bool((batch.tokens.numpy()[causal] == tokens).all())
    return CheckResult(
        not wrong and untouched and bool(same.any()),
        f"of {int((targets != IGNORE).sum()):,} targets in {len(targets):,} rows, {wrong:,} are wrong"
        + ("" if untouched else "; the tokens read were changed"),
    )


def mask_shares(context: Context) -> CheckResult:
    """Hidden tokens are as many as asked for, and replaced by [MASK], by others or by nothing in the shares asked for.

    The bounds are those of a binomial count; a rate may also lose what whole words, spans and whole numbers leave.
    """
    settings, draw = _masked_draw(context)
    rate, total = settings.mask_probability, int(draw.maskable.sum())
    hidden = int(draw.hidden.sum())
    vocabulary = context.prepared.tokenizer.vocab_size
    of_random = settings.random_token_prob / vocabulary  # a random token may be the same, or [MASK]
    kept_share = 1.0 - settings.mask_token_prob - settings.random_token_prob
    shown, original = draw.shown[draw.hidden], draw.original[draw.hidden]
    masked = int((shown == context.prepared.tokenizer.mask_id).sum())
    kept = int((shown == original).sum())
    within = [
        abs(hidden - rate * total) <= _bound(total, rate) + draw.rows * _left_over(settings),
        _near(masked, hidden, settings.mask_token_prob + of_random),
        _near(kept, hidden, kept_share + of_random),
        _near(hidden - masked - kept, hidden, settings.random_token_prob - 2 * of_random),
    ]
    return CheckResult(
        all(within),
        f"{hidden / max(1, total):.2%} of {total:,} tokens hidden (asked: {rate:.0%}): {masked / max(1, hidden):.1%} "
        f"[MASK], {(hidden - masked - kept) / max(1, hidden):.1%} random, {kept / max(1, hidden):.1%} kept "
        f"(asked: {settings.mask_token_prob:.0%}, {settings.random_token_prob:.0%}, {kept_share:.0%})",
    )


def mask_places(context: Context) -> CheckResult:
    """Special tokens and padding are never hidden, targets are what was hidden, and nothing else is changed."""
    _, draw = _masked_draw(context)
    special = int((draw.hidden & ~draw.maskable).sum())
    wrong = int((draw.targets != draw.original)[draw.hidden].sum())
    changed = int(((draw.shown != draw.original) & ~draw.hidden).sum())
    return CheckResult(
        not (special or wrong or changed) and bool(draw.hidden.any()),
        f"of {int(draw.hidden.sum()):,} hidden tokens, {special:,} are special or padding and {wrong:,} have another "
        f"target; {changed:,} others were changed",
    )


def masked_rows(context: Context) -> CheckResult:
    """A hybrid objective masks its share of any rows in a row."""
    settings = context.config.objective
    if not isinstance(settings, HybridConfig):
        raise NotApplicableError(f"objective={settings.kind} makes rows of one kind")
    _, batch = _draw(context)
    assert batch.is_causal is not None
    masked, rows = int((~batch.is_causal).sum()), len(batch.is_causal)
    off = abs(masked - settings.masked_rows * rows)
    return CheckResult(
        off <= 1 + math.log2(rows), f"{masked:,} of {rows:,} rows are masked (asked: {settings.masked_rows:.0%})"
    )


@dataclass(frozen=True)
class _Masked:
    """Masked rows before and after, with a place for every token; all arrays (rows, T)."""

    rows: int
    original: NDArray[np.int64]
    shown: NDArray[np.int64]
    targets: NDArray[np.int64]  # of the token at its own place; IGNORE elsewhere
    hidden: Bools
    maskable: Bools


def _draw(context: Context) -> tuple[Rows, Batch]:
    """Return enough rows of the user's own length, as read and as the objective makes them, on the processor."""
    config = context.config
    samples = np.arange(min(MAX_ROWS, max(8, math.ceil(MASKABLE_TOKENS / config.model.context_length))))
    rows = context.rows_of(context.prepared, config) if context.prepared.stream is None else context.stream
    found = rows.rows(samples)
    return found, context.objective.collate(found, torch.from_numpy(samples))


def _masked_draw(context: Context) -> tuple[MaskingConfig, _Masked]:
    settings = context.config.objective
    if not isinstance(settings, MaskingConfig):
        raise NotApplicableError(f"objective={settings.kind} hides no tokens")
    rows, batch = _draw(context)
    hybrid = isinstance(settings, HybridConfig)
    chosen = np.ones(len(rows.tokens), bool)
    if batch.is_causal is not None and hybrid:
        chosen = ~batch.is_causal.numpy()
    documents, original = rows.documents[chosen], rows.tokens[chosen]
    targets = _at_their_places(batch, shifted=hybrid)[chosen]
    special = np.array(sorted(context.prepared.tokenizer.special_ids))
    maskable = (documents >= 0) & ~np.isin(original, special)
    if hybrid:  # what begins a piece has no place before it from which it could be predicted
        maskable[:, 0] = False
        maskable[:, 1:] &= documents[:, 1:] == documents[:, :-1]
    shown = batch.tokens.numpy()[chosen]
    return settings, _Masked(int(chosen.sum()), original, shown, targets, targets != IGNORE, maskable)


def _at_their_places(batch: Batch, shifted: bool) -> NDArray[np.int64]:
    """Return targets (B, T), each where the token stands that was hidden; `shifted`: it is predicted one before."""
    dense = torch.full_like(batch.tokens, IGNORE)
    if batch.places is None:
        dense = batch.targets.clone()
    else:
        row, slot = (batch.targets != IGNORE).nonzero(as_tuple=True)
        dense[row, batch.places[row, slot]] = batch.targets[row, slot]
    if shifted:
        dense = torch.cat((torch.full_like(dense[:, :1], IGNORE), dense[:, :-1]), dim=1)
    found: NDArray[np.int64] = dense.numpy()
    return found


def _left_over(settings: MaskingConfig) -> float:
    """Return by how many tokens a row may miss its rate: a part of a token, or of a word or span that does not fit."""
    if settings.unit is MaskingUnit.token:
        return 0.5
    return 2 * (settings.mean_span if settings.unit is MaskingUnit.span else _WORD_TOKENS)


def _near(count: int, total: int, share: float) -> bool:
    return abs(count - share * total) <= _bound(total, share)


def _bound(total: int, share: float) -> float:
    return SIGMAS * math.sqrt(total * max(0.0, share * (1.0 - share))) + 1.0
