"""Attention masks: one `mask_mod` makes dense masks, FlexAttention's block masks and the KV cache's mask.

With a dense mask, attention reads a number for every pair of positions; on a GPU that takes longer than the matmuls.
FlexAttention's compiled kernel skips blocks of 128 x 128 positions without an allowed pair, applies the rule pair by
pair only in blocks that are allowed in part, and computes fully allowed blocks like plain attention.
Source: Dong et al. 2024, https://arxiv.org/abs/2412.05496, section 3.

Shapes: B batch, T query positions, S key positions, N blocks of a row (T / 128, rounded up).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pretrain.kernels.compile import compile_or_run_eager
from pretrain.models.config import TransformerConfig

if TYPE_CHECKING:
    from pretrain.models.document_groups import DocumentGroup

BLOCK = 128  # positions, both of queries and of keys
_MIN_HEAD_DIM = 16  # the kernel's tiles are not smaller
_UNLIMITED = 2**31 - 1
_BEYOND = 2**31 - 1  # document of the positions after a row's end, which fill its last block

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query position, key position) -> bool
Bound = int | Tensor | None  # of query - key position; int64 (B,) where it differs by row, None where there is none
BlockList = tuple[Tensor, Tensor]  # number of blocks, int32 (B, 1, N), and their indices, int32 (B, 1, N, N)


@dataclass(frozen=True)
class AttentionMask:
    """Attention mask of all layers with one window: dense, in blocks, by document, or plain causal / full."""

    causal: bool
    allowed: Tensor | None = None  # bool (B or 1, 1, T, S)
    blocks: BlockMask | None = None  # for compiled layers on a GPU
    groups: "tuple[DocumentGroup, ...] | None" = None  # for short documents on a CPU


def _distance_bounds(causal: bool | Tensor, window: int | None) -> tuple[Bound, Bound]:
    """Return the least and the largest allowed distance, query position minus key position; None is no limit.

    A causal window of w covers the token itself and the w - 1 before it, a bidirectional one w // 2 tokens to either
    side, as ModernBERT does. `causal` may differ by row, as bool (B,).
    """
    half = None if window is None else window // 2
    if isinstance(causal, Tensor):
        least = torch.where(causal, 0, -_UNLIMITED if half is None else -half)
        return least, None if window is None or half is None else torch.where(causal, window - 1, half)
    if causal:
        return 0, None if window is None else window - 1
    return (None, None) if half is None else (-half, half)


def mask_mod(causal: bool | Tensor, window: int | None, documents: Tensor | None = None) -> MaskMod:
    """Return the rule for a query and a key position, in the form that FlexAttention compiles into its kernel.

    `documents`, int (B, S), numbers the document of each token: tokens of different documents do not attend to each
    other. None means one document per row. `causal` may differ by row, as bool (B,).
    """
    least, most = _distance_bounds(causal, window)

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        allowed = None
        if least is not None:
            allowed = distance >= (least[row] if isinstance(least, Tensor) else least)
        if most is not None:
            near = distance <= (most[row] if isinstance(most, Tensor) else most)
            allowed = near if allowed is None else allowed & near
        if documents is not None:
            same = documents[row, query] == documents[row, key]
            allowed = same if allowed is None else allowed & same
        return torch.ones_like(distance, dtype=torch.bool) if allowed is None else allowed

    return rule


def dense_mask(rule: MaskMod, queries: Tensor, keys: Tensor, batch_size: int = 1) -> Tensor:
    """Return bool (B or 1, 1, T, S): the rule at each pair of query positions (T,) and key positions (S,)."""
    row = torch.arange(batch_size, device=keys.device).view(-1, 1, 1, 1)
    return rule(row, torch.zeros_like(row), queries.unsqueeze(1), keys).view(-1, 1, len(queries), len(keys))


def build_mask(
    causal: bool | Tensor, window: int | None, documents: Tensor | None, length: int, device: torch.device
) -> AttentionMask:
    """Return the mask of layers with this window over rows of `length` tokens; arguments as of `mask_mod`."""
    by_row = isinstance(causal, Tensor)
    if documents is None and not by_row and (window is None or (causal and window >= length)):
        return AttentionMask(bool(causal))
    positions = torch.arange(length, device=device)
    rule = mask_mod(causal, window, documents)
    return AttentionMask(causal is True, dense_mask(rule, positions, positions, _mask_rows(causal, documents)))


def _mask_rows(causal: bool | Tensor, documents: Tensor | None) -> int:
    """Return how many rows a dense mask has: those of the batch if its rows differ, else 1."""
    if documents is not None:
        return len(documents)
    return len(causal) if isinstance(causal, Tensor) else 1


def build_slice_mask(
    causal: bool | Tensor, window: int | None, documents: Tensor | None, queries: Tensor, length: int
) -> AttentionMask:
    """Return the mask of queries at positions (T,) over rows of `length` tokens; else as `build_mask`.

    It is dense unless every query attends to the whole row: kernels take plain causal masks of whole rows alone.
    """
    if documents is None and window is None and causal is False:
        return AttentionMask(False)
    keys = torch.arange(length, device=queries.device)
    rule = mask_mod(causal, window, documents)
    return AttentionMask(causal is True, dense_mask(rule, queries, keys, _mask_rows(causal, documents)))


def can_use_block_masks(config: TransformerConfig) -> bool:
    """Return whether FlexAttention can compute this model: no attention dropout, heads of at least 16 channels."""
    return config.attention_head_dim >= _MIN_HEAD_DIM and not config.attention_dropout


def build_block_mask(causal: bool | Tensor, window: int | None, documents: Tensor) -> BlockMask:
    """Return the mask of `build_mask` for the same arguments as a `BlockMask`; documents in any order."""
    length = documents.shape[1]
    lists_of: Callable[..., tuple[BlockList, ...]] = _compiled_lists() if documents.is_cuda else block_lists
    partial, full, partial_queries, full_queries = lists_of(causal, window, documents)
    rule = mask_mod(causal, window, documents)
    return BlockMask((length, length), *partial, *full, *partial_queries, *full_queries, (BLOCK, BLOCK), rule)


def build_slice_block_mask(causal: bool | Tensor, window: int | None, documents: Tensor, queries: Tensor) -> BlockMask:
    """Return the mask of queries at positions (T,), which are runs of whole blocks, over rows; else `build_block_mask`.

    `documents` (B, S) are those of whole rows.
    """
    blocks = queries[::BLOCK] // BLOCK
    of_row = mask_mod(causal, window, documents)

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return of_row(row, head, queries[query], key)

    partial, full = (kind[:, blocks] for kind in _block_kinds(causal, window, documents))
    lists = (*_listed(partial), *_listed(full), *_listed(partial.mT), *_listed(full.mT))
    return BlockMask((len(queries), documents.shape[1]), *lists, (BLOCK, BLOCK), rule)


def block_lists(
    causal: bool | Tensor, window: int | None, documents: Tensor
) -> tuple[BlockList, BlockList, BlockList, BlockList]:
    """Return each query block's partial and full key blocks, then each key block's partial and full query blocks.

    Compiled on a GPU, about a hundred small kernels become a few.
    """
    partial, full = _block_kinds(causal, window, documents)
    return _listed(partial), _listed(full), _listed(partial.mT), _listed(full.mT)


@cache
def _compiled_lists() -> Any:
    return torch.compile(block_lists, backend=compile_or_run_eager, dynamic=False)


def _block_kinds(causal: bool | Tensor, window: int | None, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs of blocks that are allowed in part and those in full, bool (B, N, N) each.

    A block allowed in part may hold no allowed pair if documents are not numbered in order of position. Padding (-1)
    counts as the last document.
    """
    numbers = documents.int().where(documents >= 0, _BEYOND - 1)
    blocks = F.pad(numbers, (0, -documents.shape[1] % BLOCK), value=_BEYOND).unflatten(1, (-1, BLOCK))
    lowest, highest = blocks.amin(2), blocks.amax(2)  # (B, N)
    overlap = (lowest.unsqueeze(2) <= highest.unsqueeze(1)) & (lowest.unsqueeze(1) <= highest.unsqueeze(2))
    uniform = lowest == highest  # False for a block that extends beyond the row's end: it begins within the row
    same = uniform.unsqueeze(2) & uniform.unsqueeze(1) & (lowest.unsqueeze(2) == lowest.unsqueeze(1))
    some, every = _blocks_by_distance(causal, window, blocks.shape[1], documents.device)
    full = same & every
    return overlap & some & ~full, full


