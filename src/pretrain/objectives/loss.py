"""Cross-entropy over a large vocabulary, without ever holding all logits.

Shapes: N targets, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.objectives.batch import IGNORE

WHOLE_LOGITS = 1 << 25  # N x V up to this many (128 MiB in float32) are computed at once, the fastest way
CHUNK = 1 << 23  # logits of one chunk above that


def cross_entropy_sum(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy in nats, float32 (), of features (N, d_model) against targets (N,).

    Targets equal to IGNORE count nothing. With many logits it works in chunks of the targets, forming the gradient on
    the way, so that memory holds one chunk of logits instead of all (N, V) of them and their gradient.
    """
    if features.shape[0] * weight.shape[0] <= WHOLE_LOGITS:
        logits = F.linear(features, weight, bias).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    if not torch.is_grad_enabled():
        return token_losses(features, weight, bias, targets)[0].sum()
    loss: Tensor = _ChunkedCrossEntropy.apply(features, weight, bias, targets)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient of each chunk together. Matrix products are in autocast's number format, sums in float32.

    `F.linear_cross_entropy` does the same, but outside of autocast, and with bfloat16 inputs it adds up the loss and
    the gradient in bfloat16: with 64 chunks the loss is off by 1 % (torch 2.13).
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        x, matrix = features.to(dtype), weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=features.device)
        grad_x = torch.empty_like(features)
        grad_weight = torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for part in _chunks(len(x), len(weight)):
            logits = F.linear(x[part], matrix).float()
            if bias is not None:
                logits += bias
            counts = (targets[part] != IGNORE).unsqueeze(1)
            target = targets[part].unsqueeze(1).where(counts, 0)
            logits -= logits.amax(-1, keepdim=True)
            of_target = logits.gather(1, target)
            slope = logits.exp_()
            total = slope.sum(-1, keepdim=True)
            loss += (total.log() - of_target).where(counts, 0.0).sum()
            slope *= (1.0 / total).where(counts, 0.0)
            slope.scatter_add_(1, target, -counts.float())  # of the loss over the logits: softmax - 1 at the target
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            grad_x[part] = slope @ matrix
            if dtype == grad_weight.dtype:
                grad_weight.addmm_(slope.T, x[part])
            else:
                grad_weight += slope.T @ x[part]
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return (*gradients, None)


def _chunks(count: int, vocab_size: int) -> list[slice]:
    size = max(128, CHUNK // vocab_size)
    return [slice(start, start + size) for start in range(0, count, size)]


@torch.no_grad()
def token_losses(features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's cross-entropy in nats, float32 (N,), and whether it was the likeliest token, bool (N,).

    Ignored targets cost 0 and are never right.
    """
    losses, right = [], []
    for part in _chunks(len(features), len(weight)):
        logits = F.linear(features[part], weight, bias).float()
        losses.append(F.cross_entropy(logits, targets[part], ignore_index=IGNORE, reduction="none"))
        right.append(logits.argmax(-1) == targets[part])
    return torch.cat(losses), torch.cat(right)
