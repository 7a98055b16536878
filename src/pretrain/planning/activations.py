"""What the forward pass of one micro-batch keeps for the backward pass, tensor by tensor, as the model is written.

Shapes: n tokens of the micro-batch, d = d_model, f = d_ff, H heads, D head width, T positions. In the way of
Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, section 4.1, for the operations of `models/`: attention whose
scores never exist as a whole (Dao et al. 2022, https://arxiv.org/abs/2205.14135) but where they are few, and norms,
rotations and activations that are not fused with their neighbours.
"""

from pretrain.models.attention import MAX_EAGER_SCORES
from pretrain.models.config import Activation, Head, Norm, NormPosition, Position
from pretrain.objectives.loss import MAX_UNCHUNKED_LOGITS, chunk_size
from pretrain.planning.workload import Workload

FLOAT = 4  # bytes


def stream_bytes(work: Workload) -> int:
    """Return the bytes of one number of the residual stream: autocast keeps it in float32, FSDP2's policy in bf16."""
    return 2 if work.bf16 and work.sharded else FLOAT


def compute_bytes(work: Workload) -> int:
    """Return the bytes of one number in a matrix product."""
    return 2 if work.bf16 else FLOAT


def _casts(work: Workload) -> bool:
    """Whether every linear layer makes a bf16 copy of its input of its own, as autocast does."""
    return work.bf16 and not work.sharded


def _norm(work: Workload, numbers: int, groups: int) -> int:
    """Return what a norm over the residual stream keeps: its input, and for layer norm two figures of each group."""
    if work.model.norm is Norm.rms:
        return _rms(work, numbers, groups, stream_bytes(work))
    return numbers * stream_bytes(work) + 2 * groups * FLOAT


def _rms(work: Workload, numbers: int, groups: int, size: int = FLOAT) -> int:
    """Return what a root-mean-square norm keeps: its input and one figure of each group.

    A GPU has a kernel for it. A processor computes it from parts, in float32, and keeps the input twice: as it is, and
    divided by its root mean square.
    """
    return numbers * (size if work.gpu else 2 * FLOAT) + groups * FLOAT


def _by_products(work: Workload) -> bool:
    """Whether scores exist as a whole, as `models.attention` has it on a processor while they are few."""
    scores = work.tokens * work.model.n_heads // work.split * work.length
    return work.bf16 and not work.gpu and scores <= MAX_EAGER_SCORES


def attention_bytes(work: Workload) -> int:
    """Return what the attention of one block keeps of n tokens, without its norm."""
    model, n, c = work.model, work.tokens, compute_bytes(work)
    heads, kv_heads = model.n_heads // work.split, model.kv_heads // work.split
    inner, inner_kv = heads * model.attention_head_dim, kv_heads * model.attention_head_dim
    kept = n * model.d_model * c * (3 if _casts(work) else 1)  # read by query, key and value
    if model.qk_norm:
        kept += _rms(work, n * (inner + inner_kv), n * (heads + kv_heads))
    kept += n * inner * c  # what attention returns
    if _by_products(work):  # all in bfloat16, keys and values once for each query head; and who does not see whom
        probabilities = n * heads * work.length * (3 if model.attention_dropout else 1)
        return kept + (3 * n * inner + probabilities) * c + (n if work.masked else work.length) * work.length
    if model.attention_dropout and not work.gpu:  # computed from parts in float32: scores, what is dropped, the rest
        return kept + n * (inner + 2 * inner_kv + 3 * heads * work.length) * FLOAT
    kept += n * (inner + 2 * inner_kv) * c + n * heads * FLOAT  # and the logarithms of its scores' sums
    if model.position is Position.rope:
        kept += n * inner * c  # the same with heads side by side: turned queries come head by head, and so it does
    if work.masked:
        kept += n * work.length * c  # the mask, as what is added to the scores
    return kept


def feed_forward_bytes(work: Workload) -> int:
    """Return what the feed-forward layer of one block keeps of n tokens, without its norm."""
    model, n, c = work.model, work.tokens, compute_bytes(work)
    copies = 2 if model.gated and _casts(work) else 1
    hidden = {Activation.relu2: 2, Activation.swiglu: 4, Activation.geglu: 4}.get(model.feed_forward, 2)
    return n * model.d_model * c * copies + n * model.ff_width // work.split * c * hidden


