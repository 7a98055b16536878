"""Shorten documents of one or more texts to the length of a row, so that something of every text is left."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Id = TypeVar("Id", bound=np.integer[Any])


def truncated(ids: npt.NDArray[Id], length: int) -> npt.NDArray[Id]:
    """Return at most `length` ids of a document whose texts all end with its last id, EOS.

    The longest texts lose their ends until all fit, and each keeps its EOS. Texts of which not two ids would be left
    are left out. It is what GLUE's baselines call longest first: Wang et al. 2019, https://arxiv.org/abs/1804.07461.
    """
    if len(ids) <= length:
        return ids
    ends = np.flatnonzero(ids == ids[-1])[: max(1, length // 2)] + 1
    sizes = np.diff(ends, prepend=0)
    kept = _shares(sizes, length)
    parts = []
    for end, size, keep in zip(ends.tolist(), sizes.tolist(), kept.tolist(), strict=True):
        begin = end - size
        parts += [ids[begin:end]] if keep == size else [ids[begin : begin + keep - 1], ids[-1:]]
    return np.concatenate(parts)


def _shares(sizes: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Return the sizes, the largest reduced to one limit, so that their sum is `length` or all are whole."""
    left, limit = length, length
    for above, size in zip(range(len(sizes), 0, -1), np.sort(sizes).tolist(), strict=True):
        limit = left // above
        if size > limit:
            break
        left -= size
    kept = np.minimum(sizes, limit)
    shortened = np.flatnonzero(kept < sizes)
    kept[shortened[: length - int(kept.sum())]] += 1
    return kept
