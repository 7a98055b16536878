"""Coarse estimate of the fullest device's memory, for the search of settings; the dry run counts it exactly.

Weights, gradients and optimizer state are exact. Activations are the inputs and outputs of matmuls, norms and attention
(Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4.1).
"""

import math
from dataclasses import dataclass

from pretrain.models.attention import MAX_EAGER_SCORES
from pretrain.models.choices import Head, Norm, NormPosition
from pretrain.models.masks import can_use_block_masks
from pretrain.objectives.loss import MAX_UNCHUNKED_LOGITS, chunk_size
from pretrain.planning.workload import FLOAT_BYTES, Workload
from pretrain.training.config import Precision, Strategy


@dataclass(frozen=True)
class Memory:
    """Bytes on the fullest device."""

    weights: int  # float32, of a shard or of the full model
    gradients: int
    optimizer: int  # two moments of AdamW, one of Muon's matrices
    buckets: int  # gradients in transit between devices (DDP)
    gathered: int  # full weights of FSDP2's units in use
    activations: int  # saved for the backward pass by one micro-batch, the loss included
    average: int  # of the weights, with ema.decay
    copies: int  # of the matrices, in 16 bits, with parallel.half_weight_copies
    peak: int


def estimate_memory(work: Workload) -> Memory:
    """Estimate the memory of one optimizer step after the first."""
    weights = FLOAT_BYTES * sum(work.local_size(name) for name in work.shapes)
    trained = FLOAT_BYTES * sum(work.local_size(name) for name in work.shapes if name not in work.frozen)
    matrices = FLOAT_BYTES * sum(work.local_size(name) for name in work.matrices)
    block, outside = _unit_bytes(work)
    units = 1 + work.gpu if work.reshard_after_forward else work.model.n_layers  # a GPU gathers the next one early
    gathered = outside + units * block if work.sharded else 0
    buckets = trained if work.strategy is Strategy.ddp else 0
    activations = activation_bytes(work)
    vocabulary = work.vocabulary_held * work.model.d_model * work.weight_bytes
    reducing = 3 * block if work.sharded else 0  # gradients of a block in two formats
    backward = activations + max(_logits_bytes(work), block_bytes(work), reducing)
    backward += trained if work.accumulation > 1 else 0  # gradients of the micro-batches before
    tied = (
        3 * vocabulary if work.model.tie_embeddings and not work.frozen else 0
    )  # gradients of head and embedding, and their sum
    optimizer_step = trained + 5 * FLOAT_BYTES * _largest_stack(work) - gathered
    peak = max(backward, trained + max(tied, block_bytes(work)), optimizer_step)
    return Memory(
        weights=weights,
        gradients=trained,
        optimizer=2 * trained - matrices,
        buckets=buckets,
        gathered=gathered,
        activations=activations,
        average=weights * work.averaged,
        copies=2 * work.copied,
        peak=weights * (1 + work.averaged) + 2 * work.copied + 2 * trained - matrices + buckets + gathered + peak,
    )


