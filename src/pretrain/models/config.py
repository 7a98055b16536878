"""Settings of the model: the shape of a Transformer, in numbers with names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError
from pretrain.models.choices import (
    Activation,
    AttentionGate,
    ClassifierHead,
    Head,
    Init,
    Norm,
    NormPosition,
    Parametrization,
    Position,
    ResidualInit,
    SoftcapKind,
)
from pretrain.models.rope_config import RopeScalingConfig

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

    from pretrain.kernels.softcap import Softcap
    from pretrain.models.transformer import Transformer


@dataclass
class ModelConfig(Settings):
    """Settings that all models share.

    A model of your own is a subclass with a `kind` and `build()`, which returns any `nn.Module` with

    - `forward(tokens, positions=None, documents=None, is_causal=None, token_types=None)`: the last hidden states
      (B, T, d) of token ids (B, T). `positions`, int64 (B, T), restart with each document; `documents`, int32 (B, T),
      number the documents of a row, of which none may depend on another (padding: -1); `is_causal`, bool (B,), chooses
      the direction by row; `token_types`, int64 (B, T), are 1 in the second text of a pair.
      Leave out what the model does not use: a run that needs it is refused as it starts.
    - `head`: an `nn.Linear(d, vocab_size)`, or a module with `weight` (vocab_size, d), `bias` and `features(hidden)`,
      the input of the matmul with `weight`. The loss reads the weight itself, in chunks of the targets.

    It is built on the meta device; `initial_value()` then gives each parameter its value, and buffers are those that
    `build()` computes. So `build()` computes nothing from values of parameters, and what training changes is a
    parameter. Optional: `blocks`, an `nn.ModuleList` whose members are compiled, sharded and recomputed one by one.
    """

    prefix: ClassVar[str] = "model."
    kind: str = "?"
    context_length: int = setting(
        1024, "Tokens of a row, the longest context.", bounds=f"[1, {1 << 24}]", unit="tokens"
    )
    vocab_multiple: int = setting(
        1, "The vocabulary is padded to a multiple of this; 64 or 128 suits GPUs.", bounds=f"[1, {1 << 20}]"
    )
    exclude_vocab_padding: bool = setting(
        False, "Leave the ids that vocab_multiple adds out of every softmax, and out of an export."
    )

    def vocabulary(self, tokenizer_vocab_size: int) -> int:
        """Return the rows of the embedding for a tokenizer of this many ids."""
        return -(-tokenizer_vocab_size // self.vocab_multiple) * self.vocab_multiple

    def build(self, vocab_size: int, causal: bool, n_labels: int | None = None) -> nn.Module:
        """Return the model, on the current default device.

        With `causal` a position sees itself and those before it, else the whole row. With `n_labels` the head
        classifies texts instead of predicting tokens; a model that cannot leaves out the parameter.
        """
        raise TypeError(f"model {self.kind!r} has no build()")

    def initial_value(self, name: str, shape: Size, seed: int) -> Tensor:
        """Return the initial value of the full parameter `name`, float32: a function of these arguments alone.

        Here biases are 0, other vectors 1 and matrices normal with a standard deviation of 0.02.
        """
        from pretrain.models.init import initial_tensor

        return initial_tensor(name, shape, TransformerConfig(residual_init=ResidualInit.plain), seed)

    def training_flops_per_token(self, vocab_size: int, share_of_logits: float = 1.0) -> float:
        """Return the operations of a forward and backward pass per token; here six per parameter.

        `share_of_logits` is the fraction of positions that reach the head.
        """
        from pretrain.models.size import count_parameters_without_weights

        return 6.0 * count_parameters_without_weights(self, vocab_size)

    def parameter_count(self, vocab_size: int, n_labels: int | None = None) -> int | None:
        """Return the number of parameters without building the model, shared ones once; None: unknown."""
        return None

    @property
    def least_tensors(self) -> int:
        """Parameters of any size that the model has at least; 0: unknown."""
        return 0

    @property
    def transformer(self) -> TransformerConfig | None:
        """The settings as those of our Transformer, for what only that can; None for any other model."""
        return None


@dataclass
class TransformerConfig(ModelConfig):
    """Shape of a Transformer. The objective chooses causal or bidirectional attention, not the model."""

    kind: str = "transformer"
    n_layers: int = setting(12, "Blocks.", bounds="[1, 10000]")
    d_model: int = setting(768, "Width of the residual stream.", bounds=f"[1, {1 << 20}]", unit="channels")
    n_heads: int = setting(12, "Attention heads.", bounds="[1, 65536]")
    n_kv_heads: int | None = setting(
        None, "Heads of keys and values; fewer than n_heads: grouped-query attention. null: n_heads."
    )
    head_dim: int | None = setting(
        None, "Width of a head; null: d_model / n_heads.", bounds="[1, 65536]", unit="channels", example=64
    )
    d_ff: int | None = setting(
        None, "Hidden width of the feed-forward layer; null: 4 d_model.", bounds=f"[1, {1 << 24}]", unit="channels",
        example=4096,
    )  # fmt: skip
    feed_forward: Activation = setting(Activation.gelu_tanh, "Activation of the feed-forward layer; *glu are gated.")
    norm: Norm = setting(Norm.layer, "How activations are normalized.")
    norm_position: NormPosition = setting(
        NormPosition.pre,
        "Normalize a layer's input (pre), the sum after it (post), what it adds (output), or both (sandwich).",
    )
    parallel_residual: bool = setting(
        False, "Attention and feed-forward read the same input (Wang and Komatsuzaki 2021, GPT-J); needs pre-norm."
    )
    norm_eps: float = setting(1e-5, "Added to the variance, or to the mean square.", bounds="(0.0, inf)")
    norm_bias: bool = setting(True, "Give layer norms a bias.")
    norm_first_block: bool = setting(
        True, "Normalize the input of the first block's attention; false where embedding_norm did so (ModernBERT)."
    )
    norm_unit_offset: bool = setting(False, "RMS norms multiply by 1 plus their weight, which starts at 0 (Gemma).")
    embedding_norm: bool = setting(False, "Normalize the embeddings.")
    scale_embeddings: bool = setting(
        False, "Multiply token embeddings by sqrt(d_model) (Vaswani et al. 2017, section 3.4)."
    )
    position: Position = setting(Position.learned, "How a token's position enters: learned embeddings, or rotary.")
    position_offset: int = setting(
        0, "Learned positions start at this row of their table; RoBERTa's at the padding token's id plus 1.",
        bounds=f"[0, {1 << 24}]",
    )  # fmt: skip
    rope_base: float = setting(10_000.0, "Base of the rotary wavelengths.", bounds="(0.0, inf)")
    rope_base_local: float | None = setting(
        None, "Base in layers with a sliding window; null: rope_base.", bounds="(0.0, inf)", example=10000
    )
    rope_fraction: float = setting(
        1.0, "Share of a head's channels that are rotated, the first ones; Pythia: 0.25.", bounds="(0.0, 1.0]"
    )
    nope_every: int = setting(
        0, "With rotary positions: the last of every n layers has none (Yang et al. 2025, arxiv.org/abs/2501.18795); "
        "0: all rotate.", bounds="[0, 10000]", example=4,
    )  # fmt: skip
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    bias: bool = setting(True, "Give every linear layer a bias, but for the head.")
    qkv_bias: bool | None = setting(None, "Give query, key and value projections a bias; null: as bias has it.")
    attention_output_bias: bool | None = setting(
        None, "Give the attention's output projection a bias; null: as bias has it."
    )
    attention_scale: float | None = setting(
        None, "Factor of the attention scores; null: 1 / sqrt(head_dim). Gemma's query_pre_attn_scalar s: 1 / sqrt(s).",
        bounds="(0.0, inf)", example=0.125,
    )  # fmt: skip
    qk_norm: bool = setting(
        False, "Normalize each head's queries and keys (Henry et al. 2020, arxiv.org/abs/2010.04245)."
    )
    qk_norm_across_heads: bool = setting(
        False, "With qk_norm: one norm over the channels of all heads, with as many weights (OLMo 2)."
    )
    attention_gate: AttentionGate = setting(
        AttentionGate.none,
        "Multiply the output of attention by a sigmoid of its input (Qiu et al. 2025, arxiv.org/abs/2505.06708).",
    )
    value_embeddings_every: int = setting(
        0,
        "The last of every n layers adds an embedding of each token to its values (arxiv.org/abs/2410.17897); 0: none.",
        bounds="[0, 10000]", example=2,
    )  # fmt: skip
    residual_scalars: bool = setting(
        False, "Each block reads a x + b x0 by two learned numbers, 1 and 0 at first; x0: the embeddings (nanochat)."
    )
    sliding_window: int | None = setting(
        None, "Tokens a local layer attends to: the last ones if causal, else half on either side. null: all.",
        bounds="[1, inf)", unit="tokens", example=128, hint="or null for none",
    )  # fmt: skip
    global_attention_every: int = setting(
        1, "With sliding_window: every n-th layer attends to the whole row; 0: none does.", bounds="[0, inf)"
    )
    global_attention_offset: int = setting(
        0, "The first of those layers: 0, or n - 1 for the last of every n (Gemma 3, OLMo 3).", bounds="[0, 9999]"
    )
    global_attention_layers: list[int] = setting(
        default_factory=list,
        about="Instead of every n-th layer, these attend to the whole row; []: every n-th.",
    )
    token_types: int = setting(
        0, "Segment embeddings: BERT has 2, of which the second is for the second text of a pair.", bounds="[0, 65536]"
    )
    head: Head = setting(Head.linear, "Layers between the last hidden state and the vocabulary.")
    classifier_head: ClassifierHead = setting(
        ClassifierHead.linear, "Layers between a text's pooled hidden state and its labels, of objective=classify."
    )
    tie_embeddings: bool = setting(True, "The head shares the token embedding's matrix.")
    attention_softcap: float | None = setting(
        None, "Bound of the attention scores before their softmax (Gemma 2: 50); null: none. Slower than without.",
        bounds="(0.0, inf)", example=50.0,
    )  # fmt: skip
    logit_softcap: float | None = setting(
        None, "Bound of the logits over the vocabulary, which it flattens smoothly; null: none.", bounds="(0.0, inf)",
        example=30.0,
    )  # fmt: skip
    softcap_kind: SoftcapKind = setting(SoftcapKind.tanh, "What bounds them: tanh x, or x / sqrt(1 + x^2).")
    dropout: float = setting(
        0.0, "Dropout of embeddings and of each sub-layer's output.", bounds="[0.0, 1.0)", example=0.1
    )
    attention_dropout: float = setting(0.0, "Dropout of attention probabilities.", bounds="[0.0, 1.0)", example=0.1)
    init: Init = setting(Init.normal, "Distribution of the initial weights.")
    init_std: float = setting(0.02, "Standard deviation of the initial weights.", bounds="(0.0, inf)")
    residual_init: ResidualInit = setting(
        ResidualInit.scaled, "Initial scale of the matrices that write into the residual stream."
    )
    embedding_init_std: float | None = setting(
        None, "Standard deviation of the initial token embeddings; null: init_std.", bounds="(0.0, inf)", example=1.0
    )
    head_init_std: float | None = setting(
        None, "The same of an untied head, 0: all zero (Yang et al. 2022, appendix D); null: init_std.",
        bounds="[0.0, inf)", example=0.0,
    )  # fmt: skip

    parametrization: Parametrization = setting(
        Parametrization.standard,
        "mup: a rate found at base_width is also that of wider models (arxiv.org/abs/2203.03466).",
    )
    base_width: int | None = setting(
        None, "With parametrization=mup: the d_model of the model whose rates were tuned.", bounds=f"[1, {1 << 20}]",
        unit="channels", example=256,
    )  # fmt: skip
    base_head_dim: int | None = setting(
        None, "With parametrization=mup: head_dim of that model; null: head_dim, where wider models have more heads.",
        bounds="[1, 65536]", unit="channels", example=64,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        from pretrain.models.shape_checks import check_shape  # here: it reads these settings

        check_shape(self)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def attention_head_dim(self) -> int:
        """Channels of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def rope_dim(self) -> int:
        """Channels of a head that rotary positions turn."""
        return int(self.attention_head_dim * self.rope_fraction)

    @property
    def ff_width(self) -> int:
        """Hidden channels of the feed-forward layer."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies by a gate."""
        return self.feed_forward in (Activation.swiglu, Activation.geglu, Activation.geglu_tanh)

    @property
    def attention_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""
        return self.bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores; with muP it falls as 1 / head_dim from its value at `base_head_dim`."""
        base = self.base_head_dim or self.attention_head_dim
        at_base = float(base**-0.5) if self.attention_scale is None else self.attention_scale
        return at_base if base == self.attention_head_dim else at_base * base / self.attention_head_dim

    @property
    def width_multiplier(self) -> float:
        """The width over the base width of muP; 1 in the standard parametrization."""
        return 1.0 if self.base_width is None else self.d_model / self.base_width

    @property
    def gate_width(self) -> int:
        """Factors of `attention_gate` for each token."""
        per_head = {AttentionGate.none: 0, AttentionGate.head: 1, AttentionGate.channel: self.attention_head_dim}
        return self.n_heads * per_head[self.attention_gate]

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether this layer adds an embedding of each token to its values."""
        every = self.value_embeddings_every
        return every > 0 and layer % every == (self.n_layers - 1) % every

    def softcap(self, cap: float | None) -> Softcap | None:
        """Return the function that bounds logits or scores by `cap`; None without one."""
        from pretrain.kernels.softcap import Softcap

        return None if cap is None else Softcap(cap, self.softcap_kind is SoftcapKind.tanh)

    def layer_window(self, layer: int) -> int | None:
        """Return the tokens that this layer attends to; None: all of the row."""
        every, first = self.global_attention_every, self.global_attention_offset
        is_global = (
            layer in self.global_attention_layers
            if self.global_attention_layers
            else (every > 0 and layer >= first and (layer - first) % every == 0)
        )
        return None if is_global else self.sliding_window

    def window_rope(self, window: int | None) -> tuple[float, RopeScalingConfig]:
        """Return base and stretching of the rotary positions in layers with this window."""
        if window is None:
            return self.rope_base, self.rope_scaling
        plain = self.rope_scaling.global_layers_only
        return self.rope_base_local or self.rope_base, RopeScalingConfig() if plain else self.rope_scaling

    def layer_rotates(self, layer: int) -> bool:
        """Return whether this layer rotates its queries and keys."""
        is_nope = self.nope_every > 0 and layer % self.nope_every == self.nope_every - 1
        return self.position is Position.rope and not is_nope

    def differences(self, other: TransformerConfig) -> dict[str, tuple[object, object]]:
        """Return each setting by which two shapes compute different things from the same weights, with both values.

        Dropout and initial values do not count; with rotary positions the length of the context does not either.
        """
        from pretrain.models.differences import differences  # here: it reads these settings

        return differences(self, other)

    def build(self, vocab_size: int, causal: bool, n_labels: int | None = None) -> Transformer:
        from pretrain.models.transformer import Transformer  # here: reading settings must not load torch

        return Transformer(self, vocab_size, causal, n_labels)

    def initial_value(self, name: str, shape: Size, seed: int) -> Tensor:
        from pretrain.models.init import initial_tensor

        return initial_tensor(name, shape, self, seed)

    def training_flops_per_token(self, vocab_size: int, share_of_logits: float = 1.0) -> float:
        from pretrain.models.size import training_flops_per_token

        return training_flops_per_token(self, vocab_size, share_of_logits)

    def parameter_count(self, vocab_size: int, n_labels: int | None = None) -> int:
        from pretrain.models.size import classifier_head_parameters, parameter_count

        if n_labels is None:
            return parameter_count(self, vocab_size)
        headless = replace(self, tie_embeddings=True, head=Head.linear, head_init_std=None)
        return parameter_count(headless, vocab_size) + classifier_head_parameters(self, n_labels)

    @property
    def least_tensors(self) -> int:
        return self.n_layers

    @property
    def transformer(self) -> TransformerConfig:
        return self


def transformer_of(model: ModelConfig, what: str) -> TransformerConfig:
    """Return the settings as those of our Transformer; raise ConfigError for a model that is none.

    `what` says what only a Transformer can, such as "is exported".
    """
    if model.transformer is None:
        raise ConfigError(
            f"model.kind={model.kind} is not a transformer, and only model.kind=transformer {what}. Try model=gpt_nano."
        )
    return model.transformer
