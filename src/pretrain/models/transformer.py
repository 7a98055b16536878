"""One Transformer for all families: GPT-2, Llama, BERT and ModernBERT are settings of it.

Shapes: B batch, T positions, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.kernels.matmul import Matmul
from pretrain.models.attention import Attention, KVCache
from pretrain.models.choices import Activation, ClassifierHead, Head, NormPosition, Position
from pretrain.models.config import TransformerConfig
from pretrain.models.document_groups import document_groups
from pretrain.models.interface import LanguageModule, Outputs, hide_padding
from pretrain.models.layers import FeedForward, ResidualStream, Scale, activate, build_norm
from pretrain.models.masks import AttentionMask, build_block_mask, build_mask
from pretrain.models.position import rotary_frequencies, rotation


class Embeddings(nn.Module):
    """Token embeddings, learned positions and token types, then a norm and dropout; all but the first optional."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        learned = config.position is Position.learned
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        # with muP the root of the base width: the size of the stream does not grow with the width
        self.scale = math.sqrt(config.d_model / config.width_multiplier) if config.scale_embeddings else None
        rows = config.context_length + config.position_offset
        self.first_position = config.position_offset
        self.positions = nn.Embedding(rows, config.d_model) if learned else None
        self.types = nn.Embedding(config.token_types, config.d_model) if config.token_types else None
        self.norm = build_norm(config) if config.embedding_norm else None
        self.stream = ResidualStream()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Return the vectors (B, T, d_model) of tokens (B, T) at positions (B or 1, T); no types (B, T): all are 0.

        A type beyond those of the model counts as its last one: RoBERTa's only type is that of all tokens.
        """
        x = self.tokens(tokens)
        if self.scale is not None:
            x = x * self.scale
        if self.positions is not None:
            x = x + self.positions(positions + self.first_position)
        if self.types is not None:
            last = self.types.num_embeddings - 1
            x = x + (self.types.weight[0] if token_types is None else self.types(token_types.clamp(max=last)))
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(self.stream(x))


class TokenInputs(NamedTuple):
    """What every block reads of the tokens, besides the residual stream."""

    tokens: Tensor  # (B, T)
    embedded: Tensor  # (B, T, d_model)


class Block(nn.Module):
    """Attention, then feed-forward; each adds to the residual stream.

    With `residual_scalars` the stream is first scaled, and a multiple of the embeddings added
    (https://github.com/karpathy/nanochat, gpt.py).
    """

    def __init__(self, config: TransformerConfig, layer: int, vocab_size: int) -> None:
        super().__init__()
        self.post, self.on_output = (config.norm_position is each for each in (NormPosition.post, NormPosition.output))
        self.parallel = config.parallel_residual
        first = layer == 0 and not config.norm_first_block
        self.attention_norm = nn.Identity() if first else build_norm(config)
        self.attention = Attention(config, layer, vocab_size)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = FeedForward(config)
        sandwich = config.norm_position is NormPosition.sandwich
        self.attention_output_norm = build_norm(config) if sandwich else nn.Identity()
        self.feed_forward_output_norm = build_norm(config) if sandwich else nn.Identity()
        self.residual_scale = Scale() if config.residual_scalars else None
        self.embedding_scale = Scale() if config.residual_scalars else None
        self.stream = ResidualStream()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None = None,
        kv_cache: KVCache | None = None,
        inputs: TokenInputs | None = None,
    ) -> Tensor:
        """Return the residual stream x (B, T, d_model) after this block, same shape."""
        tokens = None if inputs is None else inputs.tokens
        if inputs is not None and self.residual_scale is not None and self.embedding_scale is not None:
            x = self.residual_scale(x) + self.embedding_scale(inputs.embedded)
        if self.post:
            x = x + self.dropout(self.attention(x, mask, rotation, kv_cache, tokens))
            x = self.stream(self.attention_norm(x))
            return self.stream(self.feed_forward_norm(x + self.dropout(self.feed_forward(x))))
        if self.on_output:
            attended = self.attention_norm(self.attention(x, mask, rotation, kv_cache, tokens))
            x = x + self.dropout(self.stream(attended))
            return x + self.dropout(self.stream(self.feed_forward_norm(self.feed_forward(x))))
        attended = self.attention(self.attention_norm(x), mask, rotation, kv_cache, tokens)
        attended = self.dropout(self.stream(self.attention_output_norm(attended)))
        if self.parallel:
            return x + attended + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = x + attended
        fed = self.feed_forward_output_norm(self.feed_forward(self.feed_forward_norm(x)))
        return x + self.dropout(self.stream(fed))


class VocabularyHead(nn.Module):
    """Map hidden states to logits over the vocabulary; `tied_to` is the token embedding's matrix if shared."""

    def __init__(self, config: TransformerConfig, vocab_size: int, tied_to: Tensor | None) -> None:
        super().__init__()
        mlm = config.head is Head.mlm
        self.output_factor = 1.0 / config.width_multiplier  # of muP
        self.matmul = Matmul()
        self.softcap = config.softcap(config.logit_softcap)
        self.n_tokens: int | None = None  # ids with a logit; None: all rows
        self.activation = Activation.gelu if config.gated else config.feed_forward
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.bias) if mlm else None
        self.norm = build_norm(config) if mlm else None
        self.bias: Tensor | None = nn.Parameter(torch.empty(vocab_size)) if mlm else None
        self.weight: Tensor = tied_to if tied_to is not None else nn.Parameter(torch.empty(vocab_size, config.d_model))

    def features(self, hidden: Tensor) -> Tensor:
        """Return the input of the vocabulary matmul, same shape as hidden (..., d_model)."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(activate(self.dense(hidden), self.activation))
        return hidden if self.output_factor == 1.0 else hidden * self.output_factor

    def compute(self, function: Callable[..., Outputs], hidden: Tensor, *others: Any) -> Outputs:
        """Return `function(hidden, self, *others)`: one call, before and after which FSDP2 does its work."""
        return function(hidden, self, *others)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of hidden states (..., d_model)."""
        logits = self.matmul.linear(self.features(hidden), self.weight, self.bias)
        logits = logits if self.softcap is None else self.softcap(logits.float()).type_as(logits)
        return logits if self.n_tokens is None else hide_padding(logits.clone(), self.n_tokens)