def activation_bytes(work: Workload) -> int:
    """Return the bytes saved by one micro-batch: blocks, norm and head, loss, 16-bit copies of weights.

    Checkpointing saves the input of each block (Chen et al. 2016, https://arxiv.org/abs/1604.06174); selective
    checkpointing also the outputs of its matmuls and attention.
    """
    model, stream = work.model, work.tokens_between * work.model.d_model * work.stream_bytes
    checkpointed = stream
    if work.selective_checkpointing:
        heads = 2 * (model.n_heads + model.kv_heads) * model.attention_head_dim
        outputs = heads + model.ff_width * (2 if model.gated else 1)
        checkpointed += work.tokens * (outputs // work.split + 2 * model.d_model) * work.compute_bytes
    n = work.checkpointed_blocks
    blocks = n * checkpointed + (model.n_layers - n) * block_bytes(work)
    features = work.targets * model.d_model * (3 if model.head is Head.mlm else 1) * work.compute_bytes
    chunked = work.split > 1 or work.targets * work.vocab_size > MAX_UNCHUNKED_LOGITS
    head = work.vocabulary_held * model.d_model * FLOAT_BYTES  # sums of the chunks' gradients
    logits = 2 if model.logit_softcap is not None else 1  # before and after the softmax
    loss = head if chunked else logits * work.targets * work.vocab_size * FLOAT_BYTES
    not_cast = work.copied or (work.vocab_size * model.d_model if chunked else 0)  # by autocast, at each use
    copies = 2 * (work.parameters - not_cast) if work.autocasts else 0
    return blocks + 2 * stream + features + loss + copies


def block_bytes(work: Workload) -> int:
    """Return the bytes that one block saves for its backward pass without checkpointing."""
    model, n, c = work.model, work.tokens, work.compute_bytes
    heads, kv_heads = (number * model.attention_head_dim // work.split for number in (model.n_heads, model.kv_heads))
    hidden = (4 if model.gated else 2) * model.ff_width // work.split
    keeps_half = work.half_stream and model.norm is Norm.layer and not work.gpu  # a CPU's norm of it is in 16 bits too
    inputs = (5 if model.gated else 4) if work.autocasts and not keeps_half else 2  # one cast copy per linear layer
    saved = n * c * (inputs * model.d_model + 4 * heads + 2 * kv_heads * work.context + hidden)
    saved += n * c * (2 * model.gate_width // work.split + heads * (model.gate_width > 0))  # gates, and their input
    if model.value_embeddings_every:  # the embedding's vectors and their gated sum
        saved += n * (kv_heads * (work.weight_bytes + c) + 2 * c * model.kv_heads // work.split)
    if model.residual_scalars:  # the stream before it is scaled
        saved += work.tokens_between * model.d_model * work.stream_bytes
    rms_copy = FLOAT_BYTES if model.norm is Norm.rms and not work.gpu else 0  # a CPU's RMS norm is not fused
    # autocast copies the input of a norm to float32, but a CPU's layer norm takes it as it is, and a compiled norm too
    copied = rms_copy if not work.gpu else not work.compiled
    norm_input = FLOAT_BYTES if work.half_stream and copied else work.stream_bytes
    saved += 2 * work.tokens_between * model.d_model * (norm_input + rms_copy)
    if model.norm_position is NormPosition.sandwich:  # the inputs of two more norms, which nothing else saves
        saved += 2 * work.tokens_between * model.d_model * (c + rms_copy)
    saved += n * (heads + kv_heads) * (FLOAT_BYTES + rms_copy) if model.qk_norm else 0
    saved += 2 * work.tokens_between * model.d_model * (1 if work.gpu else c) if model.dropout else 0
    return saved + _score_bytes(work)


def _score_bytes(work: Workload) -> int:
    """Return the bytes of attention scores, if attention is eager, and of a dense mask."""
    model, n, length = work.model, work.tokens, work.length
    scores = n * model.n_heads // work.split * length
    mask = n * length * work.compute_bytes if work.masked else 0
    if model.attention_softcap is not None and not (work.compiled and can_use_block_masks(model)):
        return mask + 2 * scores * work.compute_bytes  # bounded scores and probabilities
    if work.gpu or not (model.attention_dropout or (work.precision is Precision.bf16 and scores <= MAX_EAGER_SCORES)):
        return mask
    if work.precision is Precision.bf16 and scores <= MAX_EAGER_SCORES:
        return mask + scores * 2 * (3 if model.attention_dropout else 1)
    return mask + 3 * scores * FLOAT_BYTES


def _logits_bytes(work: Workload) -> int:
    """Return the bytes of logits or their gradients, besides those that the loss saves."""
    rows = min(work.targets, chunk_size(work.vocabulary_held, work.gpu))
    if work.split == 1 and work.targets * work.vocab_size <= MAX_UNCHUNKED_LOGITS:
        return 2 * work.targets * work.vocab_size * FLOAT_BYTES
    slopes = FLOAT_BYTES if work.model.logit_softcap is not None else 0
    return rows * work.vocabulary_held * (FLOAT_BYTES + slopes + 2 * work.half)


def _unit_bytes(work: Workload) -> tuple[int, int]:
    """Return the bytes of gathered weights in one block, and outside of the blocks."""
    sizes = {name: math.prod(work.gathered_shape(name)) for name in work.shapes}
    inside = sum(size for name, size in sizes.items() if name.startswith("blocks."))
    return inside // work.model.n_layers * work.weight_bytes, (sum(sizes.values()) - inside) * work.weight_bytes


def _largest_stack(work: Workload) -> int:
    """Return the size of Muon's largest stack of equal shapes; about five copies of it live at once."""
    stacks: dict[tuple[int, ...], int] = {}
    for name in work.matrices:
        shape = work.gathered_shape(name)
        stacks[shape] = stacks.get(shape, 0) + math.prod(shape)
    return max(stacks.values(), default=0)
