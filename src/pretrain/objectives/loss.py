"""Cross-entropy over a large vocabulary, in chunks of targets so that memory never holds all logits.

Shapes: N targets, V vocabulary.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.data.collate import IGNORE
from pretrain.kernels.compile import compile_or_run_eager
from pretrain.kernels.matmul import Matmul, matmul_of
from pretrain.kernels.softcap import Softcap, capped, softcap_of
from pretrain.models.interface import hide_padding, n_tokens_of
from pretrain.objectives.vocab_parallel import VocabularyShard, local

MAX_UNCHUNKED_LOGITS = 1 << 25  # N x V up to this (128 MiB in float32) are computed in one chunk, which is fastest
MAX_CHUNK_LOGITS = 1 << 25  # logits of a chunk; smaller chunks read the vocabulary matrix too often
MAX_CHUNK_LOGITS_GPU = 1 << 28  # larger, as each chunk also reads and writes the matrix's gradient


class Head(Protocol):
    """The part of a model that maps hidden states to V logits: over the vocabulary, or a classifier's labels."""

    weight: Tensor  # (V, d_model)
    bias: Tensor | None  # (V,)

    def features(self, hidden: Tensor) -> Tensor:
        """Return the input of the matmul with `weight`, same shape as hidden (..., d_model)."""
        ...


@dataclass(frozen=True)
class LossSettings:
    """How the loss of a batch is computed."""

    compiled: bool = False  # on a GPU, one kernel reads each chunk of logits twice; eager operations ten times
    z_loss: float = 0.0  # weight of (log Z)^2 in the gradient


@dataclass(frozen=True)
class LossTerms:
    """What a target's loss is made of, besides its logits."""

    z_loss: float = 0.0
    softcap: Softcap | None = None  # bounds the logits
    n_tokens: int | None = None  # ids that the head predicts; None: all rows of its matrix


def cross_entropy_sum(
    features: Tensor,
    head: Head,
    targets: Tensor,
    weights: Tensor | None = None,
    settings: LossSettings = LossSettings(),
) -> Tensor:
    """Return the summed cross-entropy in nats, float32 (), of features (N, d_model) against targets (N,).

    Each target's loss, its part of the z-loss included, is multiplied by its weight, float32 (N,), if there are any.
    Targets equal to IGNORE add nothing. With many logits, loss and gradient are computed together in chunks of the
    targets, so that memory holds one chunk of logits instead of all (N, V) and their gradient. If devices split the
    vocabulary, each computes the logits of its shard, and all return the full loss. The head's `softcap`, if it has
    one, bounds the logits. Ids that the head excludes, as padding of the vocabulary, have no part in the softmax.

    `z_loss` adds z_loss (log Z)^2 of each target to the gradient, but not to the returned loss, which stays comparable:
    it holds the sum Z of the exponentiated logits near 1 (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311,
    section 5).
    """
    weight, bias, matmul, softcap = head.weight, head.bias, matmul_of(head), softcap_of(head)
    n_tokens = n_tokens_of(head)
    shard = VocabularyShard.of(weight)
    if shard.group is None and features.shape[0] * weight.shape[0] <= MAX_UNCHUNKED_LOGITS:
        logits = capped(softcap, matmul.linear(features, weight, bias).float())
        logits = logits if n_tokens is None else logits[:, :n_tokens]
        return _unchunked(logits, targets, weights, settings.z_loss)
    if not torch.is_grad_enabled():
        losses = token_losses(features, head, targets)[0]
        return (losses if weights is None else losses * weights).sum()
    local_bias = None if bias is None else local(bias)
    fused = settings.compiled and features.is_cuda and shard.group is None
    chunking = _Chunking(shard, matmul, fused, LossTerms(settings.z_loss, softcap, n_tokens), weights)
    loss = _ChunkedCrossEntropy.apply(features, local(weight), local_bias, targets, chunking)
    assert isinstance(loss, Tensor)
    return loss


