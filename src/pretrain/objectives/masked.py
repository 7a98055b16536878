"""Predict masked tokens from the tokens on both sides."""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.collate import IGNORE
from pretrain.data.shuffle import hashed_key, mix, mix_32_bits
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.config import MaskingConfig, MaskingUnit
from pretrain.objectives.objective import Objective

# How targets are drawn. 1: row by row, from a generator of each row's own. 2: single tokens of all rows at once, by
# hashes; words and spans as 1. A checkpoint names its version, and a resume goes on with it.
MASK_VERSION = 2
_LARGEST = np.uint32(2**32 - 1)
_LONG = 512  # tokens of a row from which on it pays to sort only the hashes that may be chosen
_FATE = np.uint32(0x9E3779B9)  # added to the hash that chose a target, to hash it again


class Masked(Objective):
    """Masked-token prediction with targets drawn anew each time a row is read.

    The draw is a pure function of (seed, sample index, position): it resumes exactly and does not depend on ranks,
    workers or micro-batches. Every row has room for the same number of targets, so that shapes are static and the head
    runs at the targets only. Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1.
    """

    causal = False

    def __init__(
        self,
        config: MaskingConfig,
        *,
        mask_id: int,
        special_ids: Iterable[int],
        vocab_size: int,
        seed: int,
        word_starts: NDArray[np.bool_] | None = None,
        shift_targets: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.mask_id = mask_id
        self.vocab_size = vocab_size
        self.seed = seed
        self._seed_hash = hashed_key((seed,))
        self.word_starts = word_starts  # bool (vocab_size,): tokens that begin a word; for unit=whole_word only
        self.shift_targets = shift_targets  # the position before a hidden token predicts it
        self.mask_version: int = MASK_VERSION
        self._quotas_of: dict[int, tuple[NDArray[np.int64], NDArray[np.uint32]]] = {}  # by length of a row
        # of a hash of 32 bits: below the first a token is masked, from there to the second replaced by a random one
        self._mask_limit = math.ceil(config.mask_token_prob * 2.0**32)
        self._random_limit = math.ceil((config.mask_token_prob + config.random_token_prob) * 2.0**32)
        self.may_be_target = np.ones(vocab_size, dtype=np.bool_)
        self.may_be_target[np.fromiter(special_ids, dtype=np.int64)] = False

    @property
    def validation_parts(self) -> dict[str, Objective]:
        return {"": self.in_validation()}

    def in_validation(self) -> "Masked":
        """Return the objective that hides `validation_mask_probability` of the tokens; itself without that setting."""
        share = self.config.validation_mask_probability
        if share is None:
            return self
        other = copy.copy(self)  # shares the tokenizer's tables, and keeps the version of the draw
        other.config = replace(self.config, mask_probability=share)
        other._quotas_of = {}  # of this share
        return other

    def targets_per_sequence(self, length: int) -> int:
        return max(1, math.ceil(self.config.mask_probability * length))

    def collate(self, rows: TokenRows, sample_indices: torch.Tensor) -> Batch:
        """Return rows with hidden tokens; targets are (B, ceil(mask_probability T)), sorted by position."""
        tokens = rows.tokens.copy()
        n_targets = self.targets_per_sequence(tokens.shape[1])
        target_positions = np.zeros((len(tokens), n_targets), dtype=np.int64)
        targets = np.full((len(tokens), n_targets), IGNORE, dtype=np.int64)
        maskable = self.may_be_target.take(tokens)
        maskable &= rows.documents >= 0
        if self.shift_targets:  # no position before a document's first token in the row can predict it
            maskable[:, 0] = False
            maskable[:, 1:] &= rows.documents[:, 1:] == rows.documents[:, :-1]
        if self.mask_version > 1 and self.config.unit is MaskingUnit.token:
            self._hide_at_once(tokens, maskable, target_positions, targets, sample_indices.numpy())
        else:
            for row, sample in enumerate(sample_indices.tolist()):
                self._hide(tokens[row], np.flatnonzero(maskable[row]), target_positions[row], targets[row], sample)
        if self.shift_targets:
            target_positions -= targets != IGNORE
        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(rows.positions),
            documents=visible_documents(rows.documents, causal=False),
            targets=torch.from_numpy(targets),
            target_positions=torch.from_numpy(target_positions),
            sample_indices=sample_indices,
            is_causal=torch.zeros(len(tokens), dtype=torch.bool) if self.shift_targets else None,
        )

    def _hide_at_once(
        self, tokens: NDArray[np.int64], maskable: NDArray[np.bool_], target_positions: NDArray[np.int64],
        targets: NDArray[np.int64], samples: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Choose the targets of all rows: of each, the `maskable` tokens (B, T) with the smallest hashes.

        Writes to `tokens`, `target_positions` and `targets` in place.
        """
        (n_rows, length), n_targets = tokens.shape, targets.shape[1]
        quotas, bounds = self._quotas(length)
        n_maskable = _row_sums(maskable)
        counts = quotas[n_maskable]
        chosen, fates = _smallest(self._hashes(samples, length), maskable, counts, bounds[n_maskable])
        rows = np.arange(n_rows)
        # in the flat targets: chosen number i of row r is at r n_targets + i - (chosen in earlier rows)
        slot = np.arange(len(chosen))
        slot += (rows * n_targets + counts - counts.cumsum()).repeat(counts)
        tokens = tokens.reshape(-1)
        hidden = tokens.take(chosen)
        target_positions.reshape(-1)[slot] = chosen - (rows * length).repeat(counts)
        targets.reshape(-1)[slot] = hidden
        fates += _FATE
        mix_32_bits(fates)
        np.putmask(hidden, fates < self._mask_limit, self.mask_id)
        randomized = ((fates >= self._mask_limit) & (fates < self._random_limit)).nonzero()[0]
        words = mix_32_bits(fates.take(randomized) + _FATE)
        hidden[randomized] = words * np.uint64(self.vocab_size) >> np.uint64(32)
        tokens[chosen] = hidden

    def _quotas(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return how many of n maskable tokens become targets, and a bound of their hashes, by n, both (length + 1,).

        The bound is four standard deviations above the mean of the largest hash that is chosen.
        """
        if length not in self._quotas_of:
            n = np.arange(length + 1)
            wanted = np.rint(self.config.mask_probability * n).astype(np.int64)
            counts = np.minimum(np.maximum(wanted, 1), np.minimum(n, self.targets_per_sequence(length)))
            shares = (counts + 4.0 * np.sqrt(counts)) / np.maximum(n, 1)
            self._quotas_of[length] = counts, (np.minimum(shares, 1.0) * _LARGEST).astype(np.uint32)
        return self._quotas_of[length]

    def _hashes(self, samples: NDArray[np.int64], length: int) -> NDArray[np.uint32]:
        """Return a hash of each of `length` positions for each sample (B,): (B, length), distinct within a row."""
        keys = mix(samples.view(np.uint64) + self._seed_hash)
        factors, offsets = (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1), keys.astype(np.uint32)
        hashes = np.arange(length, dtype=np.uint32) * factors[:, None]
        hashes += offsets[:, None]
        return mix_32_bits(hashes)

    def _hide(
        self, tokens: np.ndarray, candidates: np.ndarray, target_positions: np.ndarray, targets: np.ndarray, sample: int
    ) -> None:
        """Choose one row's targets among positions `candidates`, by a generator of the row.

        Writes to the three other arrays in place.
        """
        if not len(candidates):
            return
        draw = np.random.Generator(np.random.Philox(key=self.seed % 2**64, counter=[0, 0, 0, sample]))
        count = min(len(target_positions), max(1, round(self.config.mask_probability * len(candidates))))
        chosen = np.sort(self._choose(tokens, candidates, count, draw))
        count = len(chosen)
        target_positions[:count], targets[:count] = chosen, tokens[chosen]
        fate = draw.random(count)
        masked = fate < self.config.mask_token_prob
        randomized = ~masked & (fate < self.config.mask_token_prob + self.config.random_token_prob)
        tokens[chosen[masked]] = self.mask_id
        tokens[chosen[randomized]] = draw.integers(self.vocab_size, size=int(randomized.sum()))

    def _choose(
        self, tokens: NDArray[np.int64], candidates: NDArray[np.int64], count: int, draw: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return up to `count` of the candidates: single tokens, or whole words or spans while they fit.

        A first word or span that is longer than `count` is cut to its first `count` tokens.
        """
        if self.config.unit is MaskingUnit.token:
            return draw.permutation(candidates)[:count]
        starts = np.diff(candidates, prepend=-2) != 1  # a special token or a document's end ends a word or span
        if self.config.unit is MaskingUnit.span:
            ends = np.cumsum(draw.geometric(1.0 / self.config.mean_span, size=len(candidates)))
            starts[ends[ends < len(candidates)]] = True
        else:
            assert self.word_starts is not None
            starts |= self.word_starts[tokens[candidates]]
        group = np.cumsum(starts) - 1
        order = draw.permutation(group[-1] + 1)
        total = np.cumsum(np.bincount(group)[order])
        chosen = order[total <= count] if total[0] <= count else order[:1]
        return candidates[np.isin(group, chosen)][:count]


def _smallest(
    hashes: NDArray[np.uint32], maskable: NDArray[np.bool_], counts: NDArray[np.int64], bounds: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the flat positions of the `counts` (B,) smallest maskable hashes of each row, in order, and their hashes.

    In long rows only the hashes up to `bounds` (B,) are sorted, unless a row has too few of them.
    """
    n_rows, length = hashes.shape
    if length >= _LONG:
        below = hashes <= bounds[:, None]
        below &= maskable
        sizes = _row_sums(below)
        if (sizes >= counts).all():
            candidates = below.ravel().nonzero()[0]
            values = hashes.take(candidates)
            taken = (values <= _last_of(values, sizes, counts).repeat(sizes)).nonzero()[0]
            return candidates.take(taken), values.take(taken)
    ordered = np.where(maskable, hashes, _LARGEST)
    ordered.sort(axis=1)
    last = ordered[np.arange(n_rows), counts - 1]  # of a row without candidates: any
    chosen = np.flatnonzero((hashes <= last[:, None]) & maskable)
    return chosen, hashes.take(chosen)


def _row_sums(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many of each row's flags (B, T) are set, (B,), in two thirds of the time of their sum."""
    return flags.view(np.uint8).sum(axis=1, dtype=np.uint32).astype(np.int64)


def _last_of(values: NDArray[np.uint32], sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the largest of the `counts` (B,) smallest values of each row, (B,).

    The values of a row follow those of the row before, `sizes` (B,) of them.
    """
    width = max(1, int(sizes.max()))
    rows = np.arange(len(sizes))
    ordered = np.full((len(sizes), width), _LARGEST)
    slot = np.arange(len(values))
    slot += (rows * width + sizes - sizes.cumsum()).repeat(sizes)
    ordered.reshape(-1)[slot] = values
    ordered.sort(axis=1)
    return ordered[rows, counts - 1]
