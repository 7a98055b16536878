"""Next-token prediction on some rows, masked prediction or diffusion on the others, with one model and one head."""

import torch
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.causal import Causal
from pretrain.objectives.diffusion import Diffusion
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import Objective

_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64  # its fractional part in units of 2^-64, as a signed number


class Hybrid(Objective):
    """Next-token prediction on some rows, masked next-token prediction or masked diffusion on the others.

    Masked rows have bidirectional attention, and the position before a hidden token predicts it, so that positions of
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
        """The version of the draw of masked rows; None for diffusion rows, which have one draw."""
        return self.bidirectional.mask_version

    @mask_version.setter
    def mask_version(self, version: int | None) -> None:
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
        causal, masked = (part.collate(rows, sample_indices) for part in self.parts.values())
        next_targets = at_positions(masked, masked.targets, torch.full_like(causal.targets, IGNORE))
        hidden = self.is_masked(sample_indices)
        return Batch(
            tokens=torch.where(hidden[:, None], masked.tokens, causal.tokens),
            positions=causal.positions,
            documents=visible_documents(rows.documents, causal=False),
            targets=torch.where(hidden[:, None], next_targets, causal.targets),
            target_positions=None,
            sample_indices=sample_indices,
            is_causal=~hidden,
            **self._weights(causal, masked, hidden),
        )

    def _weights(self, causal: Batch, masked: Batch, hidden: Tensor) -> dict[str, Tensor]:
        """Return weights (B, T) and counts (B,) of a batch with diffusion rows, where `hidden` (B,) is true."""
        if masked.weights is None:
            return {}
        ones = torch.ones(causal.targets.shape)
        weights = torch.where(hidden[:, None], at_positions(masked, masked.weights, ones), ones)
        return {"weights": weights, "counts": torch.where(hidden, masked.row_counts(), causal.row_counts())}

    def is_masked(self, sample_indices: Tensor) -> Tensor:
        """Return which rows of the stream are masked, bool (B,): close to `masked_rows` of any consecutive rows.

        The fractional parts of the multiples of the golden ratio are spread evenly over [0, 1) and have no period in
        common with batches or ranks: none of them gets rows of one kind only (Knuth 1973, volume 3, section 6.4,
        theorem S).
        """
        fraction = sample_indices * _GOLDEN_RATIO >> 11 & (1 << 53) - 1  # its first 53 bits; the multiplication wraps
        return fraction.double() / 2**53 < self.masked_rows


def at_positions(batch: Batch, values: Tensor, otherwise: Tensor) -> Tensor:
    """Return values of the targets (B, M) at the positions that predict them, and `otherwise` (B, T) elsewhere."""
    assert batch.target_positions is not None
    row, slot = (batch.targets != IGNORE).nonzero(as_tuple=True)
    placed = otherwise.clone()
    placed[row, batch.target_positions[row, slot]] = values[row, slot]
    return placed
