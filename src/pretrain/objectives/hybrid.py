"""Next-token prediction on some rows, masked prediction or diffusion on the others, with one model and one head."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.causal import Causal
from pretrain.objectives.diffusion import Diffusion
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import Objective

_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # its fractional part in units of 2^-64


class Hybrid(Objective):
    """Next-token prediction on some rows, masked next-token prediction or masked diffusion on the others.

    Masked rows have bidirectional attention, and the position before a masked token predicts it, so that positions of
    both kinds of rows predict the next token. Every target has the same weight, so a causal row, with more targets,
    weighs more than a masked one; a diffusion counts all tokens of a row, and weighs as much. Source: Charpentier and
    Samuel 2024, https://arxiv.org/abs/2410.24159, section 2.
    """

    causal = True

    def __init__(self, bidirectional: Masked | Diffusion, masked_rows: float) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.masked_rows = masked_rows

    @property
    def mask_version(self) -> int | None:
        """The version of the draw of masked or diffusion rows."""
        return self.bidirectional.mask_version

    @mask_version.setter
    def mask_version(self, version: int | None) -> None:
        assert version is not None
        self.bidirectional.mask_version = version

    @property
    def parts(self) -> dict[str, Objective]:
        """The objective of either kind of rows, by name."""
        name = "diffusion" if self.bidirectional.is_bound else "masked"
        return {"causal": Causal(), name: self.bidirectional}

    @property
    def validation_parts(self) -> dict[str, Objective]:
        hidden = self.bidirectional
        return self.parts if isinstance(hidden, Diffusion) else self.parts | {"masked": hidden.in_validation()}

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows of both kinds, with a target or IGNORE at every position: targets are (B, T)."""
        hidden = self.is_masked(sample_indices)
        chosen = hidden.numpy().nonzero()[0]
        tokens, targets = rows.tokens.copy(), rows.next_tokens.copy()
        is_bound = self.bidirectional.is_bound
        weights = np.ones(targets.shape, np.float32) if is_bound else None
        counts = (targets != IGNORE).sum(1) if is_bound else None
        if len(chosen):  # only these rows are masked: what is hidden depends on nothing but the row
            masked = self.bidirectional.collate(rows[chosen], sample_indices[chosen])
            tokens[chosen] = masked.tokens.numpy()
            targets[chosen] = at_positions(masked, masked.targets, IGNORE)
            if weights is not None and counts is not None:
                assert masked.weights is not None
                weights[chosen] = at_positions(masked, masked.weights, 1)
                counts[chosen] = masked.row_counts().numpy()
        return Batch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(rows.positions),
            documents=visible_documents(rows.documents, causal=False),
            targets=torch.from_numpy(targets),
            target_positions=None,
            sample_indices=sample_indices,
            is_causal=~hidden,
            weights=None if weights is None else torch.from_numpy(weights),
            counts=None if counts is None else torch.from_numpy(counts),
        )

    def is_masked(self, sample_indices: Tensor) -> Tensor:
        """Return which rows of the stream are masked, bool (B,): close to `masked_rows` of any consecutive rows.

        The fractional parts of the multiples of the golden ratio are spread evenly over [0, 1) and have no period in
        common with batches or ranks: none of them gets rows of one kind only (Knuth 1973, volume 3, section 6.4,
        theorem S).
        """
        fraction = sample_indices.numpy().view(np.uint64) * _GOLDEN_RATIO >> np.uint64(11)  # 53 bits; the product wraps
        return torch.from_numpy(fraction / 2.0**53 < self.masked_rows)


def at_positions(batch: Batch, values: Tensor, otherwise: int) -> NDArray[np.generic]:
    """Return values of the targets (B, M) at the positions that predict them, and `otherwise` elsewhere, (B, T)."""
    assert batch.target_positions is not None
    positions, n_rows = batch.target_positions.numpy(), len(batch.targets)
    slot = (batch.targets.numpy().ravel() != IGNORE).nonzero()[0]
    length = batch.tokens.shape[1]
    flat = positions + (np.arange(n_rows) * length)[:, None]
    of_targets = values.numpy()
    placed = np.full((n_rows, length), otherwise, of_targets.dtype)
    placed.reshape(-1)[flat.take(slot)] = of_targets.take(slot)
    return placed