def _blocks_by_distance(
    causal: bool | Tensor, window: int | None, blocks: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the pairs of blocks with some, and with only, allowed distances, bool (B or 1, N, N) each."""
    starts = torch.arange(blocks, device=device) * BLOCK
    between = (starts.unsqueeze(1) - starts).unsqueeze(0)  # first query minus first key
    nearest, furthest = between - (BLOCK - 1), between + (BLOCK - 1)  # of any query and any key
    some = every = torch.ones_like(between, dtype=torch.bool)
    least, most = (
        bound.view(-1, 1, 1) if isinstance(bound, Tensor) else bound for bound in _distance_bounds(causal, window)
    )
    if least is not None:
        some, every = furthest >= least, nearest >= least
    if most is not None:
        some, every = some & (nearest <= most), every & (furthest <= most)
    return some, every


def _listed(blocks: Tensor) -> BlockList:
    """Return the number of blocks in each row of `blocks`, bool (B, N, N), and all indices, those blocks' first."""
    count = blocks.sum(-1, dtype=torch.int32)
    rank = torch.where(blocks, blocks.cumsum(-1), count.unsqueeze(-1) + (~blocks).cumsum(-1)) - 1
    numbers = torch.arange(blocks.shape[-1], device=blocks.device, dtype=torch.int32).expand_as(rank)
    return count.unsqueeze(1), torch.zeros_like(numbers.contiguous()).scatter(-1, rank, numbers).unsqueeze(1)