def _unchunked(logits: Tensor, targets: Tensor, weights: Tensor | None, z_loss: float) -> Tensor:
    """Return the summed loss of logits (N, V), float32 (), as `cross_entropy_sum`."""
    if weights is None:
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    else:
        loss = (F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none") * weights).sum()
    if z_loss and torch.is_grad_enabled():
        squares = logits.logsumexp(-1).square()
        squares = squares if weights is None else squares * weights
        penalty = z_loss * squares.where(targets != IGNORE, 0.0).sum()
        loss = loss + (penalty - penalty.detach())
    return loss


@dataclass(frozen=True)
class _Chunking:
    shard: VocabularyShard
    matmul: Matmul
    fused: bool
    terms: LossTerms
    weights: Tensor | None  # (N,)

    def part_of_weights(self, part: slice) -> Tensor | None:
        return None if self.weights is None else self.weights[part]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradient of each chunk together: matmuls in autocast's dtype, sums in float32.

    `F.linear_cross_entropy` ignores autocast, and with bfloat16 inputs it sums loss and gradient in bfloat16: with 64
    chunks the loss is off by 1 % (torch 2.13).
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: _Chunking,
    ) -> Tensor:
        shard, matmul = settings.shard, settings.matmul
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        x, matrix = features.to(dtype), matmul.cast(weight, dtype)
        loss = torch.zeros((), dtype=torch.float32, device=features.device)
        grad_x = torch.empty_like(features)
        # FSDP2 gathers weights in bfloat16, and a sum over many chunks in that format loses small terms
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for part in _chunks(x, shard.largest_size):
            if settings.fused:
                grad_logits, grad_of_bias, losses = _compiled_grad_logits()(
                    matmul.linear(x[part], matrix), bias, targets[part], settings.terms, settings.part_of_weights(part)
                )
                loss += losses
            else:
                logits = matmul.linear(x[part], matrix).float()
                if bias is not None:
                    logits += bias
                grad_logits, losses = _grad_logits(logits, targets[part], settings.part_of_weights(part), settings)
                del logits
                loss += losses
                grad_of_bias = None if bias is None else grad_logits.sum(0)
                grad_logits = grad_logits.to(dtype)
            if grad_bias is not None:
                grad_bias += grad_of_bias
            grad_x[part] = matmul.linear(grad_logits, matrix.T)
            if grad_weight is not None:  # None: the head is frozen
                matmul.add_gradient(grad_weight, grad_logits, x[part])
            del grad_logits  # before the next chunk allocates its logits
        ctx.save_for_backward(shard.total(grad_x), grad_weight, grad_bias)
        ctx.dtypes = features.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if each is None else (each * grad).to(dtype) for each, dtype in saved), None, None)


def _grad_logits(logits: Tensor, targets: Tensor, weights: Tensor | None, settings: _Chunking) -> tuple[Tensor, Tensor]:
    """Return the gradient (1 + 2 z_loss log Z) softmax - one-hot, in the memory of `logits`, and the summed loss.

    Both are weighted. With a soft cap it is the gradient of the logits before it.
    """
    terms = settings.terms
    logits = capped(terms.softcap, logits)
    slope = None if terms.softcap is None else terms.softcap.slope(logits)
    shard, counts = settings.shard, (targets != IGNORE).unsqueeze(1)
    factors = counts.float() if weights is None else weights.unsqueeze(1).where(counts, 0.0)
    hide_padding(logits, terms.n_tokens, shard.start)
    largest = shard.maximum(logits.amax(-1, keepdim=True))
    logits -= largest
    target, is_local = shard.find(targets)
    of_target = logits.gather(1, target).where(is_local, 0.0)
    grad_logits = logits.exp_()
    of_target, total = shard.total(torch.cat([of_target, grad_logits.sum(-1, keepdim=True)], 1)).split(1, 1)
    penalty = 2.0 * terms.z_loss * (largest + total.log()) if terms.z_loss else 0.0
    grad_logits *= (factors * (1.0 + penalty) / total).where(counts, 0.0)
    grad_logits.scatter_add_(1, target, -factors.where(is_local, 0.0))
    if slope is not None:
        grad_logits *= slope
    return grad_logits, (factors * (total.log() - of_target)).where(counts, 0.0).sum()


