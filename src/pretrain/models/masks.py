"""Who may see whom, told to torch's FlexAttention in blocks of 128 x 128 positions: what nobody sees is not computed.

A dense mask has attention read a number for every pair of positions, seen or not. On a GPU that takes longer than the
products themselves; here the compiled kernel passes over blocks in which nobody sees anybody, asks pair by pair only
inside blocks that are seen in part, and computes the rest like plain attention. Source: Dong et al. 2024,
https://arxiv.org/abs/2412.05496, section 3.

Shapes: B batch, T positions, N blocks of a row (T / 128, rounded up).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from pretrain.kernels.compile import compile_or_leave
from pretrain.models.config import TransformerConfig

BLOCK = 128  # positions, both of queries and of keys


_NARROWEST_HEAD = 16  # channels: the kernel's tiles are not smaller


_BEYOND = 2**31 - 1  # the document of places after a row's end, which fill up its last block


Listed = tuple[Tensor, Tensor]


ListsOf = Callable[[bool | Tensor, int | None, Tensor], tuple[Listed, Listed, Listed, Listed]]


MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # of row, head, position of a query and of a key


def takes_blocks(config: TransformerConfig) -> bool:
    """Whether the kernel can compute a model's attention: it leaves nothing out at random, and needs some channels."""
    return config.attention_head_dim >= _NARROWEST_HEAD and not config.attention_dropout


def build_block_mask(causal: bool | Tensor, window: int | None, documents: Tensor) -> BlockMask:
    """Return who sees whom in rows whose tokens belong to `documents`, int (B, T): what `build_mask` says, by blocks.

    `causal` may differ by row, as bool (B,). Documents may be numbered in any order.
    """
    length = documents.shape[1]
    lists_of: ListsOf = _compiled_lists() if documents.is_cuda else block_lists
    partly, wholly, seen_partly, seen_wholly = lists_of(causal, window, documents)
    return BlockMask(
        (length, length),
        *partly,
        *wholly,
        *seen_partly,
        *seen_wholly,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=mask_mod(causal, window, documents),
    )


def mask_mod(causal: bool | Tensor, window: int | None, documents: Tensor) -> MaskMod:
    """Return the rule for a pair of positions, as FlexAttention compiles it into its kernel."""

    def one_way(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = query >= key if window is None else (query >= key) & (query - key < window)
        return near & (documents[row, query] == documents[row, key])

    def both_ways(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents[row, query] == documents[row, key]
        return same if window is None else same & ((query - key).abs() <= window // 2)

    def by_row(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert isinstance(causal, Tensor)
        return torch.where(causal[row], one_way(row, head, query, key), both_ways(row, head, query, key))

    if isinstance(causal, Tensor):
        return by_row
    return one_way if causal else both_ways


def block_lists(causal: bool | Tensor, window: int | None, documents: Tensor) -> tuple[Listed, Listed, Listed, Listed]:
    """Return the blocks of keys that a block of queries sees in part, those it sees as a whole, and both reversed.

    Of each, how many there are and their numbers. A compiler makes few kernels of what would be about a hundred.
    """
    partly, wholly = _seen_blocks(causal, window, documents)
    return _listed(partly), _listed(wholly), _listed(partly.mT), _listed(wholly.mT)


@cache
def _compiled_lists() -> Any:
    return torch.compile(block_lists, backend=compile_or_leave, dynamic=False)


def _seen_blocks(causal: bool | Tensor, window: int | None, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return which blocks of keys a block of queries sees in part and which as a whole, bool (B, N, N) each.

    What is called seen in part may be seen by nobody, where documents are not numbered in the order of their places;
    padding (-1) counts as the last of them.
    """
    numbers = documents.int().where(documents >= 0, _BEYOND - 1)
    blocks = F.pad(numbers, (0, -documents.shape[1] % BLOCK), value=_BEYOND).unflatten(1, (-1, BLOCK))
    lowest, highest = blocks.amin(2), blocks.amax(2)  # (B, N)
    meet = (lowest.unsqueeze(2) <= highest.unsqueeze(1)) & (lowest.unsqueeze(1) <= highest.unsqueeze(2))
    alike = lowest == highest  # never a block with places beyond the row's end, which begins with one within
    same = alike.unsqueeze(2) & alike.unsqueeze(1) & (lowest.unsqueeze(2) == lowest.unsqueeze(1))
    near, within = _by_distance(causal, window, blocks.shape[1], documents.device)
    wholly = same & within
    return meet & near & ~wholly, wholly


def _by_distance(causal: bool | Tensor, window: int | None, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which blocks hold a pair that direction and distance allow, and which no other, bool (B or 1, N, N)."""
    if isinstance(causal, Tensor):
        pairs = zip(*(_by_distance(way, window, blocks, device) for way in (True, False)), strict=True)
        near, within = (torch.where(causal.view(-1, 1, 1), one_way, both_ways) for one_way, both_ways in pairs)
        return near, within
    places = torch.arange(blocks, device=device) * BLOCK
    between = places.unsqueeze(1) - places  # of the first query and the first key, above 0 where the key comes first
    nearest, furthest = between - (BLOCK - 1), between + (BLOCK - 1)  # of any query and any key
    if causal:
        near, within = furthest >= 0, nearest >= 0
        if window is not None:
            near, within = near & (nearest < window), within & (furthest < window)
    elif window is None:
        near = within = torch.ones_like(between, dtype=torch.bool)
    else:
        near = (nearest <= window // 2) & (furthest >= -(window // 2))
        within = (furthest <= window // 2) & (nearest >= -(window // 2))
    return near.unsqueeze(0), within.unsqueeze(0)


def _listed(blocks: Tensor) -> Listed:
    """Return how many blocks each row of `blocks` (B, N, N) names, and their numbers first, int32 (B, 1, N[, N])."""
    count = blocks.sum(-1, dtype=torch.int32)
    place = torch.where(blocks, blocks.cumsum(-1), count.unsqueeze(-1) + (~blocks).cumsum(-1)) - 1
    numbers = torch.arange(blocks.shape[-1], device=blocks.device, dtype=torch.int32).expand_as(place)
    return count.unsqueeze(1), torch.zeros_like(numbers.contiguous()).scatter(-1, place, numbers).unsqueeze(1)