def block_bytes(work: Workload) -> int:
    """Return what one block keeps."""
    model, n = work.model, work.tokens_between
    norms = 2 * _norm(work, n * model.d_model, n)
    dropped = 2 * n * model.d_model * (1 if work.gpu else compute_bytes(work)) if model.dropout else 0
    return attention_bytes(work) + feed_forward_bytes(work) + norms + dropped


def selected_bytes(work: Workload) -> int:
    """Return what a selectively checkpointed block keeps: its input, what matrix products and attention gave."""
    model, n, c = work.model, work.tokens, compute_bytes(work)
    inner, inner_kv = model.n_heads * model.attention_head_dim, model.kv_heads * model.attention_head_dim
    split = 2 * inner + 2 * inner_kv + model.ff_width * (2 if model.gated else 1)
    scores = work.length * c if _by_products(work) else FLOAT  # or the logarithm of their sum
    kept = n * split // work.split * c + n * model.n_heads // work.split * scores
    kept += 2 * n * model.d_model * c  # of both matrices that lead back, before devices that split rows part it
    return kept + work.tokens_between * model.d_model * stream_bytes(work)


def around_blocks_bytes(work: Workload) -> int:
    """Return what embeddings, final norm and head keep, the loss left out."""
    model, n = work.model, work.tokens
    between = work.tokens_between
    kept = _norm(work, between * model.d_model, between) if model.norm_position is NormPosition.pre else 0
    kept += _norm(work, n * model.d_model, n) if model.embedding_norm else 0
    kept += n * model.d_model * (1 if work.gpu else stream_bytes(work)) if model.dropout else 0
    if model.position is Position.rope:
        windows = {model.layer_window(layer) for layer in range(model.n_layers)}
        kept += len(windows) * n * model.attention_head_dim * FLOAT  # cosines and sines
    if model.head is Head.mlm:
        numbers = work.targets * model.d_model
        kept += numbers * compute_bytes(work) * (3 if model.feed_forward is Activation.relu2 else 2)
        kept += _norm(work, numbers, work.targets)
    return kept


def activation_bytes(work: Workload) -> int:
    """Return what one micro-batch keeps until its backward pass, with or without activation checkpointing.

    Checkpointing keeps the input of each block (Chen et al. 2016, https://arxiv.org/abs/1604.06174).
    """
    again = work.checkpointed_blocks
    return (
        again * first_block_bytes(work) + (work.model.n_layers - again) * block_bytes(work) + around_blocks_bytes(work)
    )


def first_block_bytes(work: Workload) -> int:
    """Return what the first block keeps, which is checkpointed if any is."""
    if not work.activation_checkpointing:
        return block_bytes(work)
    if work.selective_checkpointing:
        return selected_bytes(work)
    return work.tokens_between * work.model.d_model * stream_bytes(work)


def chunked(work: Workload) -> bool:
    """Whether the loss is computed in chunks of the targets, as `objectives/loss.py` decides."""
    return work.split > 1 or work.targets * work.vocab_size > MAX_UNCHUNKED_LOGITS


def kept_by_loss_bytes(work: Workload) -> int:
    """Return what the loss keeps for the backward pass: logits, or in chunks the gradient that it has formed."""
    features = work.targets * work.model.d_model
    if chunked(work):
        return work.vocabulary_held * work.model.d_model * weight_bytes(work) + features * stream_bytes(work)
    return work.targets * work.vocab_size * FLOAT + features * compute_bytes(work)


def logits_bytes(work: Workload) -> int:
    """Return the logits that exist at one moment beside what is kept: of one chunk in each format; or gradients.

    Compiled, one kernel makes the gradients of the logits in their own format.
    """
    if chunked(work):
        rows = chunk_size(work.vocabulary_held, work.gpu)
        at_once = work.compiled and work.split == 1
        each = 2 * compute_bytes(work) if at_once else FLOAT + 2 * work.bf16
        return each * min(rows, work.targets) * work.vocabulary_held
    return 2 * work.targets * work.vocab_size * FLOAT  # the gradients of the loss and of its logarithms


def weight_bytes(work: Workload) -> int:
    """Return the bytes of one number of a weight as the forward pass sees it."""
    return 2 if work.bf16 and work.sharded else FLOAT
