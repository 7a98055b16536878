"""One vector for each text: its hidden states pooled."""

import torch
from torch import Tensor

from pretrain.errors import ConfigError, shown


def pool(hidden: Tensor, texts: Tensor, count: int, pooling: str) -> Tensor:
    """Return a vector for each text of each row, float32 (B, count, d), zeros for a text that a row does not have.

    `hidden` is (B, T, d); `texts` (B, T) has the number of the text that a position belongs to, -1 for padding. The
    pooling is "first" or "last", of each text's first or last position, or "mean", of all its positions, special
    tokens included. Source: Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084, section 3.
    """
    within = texts.unsqueeze(1) == torch.arange(count, device=texts.device)[:, None]  # (B, count, T)
    if pooling == "first":
        within = within & (within.cumsum(-1) == 1)
    elif pooling == "last":
        within = within & (within.flip(-1).cumsum(-1).flip(-1) == 1)
    return (within.float() @ hidden.float()) / within.sum(-1, keepdim=True).clamp(min=1)


def shortened(vectors: Tensor, dimensions: int | None, setting: str) -> Tensor:
    """Return the first `dimensions` of vectors (..., d), all for None; raises ConfigError beyond d."""
    if dimensions is None:
        return vectors
    if not isinstance(dimensions, int) or not 1 <= dimensions <= vectors.shape[-1]:
        raise ConfigError(
            f"{setting}={shown(dimensions)} is not between 1 and the {vectors.shape[-1]} of the model. "
            f"Try {setting}={vectors.shape[-1]}."
        )
    return vectors[..., :dimensions]
