"""Who sees whom in a model: never the future, never another document, and with a cache what it sees without."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import Rows
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.inference.generate import continue_prompts
from pretrain.inference.sampling import Sampling
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch

UNMOVED = 1e-6  # logits that change by more depend on what was changed; they are of the order of 1
MOVED = 1e-3
ALIKE = 1e-4  # between two ways to compute the same
_SEARCHED_ROWS = 256


@torch.no_grad()
def no_future(context: Context) -> CheckResult:
    """A causal position's logits do not depend on the tokens after it, and do on the one before it."""
    if not context.config.objective.causal:
        raise NotApplicableError(f"objective={context.config.objective.kind} looks both ways")
    model, ahead, behind, places = context.randomized_model(), 0.0, np.inf, 0
    for batch in _batches(context):
        causal = None if batch.is_causal is None else torch.ones_like(batch.is_causal)
        before = _logits(model, batch, batch.tokens, causal)
        for place in _places(batch):
            later, one = batch.tokens.clone(), batch.tokens.clone()
            later[:, place + 1 :] = (later[:, place + 1 :] + 1) % model.vocab_size
            one[:, place] = (one[:, place] + 1) % model.vocab_size
            ahead = max(ahead, float((_logits(model, batch, later, causal) - before)[:, : place + 1].abs().max()))
            behind = min(behind, float((_logits(model, batch, one, causal) - before)[:, place + 1].abs().max()))
            places += 1
    return CheckResult(
        ahead <= UNMOVED and behind > MOVED,
        f"at {places} places, new tokens behind one moved logits up to it by {ahead:.1e}; a new token there moved the "
        f"next one's by {behind:.1e}",
    )


@torch.no_grad()
def both_sides(context: Context) -> CheckResult:
    """A place of a row with masks is predicted from the tokens behind it as well as from those before it."""
    if not context.config.objective.fills_masks:
        raise NotApplicableError(f"objective={context.config.objective.kind} fills no masks")
    model, batch = context.randomized_model(), context.batch(4)
    batch = _in_one_document(batch)
    rows = None if batch.is_causal is None else torch.zeros_like(batch.is_causal)
    middle = batch.tokens.shape[1] // 2
    before, moved = _logits(model, batch, batch.tokens, rows), []
    for place in (middle - 1, middle + 1):
        changed = batch.tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % model.vocab_size
        moved.append(float((_logits(model, batch, changed, rows) - before)[:, middle].abs().amax(-1).min()))
    return CheckResult(
        min(moved) > MOVED, f"a new token before a place moved it by {moved[0]:.1e}, behind {moved[1]:.1e}"
    )


@torch.no_grad()
def documents_apart(context: Context) -> CheckResult:
    """Documents that share a row see nothing of one another: each is computed as if it stood alone."""
    if not context.config.data.document_mask:
        raise NotApplicableError("data.document_mask=false: documents of one row are meant to see one another")
    model, (rows, samples) = context.randomized_model(), _shared_rows(context)
    batch = context.collate(rows, samples)
    documents = torch.from_numpy(rows.documents).to(context.device)
    before = _logits(model, batch, batch.tokens, batch.is_causal)
    second = documents == 1
    changed = torch.where(second, (batch.tokens + 1) % model.vocab_size, batch.tokens)
    moved = (_logits(model, batch, changed, batch.is_causal) - before).abs().amax(-1)
    leaked, own = float(moved[~second & (documents >= 0)].max()), float(moved[second].max())
    alone = max(_difference_alone(model, batch, documents, before, row) for row in range(len(samples)))
    return CheckResult(
        leaked <= UNMOVED and alone <= ALIKE and own > MOVED,
        f"in {len(samples)} rows, a new 2nd document moved the others by {leaked:.1e}, itself by {own:.1e}; "
        f"packed and alone differ by {alone:.1e}",
    )


