"""Predict hidden tokens from both sides."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from pretrain.objectives.batch import IGNORE, Batch, TokenRows, visible_documents
from pretrain.objectives.config import MaskedConfig
from pretrain.objectives.objective import Objective


class Masked(Objective):
    """Masked-token prediction with targets drawn anew each time a row is read.

    The draw is a pure function of (seed, place of the row in the stream): it resumes exactly and does not depend on
    ranks, workers or micro-batches. Every row has the same number of target places, so that shapes are static and the
    head runs at the targets only. Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1.
    """

    causal = False

    def __init__(
        self, config: MaskedConfig, *, mask_id: int, special_ids: Iterable[int], vocab_size: int, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.mask_id = mask_id
        self.vocab_size = vocab_size
        self.seed = seed
        self.special_ids = np.fromiter(special_ids, dtype=np.int64)

    def make_batch(self, rows: TokenRows, samples: torch.Tensor) -> Batch:
        """Return rows with hidden tokens; targets and places are (B, ceil(mask_probability T)), sorted by place."""
        tokens = rows.tokens.copy()
        width = max(1, math.ceil(self.config.mask_probability * tokens.shape[1]))
        places = np.zeros((len(tokens), width), dtype=np.int64)
        targets = np.full((len(tokens), width), IGNORE, dtype=np.int64)
        maskable = (rows.documents >= 0) & ~np.isin(tokens, self.special_ids)
        for row, sample in enumerate(samples.tolist()):
            self._hide(tokens[row], np.flatnonzero(maskable[row]), places[row], targets[row], sample)
        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(rows.positions),
            documents=visible_documents(rows, causal=False),
            targets=torch.from_numpy(targets),
            places=torch.from_numpy(places),
            samples=samples,
        )

    def _hide(
        self, tokens: np.ndarray, candidates: np.ndarray, places: np.ndarray, targets: np.ndarray, sample: int
    ) -> None:
        """Choose this row's targets among `candidates` and overwrite `tokens`, `places`, `targets` in place."""
        if not len(candidates):
            return
        draw = np.random.Generator(np.random.Philox(key=self.seed % 2**64, counter=[0, 0, 0, sample]))
        count = min(len(places), max(1, round(self.config.mask_probability * len(candidates))))
        chosen = np.sort(draw.permutation(candidates)[:count])
        places[:count], targets[:count] = chosen, tokens[chosen]
        fate = draw.random(count)
        masked = fate < self.config.mask_share
        randomised = ~masked & (fate < self.config.mask_share + self.config.random_share)
        tokens[chosen[masked]] = self.mask_id
        tokens[chosen[randomised]] = draw.integers(self.vocab_size, size=int(randomised.sum()))
