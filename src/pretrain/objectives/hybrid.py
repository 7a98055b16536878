"""Continue some rows and fill the masks of the others, with one model and one head."""

import torch
from torch import Tensor

from pretrain.data.collate import IGNORE
from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.causal import Causal
from pretrain.objectives.masked import Masked
from pretrain.objectives.objective import Objective

_GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64  # its fraction in units of 2^-64, as a signed number


class Hybrid(Objective):
    """Next-token prediction on some rows, masked next-token prediction on the others.

    In a masked row attention looks both ways, and a hidden token is predicted at the place before it: every place of
    either kind of row predicts what follows it. Every target counts once, so a causal row weighs as much as its more
    numerous targets. Source: Charpentier and Samuel 2024, https://arxiv.org/abs/2410.24159, section 2.
    """

    causal = True

    def __init__(self, masked: Masked, masked_rows: float) -> None:
        super().__init__()
        self.masked = masked
        self.masked_rows = masked_rows

    @property
    def parts(self) -> dict[str, Objective]:
        """Both kinds of rows, by name."""
        return {"causal": Causal(), "masked": self.masked}

    def collate(self, rows: TokenRows, sample_indices: Tensor) -> Batch:
        """Return rows of both kinds, with a target (or none) at every place: targets are (B, T)."""
        causal, masked = (part.collate(rows, sample_indices) for part in self.parts.values())
        assert masked.target_positions is not None
        next_targets = torch.full_like(causal.targets, IGNORE)
        row, slot = (masked.targets != IGNORE).nonzero(as_tuple=True)
        next_targets[row, masked.target_positions[row, slot]] = masked.targets[row, slot]
        hidden = self.is_masked(sample_indices)
        return Batch(
            tokens=torch.where(hidden[:, None], masked.tokens, causal.tokens),
            positions=causal.positions,
            documents=visible_documents(rows, causal=False),
            targets=torch.where(hidden[:, None], next_targets, causal.targets),
            target_positions=None,
            sample_indices=sample_indices,
            is_causal=~hidden,
        )

    def is_masked(self, sample_indices: Tensor) -> Tensor:
        """Return which rows of the stream are masked, bool (B,): of any rows in a row nearly the share.

        The multiples of the golden ratio, without their whole parts, are spread evenly over [0, 1), and keep no time
        with batches or ranks: none of them gets rows of one kind only (Knuth 1973, volume 3, section 6.4, theorem S).
        """
        turn = sample_indices * _GOLDEN_RATIO >> 11 & (1 << 53) - 1  # 53 bits of the fraction; the product wraps around
        return turn.double() / 2**53 < self.masked_rows
