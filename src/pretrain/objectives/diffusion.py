"""Masked diffusion: predict tokens hidden at any noise level; the loss bounds -log p of the text from above."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.collate import IGNORE
from pretrain.data.shuffle import hashed_key, mix
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.config import DiffusionConfig
from pretrain.objectives.hashed_draws import MASK_VERSION, position_hashes, row_sums, smallest_of_pieces
from pretrain.objectives.objective import Objective

# 1 / r and 1 / r^2 in units of 2^-64, where r^3 = r + 1: multiples of the two are spread evenly over the unit square
# (Roberts 2018, https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences)
_OF_ROW, _OF_PIECE = 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D
_BORDER = np.uint64(0x9E3779B97F4A7C15)  # added to the key of a row, to hash it again for its border
_AT_ONCE = 3  # the version of the draw from which on it is one of all rows
_ROUNDING = 1e-9  # a share of n tokens such as 0.1 x 30 must not become 4 of them


class Diffusion(Objective):
    """Masked diffusion with as many masked tokens as a uniform draw says, and each loss weighted to be a bound.

    Of the n maskable tokens of a document's piece in a row, k are hidden, k uniform over 1..n. The piece's loss is
    n / k times the sum of their cross-entropies, and counts n targets. Its mean over k and the masked tokens is the
    mean of -log p over all orders of generation, an upper bound of -log p(piece) of the model that generates in random
    order. Hidden tokens are always replaced by [MASK]. A document's begin token is never hidden, its end token is:
    what can be hidden are the targets of the causal objective.

    k and the masked tokens are a pure function of (seed, sample index, piece of the row). k is of low discrepancy over
    samples and pieces, which lowers the variance of the mean loss. Sources: Ou et al. 2024,
    https://arxiv.org/abs/2406.03736; Nie et al. 2025, https://arxiv.org/abs/2502.09992, section 2.
    """

    causal = False
    is_bound = True

    def __init__(
        self, config: DiffusionConfig, *, mask_id: int, bos_id: int, seed: int, in_causal_model: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.validation_draws = config.validation_draws
        self.mask_id = mask_id
        self.bos_id = bos_id
        self.seed = seed
        self.mask_version: int = MASK_VERSION
        self._seed_hash = hashed_key((seed,))
        self.in_causal_model = in_causal_model  # rows must say that their attention is bidirectional

    @property
    def parts(self) -> dict[str, Objective]:
        """The objective that validation scores: the bound itself, without what only training uses."""
        config = replace(self.config, min_masked_fraction=0.0, random_length_rows=0.0, complementary=False)
        bound = Diffusion(
            config, mask_id=self.mask_id, bos_id=self.bos_id, seed=self.seed, in_causal_model=self.in_causal_model
        )
        bound.mask_version = self.mask_version
        return {"": bound}

    def collate(self, rows: TokenRows, sample_indices: torch.Tensor) -> Batch:
        """Return rows with masked tokens and the weight n / k of each; targets are (B, T), in order of position.

        With `complementary` the model reads 2 B rows, and T targets are enough for both passes of a row.
        """
        documents, positions = rows.documents, rows.positions
        if self.config.random_length_rows:  # borders are added in place
            documents, positions = documents.copy(), positions.copy()
        samples, passes = sample_indices.numpy(), self.config.passes
        scores = (self._draw if self.mask_version >= _AT_ONCE else self._draw_by_row)(samples, documents, positions)
        maskable = self._maskable(rows, documents)
        candidates, counts = maskable.ravel().nonzero()[0], row_sums(maskable)
        pieces = _pieces(documents.take(candidates), counts, samples)
        k = self._n_hidden(pieces)
        lowest = _lowest(scores.take(candidates), pieces.sizes, k)
        tokens = np.repeat(rows.tokens, passes, axis=0)
        targets = _Targets.none(maskable.shape, self.config)
        for number, weights in enumerate(self._weights(pieces.sizes, k)):
            n_hidden = pieces.sizes - k if number else k  # the second pass hides what the first does not
            chosen = candidates.take((~lowest if number else lowest).nonzero()[0])
            hidden = _Hidden(chosen, pieces.row_sums(n_hidden, len(counts)), weights.repeat(n_hidden))
            targets.hide(tokens, number, hidden, self.mask_id)

        def per_pass(values: NDArray[np.generic]) -> NDArray[np.generic]:
            return np.repeat(values, passes, axis=0) if passes > 1 else values

        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(per_pass(positions)),
            documents=visible_documents(per_pass(documents), causal=False),
            targets=torch.from_numpy(targets.ids),
            target_positions=torch.from_numpy(targets.positions),
            sample_indices=sample_indices,
            is_causal=torch.zeros(len(tokens), dtype=torch.bool) if self.in_causal_model else None,
            weights=torch.from_numpy(targets.weights),
            counts=torch.from_numpy(passes * counts),
        )

    def _draw(
        self, samples: NDArray[np.int64], documents: NDArray[np.int32], positions: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """Return a hash of each token (B, T), distinct within a row; add borders to some rows, in place."""
        if self.config.random_length_rows:
            words = mix(mix(samples.view(np.uint64) + self._seed_hash) + _BORDER)
            for row in np.flatnonzero((words >> np.uint64(11)) / 2.0**53 < self.config.random_length_rows).tolist():
                place = (int(mix(words[row : row + 1])[0]) >> 11) / 2.0**53
                if (used := text_length(documents[row])) > 1:
                    add_border(documents[row], positions[row], 1 + int(place * (used - 1)))
        return position_hashes(self._seed_hash, samples, documents.shape[1])

    def _draw_by_row(
        self, samples: NDArray[np.int64], documents: NDArray[np.int32], positions: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Do as `_draw` by a generator of each row, as the first versions did."""
        draws = [self._generator(sample) for sample in samples.tolist()]
        scores = np.stack([draw.random(documents.shape[1]) for draw in draws])
        for row, draw in enumerate(draws):
            if draw.random() < self.config.random_length_rows and (used := text_length(documents[row])) > 1:
                add_border(documents[row], positions[row], int(draw.integers(1, used)))
        return scores

    def _generator(self, sample: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed % 2**64, counter=[0, 0, 0, sample]))

    def _maskable(self, rows: TokenRows, documents: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which tokens may be hidden (B, T): not padding, begin tokens or prompts, as in the causal objective.

        With `shift` the first token of a piece has no position before it, and is not hidden either.
        """
        follows = _follows(rows.documents)
        has_next = rows.next_tokens != IGNORE
        is_target, ends = np.zeros_like(follows), np.ones_like(follows)
        is_target.reshape(-1)[1:] = has_next.ravel()[:-1]
        np.logical_not(follows.ravel()[1:], out=ends.reshape(-1)[:-1])
        # the first token of a piece that continues a document: a prompt's if the token after it is
        continues = rows.tokens != self.bos_id
        continues &= ends | has_next
        continues &= ~follows
        maskable: NDArray[np.bool_] = rows.documents >= 0
        maskable &= (is_target & follows) | continues
        if self.config.shift:
            maskable &= _follows(documents)
        return maskable

    def _weights(self, n: NDArray[np.int64], k: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Return the weight of a masked token of each piece, (pieces,), in each pass."""
        if self.config.passes == 1:
            return [(n / k).astype(np.float32)]
        # both passes of a piece that is all hidden are the same: one with twice the weight is their sum
        return [np.where(k == n, 2.0, n / k).astype(np.float32), (n / np.maximum(n - k, 1)).astype(np.float32)]

    def _n_hidden(self, pieces: _Pieces) -> NDArray[np.int64]:
        """Return k of each piece; with `complementary` n with probability 1 / n, else uniform over 1..n-1."""
        n, u = pieces.sizes, uniform(self.seed, pieces.samples, pieces.numbers)
        least = np.maximum(1, np.ceil(self.config.min_masked_fraction * n - _ROUNDING)).astype(np.int64)
        if not self.config.complementary:
            return least + np.floor(u * (n - least + 1)).astype(np.int64)
        least = np.minimum(least, np.maximum(n // 2, 1))
        share = (u * n - 1) / np.maximum(n - 1, 1)  # of the second case, uniform in 0..1
        k = least + np.floor(share * (n - 2 * least + 1)).astype(np.int64)
        return np.where(u * n < 1, n, k)


@dataclass(frozen=True)
class _Pieces:
    """The pieces of documents with a maskable token, in order of rows and positions."""

    sizes: NDArray[np.int64]  # (pieces,) maskable tokens of each
    rows: NDArray[np.int64]  # (pieces,) its row
    samples: NDArray[np.int64]  # (pieces,) sample index of its row
    numbers: NDArray[np.int64]  # (pieces,) its number within the row

    def row_sums(self, values: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
        """Return the sum of the values (pieces,) of each row, (B,)."""
        return np.bincount(self.rows, weights=values, minlength=n_rows).astype(np.int64)


@dataclass(frozen=True)
class _Hidden:
    """The tokens that one pass hides, in order of rows and positions."""

    chosen: NDArray[np.int64]  # (hidden,) flat position of each among those of the rows
    per_row: NDArray[np.int64]  # (B,) number in each row
    weights: NDArray[np.float32]  # (hidden,)


@dataclass(frozen=True)
class _Targets:
    """The masked tokens of each row in order of pass and position, in arrays of static shape."""

    ids: NDArray[np.int64]  # (B, T) IGNORE after the last
    positions: NDArray[np.int64]  # (B, T) that predict them, among the P T positions of the passes
    weights: NDArray[np.float32]  # (B, T)
    filled: NDArray[np.int64]  # (B,) targets of each row so far
    config: DiffusionConfig

    @staticmethod
    def none(shape: tuple[int, ...], config: DiffusionConfig) -> _Targets:
        """Return arrays without a target yet, for rows with this shape, (B, T)."""
        ids = np.full(shape, IGNORE, np.int64)
        return _Targets(ids, np.zeros_like(ids), np.zeros(shape, np.float32), np.zeros(shape[0], np.int64), config)

    def hide(self, tokens: NDArray[np.int64], number: int, hidden: _Hidden, mask_id: int) -> None:
        """Add what pass `number` hides, and replace it in `tokens` (P B, T) by the mask, in place."""
        (n_rows, length), per_row = self.ids.shape, hidden.per_row
        first = np.arange(n_rows) * length
        slot = np.arange(len(hidden.chosen))
        slot += (first + self.filled + per_row - per_row.cumsum()).repeat(per_row)
        # of a flat position among those of the rows: what to add for the one among those of the passes
        of_passes = hidden.chosen + (first * (self.config.passes - 1) + number * length).repeat(per_row)
        flat = tokens.reshape(-1)
        self.ids.reshape(-1)[slot] = flat.take(of_passes)
        flat[of_passes] = mask_id
        self.positions.reshape(-1)[slot] = of_passes - (first * self.config.passes + self.config.shift).repeat(per_row)
        self.weights.reshape(-1)[slot] = hidden.weights
        self.filled[:] += per_row


def uniform(seed: int, samples: NDArray[np.int64], pieces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in 0 <= u < 1 for each (sample, piece of its row), of low discrepancy over both."""
    offset = _offset(seed)
    with np.errstate(over="ignore"):  # wraps: the fractional part in units of 2^-64
        place = samples.astype(np.uint64) * np.uint64(_OF_ROW) + pieces.astype(np.uint64) * np.uint64(_OF_PIECE)
        return ((place + np.uint64(offset)) >> np.uint64(11)) / 2.0**53


@lru_cache
def _offset(seed: int) -> int:
    """Return the first word of a seed's generator, which takes longer to make than the numbers of a batch."""
    return int(np.random.Philox(key=seed % 2**64).random_raw())


def _lowest(
    scores: NDArray[np.float64] | NDArray[np.uint32], n: NDArray[np.int64], k: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which of the scores (tokens,) are among the k lowest of their piece, bool (tokens,)."""
    if scores.dtype == np.uint32:
        return smallest_of_pieces(scores.astype(np.uint32, copy=False), n, k)
    of_token = np.repeat(np.arange(len(n)), n)
    order = np.lexsort((scores, of_token))
    hidden = np.empty(len(order), bool)
    hidden[order] = np.arange(len(order)) - (np.cumsum(n) - n)[of_token] < k[of_token]
    return hidden


def text_length(documents: NDArray[np.int32]) -> int:
    """Return the number of tokens of a row (T,), without padding."""
    return int((documents >= 0).sum())


def add_border(documents: NDArray[np.int32], positions: NDArray[np.int64], border: int) -> None:
    """Split one row's document in two at a position from 1 on, in place: both (T,).

    Positions restart at the border if those of the row restart with its documents.
    """
    used = text_length(documents)
    last = int(np.argmax(documents == documents[used - 1]))
    if positions[last] == 0:
        restarts = np.flatnonzero(positions[border:used] == 0)
        end = border + int(restarts[0]) if len(restarts) else used
        positions[border:end] -= positions[border] if end > border else 0
    documents[border:used] += 1


def _follows(documents: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return whether the token before is of the same document, bool (B, T)."""
    follows = np.zeros(documents.shape, bool)
    flat = documents.ravel()
    np.equal(flat[1:], flat[:-1], out=follows.reshape(-1)[1:])
    follows[:, 0] = False
    return follows


def _pieces(numbers: NDArray[np.int32], counts: NDArray[np.int64], samples: NDArray[np.int64]) -> _Pieces:
    """Return the pieces of the maskable tokens, given the document of each and how many each row (B,) has."""
    begins = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=begins[1:])
    ends = counts.cumsum()
    begins[(ends - counts)[counts > 0]] = True
    first = begins.nonzero()[0]
    rows = np.searchsorted(ends, first, side="right")
    sizes = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=sizes[:-1])
    sizes[-1:] = len(numbers) - first[-1:]
    return _Pieces(sizes, rows, samples[rows], numbers[first].astype(np.int64))
