"""Count a model's parameters and floating-point operations from its settings."""

import torch

from pretrain.models.choices import ClassifierHead, Head, Norm, NormPosition, Position
from pretrain.models.config import ModelConfig, TransformerConfig


def count_parameters_without_weights(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of any model, shared ones once, built on the meta device."""
    with torch.device("meta"):
        model = config.build(vocab_size, causal=True)
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_names_without_weights(config: ModelConfig) -> list[str]:
    """Return the names of the parameters of any model, built on the meta device with a vocabulary of two tokens."""
    with torch.device("meta"):
        model = config.build(2, causal=True)
    return [name for name, _ in model.named_parameters()]


def parameter_count(config: TransformerConfig, vocab_size: int) -> int:
    """Return the number of parameters, shared ones counted once."""
    norm = config.d_model * (2 if config.norm is Norm.layer and config.norm_bias else 1)
    block_norms = 4 if config.norm_position is NormPosition.sandwich else 2
    total = vocab_size * config.d_model
    rows = config.context_length + config.position_offset
    total += rows * config.d_model if config.position is Position.learned else 0
    total += config.token_types * config.d_model
    total += norm if config.embedding_norm else 0
    total += config.n_layers * (_attention(config) + _feed_forward(config) + block_norms * norm)
    total += _value_embeddings(config) * (vocab_size * config.attention_head_dim + config.d_model) * config.kv_heads
    total += 2 * config.n_layers * config.residual_scalars
    total -= 0 if config.norm_first_block else norm
    total += norm if config.norm_position is not NormPosition.post else 0
    total += 0 if config.tie_embeddings else vocab_size * config.d_model
    if config.head is Head.mlm:
        total += config.d_model * (config.d_model + config.bias) + norm + vocab_size
    return total


def classifier_head_parameters(config: TransformerConfig, n_labels: int) -> int:
    """Return the number of parameters of the head over labels."""
    kind, norm = config.classifier_head, config.d_model * (2 if config.norm is Norm.layer and config.norm_bias else 1)
    labels = n_labels * (config.d_model + (kind is not ClassifierHead.score))
    if kind in (ClassifierHead.linear, ClassifierHead.score):
        return labels
    is_mlm = kind is ClassifierHead.mlm
    return labels + config.d_model * (config.d_model + (config.bias or not is_mlm)) + norm * is_mlm


def _attention(config: TransformerConfig) -> int:
    inner, inner_kv = config.n_heads * config.attention_head_dim, config.kv_heads * config.attention_head_dim
    weights = config.d_model * (2 * inner + 2 * inner_kv + config.gate_width)
    biases = (inner + 2 * inner_kv) * config.attention_bias + config.d_model * config.output_bias
    norms = inner + inner_kv if config.qk_norm_across_heads else 2 * config.attention_head_dim
    return weights + biases + (norms if config.qk_norm else 0)


def _value_embeddings(config: TransformerConfig) -> int:
    """Return the number of layers that add an embedding of each token to its values."""
    return sum(config.has_value_embedding(layer) for layer in range(config.n_layers))


def _feed_forward(config: TransformerConfig) -> int:
    matrices = 3 if config.gated else 2
    biases = (matrices - 1) * config.ff_width + config.d_model
    return matrices * config.d_model * config.ff_width + biases * config.bias


def training_flops_per_token(
    config: TransformerConfig, vocab_size: int, head_share: float = 1.0, adapters: int | None = None
) -> float:
    """Return floating-point operations of one forward and backward pass, per token of a full row.

    Each weight of a matmul costs two operations forward and four backward; a layer that attends to T tokens adds
    12 n_heads head_dim T for its scores, not halved for causal masks. `head_share` is the fraction of positions that
    reach the head (a masked model computes its head at the targets only). With `adapters`, the numbers of low-rank
    adapters that alone are trained, the weights have no gradient and cost two operations less.
    Source: Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, appendix B; Kaplan et al. 2020, section 2.1.
    """
    inner, inner_kv = config.n_heads * config.attention_head_dim, config.kv_heads * config.attention_head_dim
    matrices = config.d_model * (2 * inner + 2 * inner_kv + config.gate_width)
    matrices += (3 if config.gated else 2) * config.d_model * config.ff_width
    head = vocab_size * config.d_model + (config.d_model**2 if config.head is Head.mlm else 0)
    attended_tokens = sum(
        min(config.layer_window(layer) or config.context_length, config.context_length)
        for layer in range(config.n_layers)
    )
    value_gates = _value_embeddings(config) * config.d_model * config.kv_heads
    weights = config.n_layers * matrices + value_gates + head_share * head
    of_weights = 6.0 * weights if adapters is None else 4.0 * weights + 6.0 * adapters
    return of_weights + 12.0 * inner * attended_tokens
