"""Who sees whom in a model: never the future, never another document, and with a cache what it sees without."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pretrain.data.collate import Rows
from pretrain.doctor.check import Finding, NotApplicableError
from pretrain.doctor.context import Subject
from pretrain.inference.generate import continue_prompts
from pretrain.inference.sampling import Sampling
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch

UNMOVED = 1e-6  # logits that change by more depend on what was changed; they are of the order of 1
MOVED = 1e-3
ALIKE = 1e-4  # between two ways to compute the same
_SEARCHED_ROWS = 256


@torch.no_grad()
def no_future(subject: Subject) -> Finding:
    """A causal position's logits do not depend on the tokens after it, and do on the one before it."""
    if not subject.config.objective.causal:
        raise NotApplicableError(f"objective={subject.config.objective.kind} looks both ways")
    model, ahead, behind, places = subject.lively_model(), 0.0, np.inf, 0
    for batch in _batches(subject):
        causal = None if batch.causal_rows is None else torch.ones_like(batch.causal_rows)
        before = _logits(model, batch, batch.tokens, causal)
        for place in _places(batch):
            later, one = batch.tokens.clone(), batch.tokens.clone()
            later[:, place + 1 :] = (later[:, place + 1 :] + 1) % model.vocab_size
            one[:, place] = (one[:, place] + 1) % model.vocab_size
            ahead = max(ahead, float((_logits(model, batch, later, causal) - before)[:, : place + 1].abs().max()))
            behind = min(behind, float((_logits(model, batch, one, causal) - before)[:, place + 1].abs().max()))
            places += 1
    return Finding(
        ahead <= UNMOVED and behind > MOVED,
        f"at {places} places, new tokens behind one moved logits up to it by {ahead:.1e}; a new token there moved the "
        f"next one's by {behind:.1e}",
    )


@torch.no_grad()
def both_sides(subject: Subject) -> Finding:
    """A place of a row with masks is predicted from the tokens behind it as well as from those before it."""
    if not subject.config.objective.fills_masks:
        raise NotApplicableError(f"objective={subject.config.objective.kind} fills no masks")
    model, batch = subject.lively_model(), subject.batch(4)
    batch = _in_one_document(batch)
    rows = None if batch.causal_rows is None else torch.zeros_like(batch.causal_rows)
    middle = batch.tokens.shape[1] // 2
    before, moved = _logits(model, batch, batch.tokens, rows), []
    for place in (middle - 1, middle + 1):
        changed = batch.tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % model.vocab_size
        moved.append(float((_logits(model, batch, changed, rows) - before)[:, middle].abs().amax(-1).min()))
    return Finding(min(moved) > MOVED, f"a new token before a place moved it by {moved[0]:.1e}, behind {moved[1]:.1e}")


@torch.no_grad()
def documents_apart(subject: Subject) -> Finding:
    """Documents that share a row see nothing of one another: each is computed as if it stood alone."""
    if not subject.config.data.document_mask:
        raise NotApplicableError("data.document_mask=false: documents of one row are meant to see one another")
    model, (rows, samples) = subject.lively_model(), _shared_rows(subject)
    batch = subject.make_batch(rows, samples)
    documents = torch.from_numpy(rows.documents).to(subject.device)
    before = _logits(model, batch, batch.tokens, batch.causal_rows)
    second = documents == 1
    changed = torch.where(second, (batch.tokens + 1) % model.vocab_size, batch.tokens)
    moved = (_logits(model, batch, changed, batch.causal_rows) - before).abs().amax(-1)
    leaked, own = float(moved[~second & (documents >= 0)].max()), float(moved[second].max())
    alone = max(_difference_alone(model, batch, documents, before, row) for row in range(len(samples)))
    return Finding(
        leaked <= UNMOVED and alone <= ALIKE and own > MOVED,
        f"in {len(samples)} rows, a new 2nd document moved the others by {leaked:.1e}, itself by {own:.1e}; "
        f"packed and alone differ by {alone:.1e}",
    )


@torch.no_grad()
def cached_generation(subject: Subject) -> Finding:
    """Token by token with kept keys and values gives what reading the whole text anew for each token gives."""
    if not subject.config.objective.causal:
        raise NotApplicableError(f"objective={subject.config.objective.kind} does not continue texts")
    model, length = subject.lively_model(), subject.shape.context_length
    new = max(1, length // 2)
    rows = subject.stream.rows(np.arange(2)).tokens
    prompts = [rows[0, : max(1, length // 4)].tolist(), rows[1, : max(1, length // 3)].tolist()]
    forbidden = torch.zeros(model.vocab_size, dtype=torch.bool, device=subject.device)
    with_cache, without = (
        [
            [each and each.token for each in step]
            for step in continue_prompts(
                model, prompts, max_new_tokens=new, sampling=Sampling(temperature=0.0), end_id=-1,
                forbidden=forbidden, use_cache=use_cache,
            )
        ]
        for use_cache in (True, False)
    )  # fmt: skip
    differing = sum(a != b for a, b in zip(with_cache, without, strict=True))
    return Finding(not differing, f"of {new} tokens behind each of 2 prompts, {differing} differ")


def _batches(subject: Subject) -> Iterator[Batch]:
    """Yield rows in which documents meet, and rows as if each were one document: attention takes different ways."""
    if subject.config.data.document_mask:
        yield subject.make_batch(*_shared_rows(subject))
    yield _in_one_document(subject.batch(4))


def _in_one_document(batch: Batch) -> Batch:
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    return Batch(
        batch.tokens, positions, None, batch.targets, batch.places, batch.samples, causal_rows=batch.causal_rows
    )


def _places(batch: Batch) -> tuple[int, ...]:
    """Return places after which tokens are changed: near both ends, and in between."""
    length = batch.tokens.shape[1]
    return tuple(sorted({0, length // 3, length // 2, length - 2} & set(range(length - 1))))


def _logits(model: Transformer, batch: Batch, tokens: Tensor, causal_rows: Tensor | None) -> Tensor:
    """Return logits (B, T, V) of other tokens (B, T) in the places of a batch."""
    hidden = model(tokens, batch.positions, batch.documents, causal_rows=causal_rows)
    return model.head(hidden).float()


def _shared_rows(subject: Subject) -> tuple[Rows, np.ndarray]:
    """Return up to four rows in which documents meet, and their places in the stream.

    Where the corpus has no such row, its documents being long, rows are cut into three documents.
    """
    samples = np.arange(_SEARCHED_ROWS)
    rows = subject.stream.rows(samples)
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
    causal = None if batch.causal_rows is None else batch.causal_rows[row : row + 1]
    largest = 0.0
    for number in (0, 1):
        part = documents[row] == number
        positions = torch.arange(int(part.sum()), device=part.device).unsqueeze(0)
        alone = model.head(model(batch.tokens[row, part].unsqueeze(0), positions, None, causal_rows=causal))
        largest = max(largest, float((alone[0] - packed[row, part]).abs().max()))
    return largest