class LabelHead(nn.Module):
    """Map the pooled hidden state of a text to logits over C labels, through the layers of `classifier_head`."""

    def __init__(self, config: TransformerConfig, n_labels: int) -> None:
        super().__init__()
        kind, mlm = config.classifier_head, config.classifier_head is ClassifierHead.mlm
        self.kind = kind
        self.output_factor = 1.0 / config.width_multiplier  # of muP
        self.activation = Activation.gelu if config.gated else config.feed_forward  # of kind mlm
        has_dense = kind not in (ClassifierHead.linear, ClassifierHead.score)
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.bias or not mlm) if has_dense else None
        self.norm = build_norm(config) if mlm else None
        self.dropout = nn.Dropout(config.dropout)
        self.matmul = Matmul()
        self.weight: Tensor = nn.Parameter(torch.empty(n_labels, config.d_model))
        has_bias = kind is not ClassifierHead.score
        self.bias: Tensor | None = nn.Parameter(torch.empty(n_labels)) if has_bias else None

    def features(self, hidden: Tensor) -> Tensor:
        """Return the input of the label matmul, same shape as hidden (..., d_model)."""
        if self.dense is not None:
            hidden = self._activate(self.dense(hidden))
        hidden = self.dropout(hidden if self.norm is None else self.norm(hidden))
        return hidden if self.output_factor == 1.0 else hidden * self.output_factor

    def _activate(self, x: Tensor) -> Tensor:
        if self.kind is ClassifierHead.mlm:
            return activate(x, self.activation)
        if self.kind is ClassifierHead.pooler:
            return x.tanh()
        return x.relu() if self.kind is ClassifierHead.relu else functional.gelu(x)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., C) of hidden states (..., d_model)."""
        return self.matmul.linear(self.features(hidden), self.weight, self.bias)


class Transformer(LanguageModule):
    """Embeddings, blocks, final norm and head.

    With `causal` a position attends to itself and those before it, otherwise to the whole row. With `n_labels` the
    head maps to that many labels instead of the vocabulary.
    """

    config: TransformerConfig
    head: VocabularyHead | LabelHead

    def __init__(self, config: TransformerConfig, vocab_size: int, causal: bool, n_labels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.width_multiplier = config.width_multiplier  # by which the optimizers scale the rates of matrices
        self.vocab_size = vocab_size
        self.causal = causal
        self.embeddings = Embeddings(config, vocab_size)
        self.blocks = nn.ModuleList(Block(config, layer, vocab_size) for layer in range(config.n_layers))
        post = config.norm_position is NormPosition.post
        self.final_norm = nn.Identity() if post else build_norm(config)
        self.head = (
            VocabularyHead(config, vocab_size, self.embeddings.tokens.weight if config.tie_embeddings else None)
            if n_labels is None
            else LabelHead(config, n_labels)
        )
        self.reads_inputs = config.residual_scalars or config.value_embeddings_every > 0
        self.groups_documents = config.attention_softcap is None  # not in compiled blocks: each batch has other shapes
        self.windows = [config.layer_window(layer) for layer in range(config.n_layers)]
        self._rotations: dict[torch.device, dict[int | None, Tensor]] = {}

    def tie(self) -> None:
        """Share the embedding's matrix with the head again, after a wrapper or a move has copied it."""
        if self.config.tie_embeddings and isinstance(self.head, VocabularyHead):
            self.head.weight = self.embeddings.tokens.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        kv_cache: KVCache | None = None,
        masks: dict[int | None, AttentionMask] | None = None,
        is_causal: Tensor | None = None,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states (B, T, d_model) of tokens (B, T).

        `positions` (B, T) default to 0, 1, 2, ...; `documents` (B, T) numbers the document of each token, by default
        one per row; `is_causal`, bool (B,), chooses causal or bidirectional attention by row, by default `self.causal`
        for all; `token_types` (B, T), 0 by default, are for a model with such embeddings. Generation passes `kv_cache`
        and `masks`, one for every window in use.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        if masks is None:
            masks = self.masks(tokens, documents, is_causal)
        rotations = self._rotation(positions)
        x = self.embeddings(tokens, positions, token_types)
        inputs = TokenInputs(tokens, x) if self.reads_inputs else None
        for layer, (window, block) in enumerate(zip(self.windows, self.blocks, strict=True)):
            rotation = rotations[window] if self.config.layer_rotates(layer) else None
            x = block(x, masks[window], rotation, kv_cache, inputs)
        return self.final_norm(x)

    def masks(
        self, tokens: Tensor, documents: Tensor | None, is_causal: Tensor | None = None, in_blocks: bool = False
    ) -> dict[int | None, AttentionMask]:
        """Return one mask for every window in use, shared by the layers that have it.

        With `in_blocks` they are FlexAttention block masks, for compiled layers on a GPU: of one kind for every batch,
        so that layers are compiled once.
        """
        causal = self.causal if is_causal is None else is_causal
        if not in_blocks:
            return {w: self._mask(causal, w, documents, tokens) for w in set(self.windows)}
        documents = torch.zeros_like(tokens, dtype=torch.int32) if documents is None else documents
        return {
            w: AttentionMask(causal is True, blocks=build_block_mask(causal, w, documents)) for w in set(self.windows)
        }

    def _mask(
        self, causal: bool | Tensor, window: int | None, documents: Tensor | None, tokens: Tensor
    ) -> AttentionMask:
        """Return the mask of layers with this window, by document where that is faster, else dense or plain."""
        if documents is not None and isinstance(causal, bool) and self.groups_documents:
            dropout = self.training and self.config.attention_dropout > 0
            groups = document_groups(causal, window, documents, dropout)
            if groups is not None:
                return AttentionMask(causal, groups=groups)
        return build_mask(causal, window, documents, tokens.shape[1], tokens.device)

    def _rotation(self, positions: Tensor) -> dict[int | None, tuple[Tensor, Tensor] | None]:
        """Return cosines and sines for every window in use; local layers use `rope_base_local` if it is set."""
        config = self.config
        if config.position is not Position.rope:
            return dict.fromkeys(self.windows)
        if positions.device not in self._rotations:  # computed once and on the CPU: equal on every device
            self._rotations[positions.device] = {
                window: rotary_frequencies(config.rope_dim, *config.window_rope(window)).to(positions.device)
                for window in set(self.windows)
            }
        return {
            window: rotation(positions, frequencies, config.window_rope(window)[1].rotation_scale)
            for window, frequencies in self._rotations[positions.device].items()
        }