def fused_grad_logits(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    terms: LossTerms = LossTerms(),
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradient of the logits in their dtype, that of the bias if any, and the summed loss, all weighted.

    Written for torch.compile: nothing is changed in place, and each tensor of the logits' size is computed once.
    """
    exact = capped(terms.softcap, logits.float() if bias is None else logits.float() + bias)
    counts = targets != IGNORE
    ids = torch.arange(exact.shape[1], device=exact.device)
    predicted = exact if terms.n_tokens is None else exact.masked_fill(ids >= terms.n_tokens, -torch.inf)
    total = predicted.logsumexp(-1, keepdim=True)
    at_target = ids == targets.unsqueeze(1)
    probability = (predicted - total).exp()
    if terms.z_loss:
        probability = probability * (1.0 + 2.0 * terms.z_loss * total)
    grad_logits = probability - at_target.float()
    of_target = exact.gather(1, targets.where(counts, 0).unsqueeze(1))
    losses = (total - of_target).squeeze(1)
    if weights is not None:
        grad_logits, losses = grad_logits * weights.unsqueeze(1), losses * weights
    grad_logits = grad_logits.where(counts.unsqueeze(1), 0.0)
    if terms.softcap is not None:
        grad_logits = grad_logits * terms.softcap.slope(exact)
    loss = losses.where(counts, 0.0).sum()
    return grad_logits.to(logits.dtype), None if bias is None else grad_logits.sum(0), loss


@cache
def _compiled_grad_logits() -> Any:
    return torch.compile(fused_grad_logits, backend=compile_or_run_eager, dynamic=False)


def chunk_size(vocab_size: int, gpu: bool) -> int:
    """Return the number of targets in a chunk; on a GPU a power of two, which is fast and seldom leaves a rest."""
    rows = max(128, (MAX_CHUNK_LOGITS_GPU if gpu else MAX_CHUNK_LOGITS) // vocab_size)
    return 1 << rows.bit_length() - 1 if gpu else rows


def _chunks(features: Tensor, vocab_size: int) -> list[slice]:
    size = chunk_size(vocab_size, features.is_cuda)
    return [slice(start, start + size) for start in range(0, len(features), size)]


@torch.no_grad()
def token_losses(features: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each target's cross-entropy in nats, float32 (N,), and the predicted id (argmax), int64 (N,).

    Ignored targets have loss 0, and no prediction equals IGNORE.
    """
    shard, matmul, losses, predictions = VocabularyShard.of(head.weight), matmul_of(head), [], []
    weight, bias = local(head.weight), None if head.bias is None else local(head.bias)
    for part in _chunks(features, shard.largest_size):
        logits = capped(softcap_of(head), matmul.linear(features[part], weight, bias).float())
        hide_padding(logits, n_tokens_of(head), shard.start)
        if shard.group is not None:
            loss, prediction = _shard_losses(logits, targets[part], shard)
        else:
            loss = F.cross_entropy(logits, targets[part], ignore_index=IGNORE, reduction="none")
            prediction = logits.argmax(-1)
        losses.append(loss)
        predictions.append(prediction)
    return torch.cat(losses), torch.cat(predictions)


def _shard_losses(logits: Tensor, targets: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """Return losses and predictions as `token_losses`, from this device's shard of the logits."""
    local_max = logits.amax(-1, keepdim=True)
    largest = shard.maximum(local_max.clone())
    prediction = logits.argmax(-1) + shard.start
    prediction = prediction.where((local_max == largest).squeeze(1), torch.iinfo(torch.int64).max)
    logits -= largest
    target, is_local = shard.find(targets)
    parts = torch.cat([logits.gather(1, target).where(is_local, 0.0), logits.exp().sum(-1, keepdim=True)], 1)
    of_target, total = shard.total(parts).unbind(1)
    return (total.log() - of_target).where(targets != IGNORE, 0.0), shard.minimum(prediction)
