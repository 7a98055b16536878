"""Attention of packed rows document by document, on a CPU.

A dense mask makes attention compute a score for every pair of positions of a row, also for the pairs that belong to two
documents. Here the documents of a batch are gathered into groups of like length, each padded to its longest, and every
group attends by itself, so that fine-tuning on sentences computes few scores that a mask would throw away.

Shapes: B batch, T positions, H query heads, K key and value heads, D head_dim, N documents of a group, L their length.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.models.masks import AttentionMask, dense_mask, mask_mod

Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask, float], Tensor]

_SHORTEST = 16  # positions: shorter documents share a group
_MOST_PAIRS = 0.6  # of the pairs of a dense mask; with more, gathering costs what it saves
_SHORTEST_ROW = {True: 256, False: 512}  # by whether attention has dropout, which no fused kernel of a CPU computes


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of like length, N of them, padded to L."""

    positions: Tensor  # int64 (N, L): of each token in the flattened batch; padding has its document's last
    filled: Tensor  # bool (N, L): False for padding
    mask: AttentionMask


def document_groups(
    causal: bool, window: int | None, documents: Tensor, dropout: bool
) -> tuple[DocumentGroup, ...] | None:
    """Return the groups of a batch's documents, int (B, T), or None where a dense mask is as fast or the only way.

    Positions of equal number in a row are one document, also where they are not contiguous: then there are no groups.
    """
    rows, length = documents.shape
    if length < _SHORTEST_ROW[dropout] or documents.device.type != "cpu":
        return None
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    lengths = torch.diff(starts, append=torch.tensor([rows * length]))
    padded = (2 ** torch.ceil(torch.log2(lengths.float()))).long().clamp(min=_SHORTEST)
    if int((padded**2).sum()) > _MOST_PAIRS * rows * length**2 or not _are_contiguous(documents, starts):
        return None
    return tuple(
        _group(causal, window, starts[padded == size], lengths[padded == size]) for size in padded.unique().tolist()
    )


def _are_contiguous(documents: Tensor, starts: Tensor) -> bool:
    """Return whether no document of (B, T) begins twice in its row; `starts` are indices into the flattened batch."""
    row = starts // documents.shape[1]
    names = torch.stack((row, documents.flatten()[starts].long()))
    return names.unique(dim=1).shape[1] == len(starts)


def _group(causal: bool, window: int | None, starts: Tensor, lengths: Tensor) -> DocumentGroup:
    """Return the group of documents that start at `starts` (N,) of the flattened batch and have `lengths` (N,)."""
    offsets = torch.arange(int(lengths.max()))
    filled = offsets < lengths.unsqueeze(1)
    positions = starts.unsqueeze(1) + torch.minimum(offsets, lengths.unsqueeze(1) - 1)
    rule = dense_mask(mask_mod(causal, window), offsets, offsets)
    # padding attends to padding: a query without a key would make the gradient NaN
    allowed = rule & (filled[:, None, None, :] | ~filled[:, None, :, None])
    return DocumentGroup(positions, filled, AttentionMask(causal, allowed))


def attend_in_groups(
    attend: Attend,
    inputs: tuple[Tensor, Tensor, Tensor],
    groups: tuple[DocumentGroup, ...],
    dropout: float,
) -> Tensor:
    """Return attention (B, H, T, D) of queries (B, H, T, D) over keys and values (B, K, T, D), group by group."""
    rows, heads, length, width = inputs[0].shape
    flat = [each.transpose(1, 2).flatten(0, 1) for each in inputs]  # (B x T, heads, D)
    outputs = list[Tensor]()
    for group in groups:
        taken = group.positions.flatten()
        q, k, v = (
            each.index_select(0, taken).unflatten(0, group.positions.shape).transpose(1, 2) for each in flat
        )  # (N, heads, L, D)
        outputs.append(attend(q, k, v, group.mask, dropout).transpose(1, 2)[group.filled])
    taken = torch.cat([group.positions[group.filled] for group in groups])
    joined = torch.cat(outputs)
    output = joined.new_empty(rows * length, heads, width).index_copy(0, taken, joined)
    return output.view(rows, length, heads, width).transpose(1, 2)