@torch.no_grad()
def cached_generation(context: Context) -> CheckResult:
    """Token by token with kept keys and values gives what reading the whole text anew for each token gives."""
    if not context.config.objective.causal:
        raise NotApplicableError(f"objective={context.config.objective.kind} does not continue texts")
    model, length = context.randomized_model(), context.shape.context_length
    new = max(1, length // 2)
    rows = context.stream.rows(np.arange(2)).tokens
    prompts = [rows[0, : max(1, length // 4)].tolist(), rows[1, : max(1, length // 3)].tolist()]
    suppress_tokens = torch.zeros(model.vocab_size, dtype=torch.bool, device=context.device)
    with_cache, without = (
        [
            [each and each.token for each in step]
            for step in continue_prompts(
                model, prompts, max_new_tokens=new, sampling=Sampling(temperature=0.0), end_id=-1,
                suppress_tokens=suppress_tokens, use_cache=use_cache,
            )
        ]
        for use_cache in (True, False)
    )  # fmt: skip
    differing = sum(a != b for a, b in zip(with_cache, without, strict=True))
    return CheckResult(not differing, f"of {new} tokens behind each of 2 prompts, {differing} differ")


def _batches(context: Context) -> Iterator[Batch]:
    """Yield rows in which documents meet, and rows as if each were one document: attention takes different ways."""
    if context.config.data.document_mask:
        yield context.collate(*_shared_rows(context))
    yield _in_one_document(context.batch(4))


def _in_one_document(batch: Batch) -> Batch:
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    return Batch(batch.tokens, positions, None, batch.targets, batch.places, batch.samples, is_causal=batch.is_causal)


def _places(batch: Batch) -> tuple[int, ...]:
    """Return places after which tokens are changed: near both ends, and in between."""
    length = batch.tokens.shape[1]
    return tuple(sorted({0, length // 3, length // 2, length - 2} & set(range(length - 1))))


def _logits(model: Transformer, batch: Batch, tokens: Tensor, is_causal: Tensor | None) -> Tensor:
    """Return logits (B, T, V) of other tokens (B, T) in the places of a batch."""
    hidden = model(tokens, batch.positions, batch.documents, is_causal=is_causal)
    return model.head(hidden).float()


def _shared_rows(context: Context) -> tuple[Rows, np.ndarray]:
    """Return up to four rows in which documents meet, and their places in the stream.

    Where the corpus has no such row, its documents being long, rows are cut into three documents.
    """
    samples = np.arange(_SEARCHED_ROWS)
    rows = context.stream.rows(samples)
    shared = np.flatnonzero(rows.documents.max(axis=1) > 0)[:4]
    if len(shared):
        return _selected(rows, shared), samples[shared]
    cut = _selected(rows, samples[:4])
    length = cut.tokens.shape[1]
    documents = np.minimum(np.arange(length) // max(1, length // 3), 2)
    starts = np.array([int(np.argmax(documents == number)) for number in documents])
    shape = cut.tokens.shape
    return (
        Rows(
            cut.tokens,
            cut.next_tokens,
            np.broadcast_to(np.arange(length) - starts, shape).copy(),
            np.broadcast_to(documents, shape).astype(np.int32),
        ),
        samples[:4],
    )


def _selected(rows: Rows, which: np.ndarray) -> Rows:
    return Rows(rows.tokens[which], rows.next_tokens[which], rows.positions[which], rows.documents[which])


def _difference_alone(model: Transformer, batch: Batch, documents: Tensor, packed: Tensor, row: int) -> float:
    """Return by how much the logits of a row's first two documents differ from what each gives by itself."""
    causal = None if batch.is_causal is None else batch.is_causal[row : row + 1]
    largest = 0.0
    for number in (0, 1):
        part = documents[row] == number
        positions = torch.arange(int(part.sum()), device=part.device).unsqueeze(0)
        alone = model.head(model(batch.tokens[row, part].unsqueeze(0), positions, None, is_causal=causal))
        largest = max(largest, float((alone[0] - packed[row, part]).abs().max()))
    return largest
