"""Predict every token from those before it."""

import torch

from pretrain.objectives.batch import Batch, TokenRows, visible_documents
from pretrain.objectives.objective import Objective


class Causal(Objective):
    """Next-token prediction within a document; its last token has no target."""

    causal = True

    def collate(self, rows: TokenRows, sample_indices: torch.Tensor) -> Batch:
        """Return rows whose target at each position is the token that follows it in its document."""
        return Batch(
            tokens=torch.from_numpy(rows.tokens),
            positions=torch.from_numpy(rows.positions),
            documents=visible_documents(rows.documents, causal=True),
            targets=torch.from_numpy(rows.next_tokens),
            target_positions=None,
            sample_indices=sample_indices,
        )
