"""Cross-entropy over a large vocabulary, without ever holding all logits.

Shapes: N targets, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.objectives.batch import IGNORE

WHOLE_LOGITS = 1 << 25  # N x V up to this many (128 MiB in float32) are computed at once, the fastest way
CHUNK = 1 << 23  # logits of one chunk above that


def cross_entropy_sum(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, float32 (), of features (N, d_model) against targets (N,).

    Targets equal to IGNORE count nothing. With many logits it works in chunks of the targets, forming the gradient on
    the way, so that memory holds one chunk of logits instead of all (N, V) of them and their gradient.
    """
    vocab_size = weight.shape[0]
    if features.shape[0] * vocab_size <= WHOLE_LOGITS:
        logits = F.linear(features, weight, bias).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=max(128, CHUNK // vocab_size))
    loss: Tensor = F.linear_cross_entropy(
        features, weight, targets, linear_bias=bias, reduction="sum", ignore_index=IGNORE, options=options
    )
    return loss.float()


@torch.no_grad()
def token_losses(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's cross-entropy in nats, float32 (N,), and whether it was the likeliest token, bool (N,).

    Ignored targets cost 0 and are never right.
    """
    losses, right = [], []
    for start in range(0, features.shape[0], max(128, CHUNK // weight.shape[0])):
        part = slice(start, start + max(128, CHUNK // weight.shape[0]))
        logits = F.linear(features[part], weight, bias).float()
        losses.append(F.cross_entropy(logits, targets[part], ignore_index=IGNORE, reduction="none"))
        right.append(logits.argmax(-1) == targets[part])
    return torch.cat(losses), torch.cat(right)
