"""Predict masked tokens from the tokens on both sides."""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.collate import IGNORE
from pretrain.data.shuffle import hashed_key, mix_32_bits
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.config import MaskingConfig, MaskingUnit
from pretrain.objectives.hashed_draws import (
    LARGEST,
    MASK_VERSION,
    Units,
    position_hashes,
    row_sums,
    smallest,
    smallest_units,
)
from pretrain.objectives.objective import Objective

_FATE = np.uint32(0x9E3779B9)  # added to the hash that chose a target, to hash it again
_WORD = 3.0  # tokens of a word, weighted by its tokens; a guess that decides how many hashes are sorted, not which


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
        self.shift_targets = shift_targets  # the position before a masked token predicts it
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
        """Return rows with masked tokens; targets are (B, ceil(mask_probability T)), sorted by position."""
        tokens = rows.tokens.copy()
        n_targets = self.targets_per_sequence(tokens.shape[1])
        target_positions = np.zeros((len(tokens), n_targets), dtype=np.int64)
        targets = np.full((len(tokens), n_targets), IGNORE, dtype=np.int64)
        maskable = self.may_be_target.take(tokens)
        maskable &= rows.documents >= 0
        if self.shift_targets:  # no position before a document's first token in the row can predict it
            maskable[:, 0] = False
            maskable[:, 1:] &= rows.documents[:, 1:] == rows.documents[:, :-1]
        if self.mask_version >= (2 if self.config.unit is MaskingUnit.token else 3):
            chosen, counts, hashes = self._draw(rows, maskable, sample_indices.numpy())
            self._hide_at_once(tokens, (target_positions, targets), (chosen, counts), hashes)
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

    def _draw(
        self, rows: TokenRows, maskable: NDArray[np.bool_], samples: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
        """Return the targets of all rows: flat positions in order, their number in each row, and their hashes.

        Of each row, they are the `maskable` tokens (B, T) with the smallest hashes, or the words or spans.
        """
        length = maskable.shape[1]
        quotas, bounds = self._quotas(length)
        n_maskable = row_sums(maskable)
        counts = quotas[n_maskable]
        hashes = position_hashes(self._seed_hash, samples, length)
        if self.config.unit is MaskingUnit.token:
            chosen = smallest(hashes, maskable, counts)
        else:
            units = Units.between(self._begins(rows, hashes), maskable)
            chosen, counts = smallest_units(units, units.hashes(hashes), counts, bounds[n_maskable])
        return chosen, counts, hashes.take(chosen)

    def _begins(self, rows: TokenRows, hashes: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return where a word or span begins (B, T) within a row; the end of a document ends one.

        A span begins at any token with probability 1 / `mean_span`, so that its length has a geometric distribution.
        """
        if self.config.unit is MaskingUnit.span:
            begins = hashes <= np.uint32(min(2.0**32 / self.config.mean_span, 2.0**32 - 1))
        else:
            assert self.word_starts is not None
            begins = self.word_starts.take(rows.tokens)
        documents = rows.documents.ravel()
        flat = begins.reshape(-1)
        flat[1:] |= documents[1:] != documents[:-1]
        return begins

    def _hide_at_once(
        self, tokens: NDArray[np.int64], targets: tuple[NDArray[np.int64], NDArray[np.int64]],
        chosen_of_rows: tuple[NDArray[np.int64], NDArray[np.int64]], fates: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """Hide the chosen tokens of all rows, given by flat position and number in each row.

        Writes to `tokens` (B, T) and `targets`, their positions and ids (B, M), in place, and to `fates` (chosen,), the
        hashes that decide what a target is replaced by.
        """
        (n_rows, length), (target_positions, ids) = tokens.shape, targets
        chosen, counts = chosen_of_rows
        filled = np.arange(ids.shape[1]) < counts[:, None]
        target_positions[filled] = chosen - np.arange(0, n_rows * length, length).repeat(counts)
        tokens = tokens.reshape(-1)
        ids[filled] = originals = tokens.take(chosen)
        fates += _FATE
        others = (mix_32_bits(fates) >= self._mask_limit).nonzero()[0]
        fates, kept = fates.take(others), originals.take(others)
        randomized = (fates < self._random_limit).nonzero()[0]
        words = mix_32_bits(fates.take(randomized) + _FATE)
        kept[randomized] = words * np.uint64(self.vocab_size) >> np.uint64(32)
        tokens[chosen] = self.mask_id
        tokens[chosen.take(others)] = kept

    def _quotas(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return how many of n maskable tokens become targets, and a bound of their units' hashes, by n, (length + 1,).

        The bound is about four standard deviations above the mean of the largest hash that is chosen.
        """
        if length not in self._quotas_of:
            n = np.arange(length + 1)
            wanted = np.rint(self.config.mask_probability * n).astype(np.int64)
            counts = np.minimum(np.maximum(wanted, 1), np.minimum(n, self.targets_per_sequence(length)))
            spread = 2 * self.config.mean_span if self.config.unit is MaskingUnit.span else _WORD
            shares = (counts + 4.0 * np.sqrt(counts * spread) + spread) / np.maximum(n, 1)
            self._quotas_of[length] = counts, (np.minimum(shares, 1.0) * LARGEST).astype(np.uint32)
        return self._quotas_of[length]

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
