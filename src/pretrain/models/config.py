"""Settings of the model: the shape of a Transformer, in numbers with names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Size, Tensor, nn

    from pretrain.models.transformer import Transformer


class Norm(Enum):
    """How activations are normalized."""

    layer = "layer"  # Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms = "rms"  # Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467


class NormPosition(Enum):
    """Where a block normalizes: the input of each layer, the sum behind it, or the output that is added."""

    pre = "pre"  # Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    post = "post"  # Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
    output = "output"  # OLMo et al. 2024, https://arxiv.org/abs/2501.00656, section 3.1


class Position(Enum):
    """How a token's position enters the model."""

    learned = "learned"
    rope = "rope"  # Su et al. 2021, https://arxiv.org/abs/2104.09864


class Activation(Enum):
    """The feed-forward layer; names ending in "glu" are gated (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"  # the approximation of Hendrycks and Gimpel 2016, as in GPT-2
    relu2 = "relu2"  # So et al. 2021, https://arxiv.org/abs/2109.08668
    swiglu = "swiglu"
    geglu = "geglu"


class Head(Enum):
    """Layers between the last hidden state and the vocabulary."""

    linear = "linear"
    mlm = "mlm"  # dense, activation, norm, then vocabulary with a bias (Devlin et al. 2019, its reference code)


class Init(Enum):
    """Distribution of the initial weights, with standard deviation `init_std`."""

    normal = "normal"
    truncated_normal = "truncated_normal"  # cut at two standard deviations, as BERT and ModernBERT


class ResidualInit(Enum):
    """Initial scale of the two matrices of a block that write into the residual stream."""

    plain = "plain"
    scaled = "scaled"  # 1 / sqrt(2 n_layers) of the others (Radford et al. 2019, section 2.3)
    zero = "zero"  # every block starts as the identity (Yang et al. 2022, https://arxiv.org/abs/2203.03466, appendix D)


class RopeScaling(Enum):
    """How rotary frequencies are stretched beyond the length they were trained at."""

    none = "none"
    linear = "linear"  # Chen et al. 2023, https://arxiv.org/abs/2306.15595
    llama3 = "llama3"  # Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783, as released with Llama 3.1


@dataclass
class RopeScalingConfig(Settings):
    """Stretching of rotary positions; `factor` = 1 leaves them alone."""

    prefix: ClassVar[str] = "model.rope_scaling."
    kind: RopeScaling = setting(RopeScaling.none, "How rotary frequencies are stretched.")
    factor: float = setting(1.0, "New context length over the one of training.", bounds="[1.0, inf)")
    low_freq_factor: float = setting(
        1.0, "llama3: wavelengths above original_context_length / low_freq_factor are stretched in full.",
        bounds="(0.0, inf)",
    )  # fmt: skip
    high_freq_factor: float = setting(
        4.0, "llama3: wavelengths below original_context_length / high_freq_factor are kept.", bounds="(0.0, inf)"
    )
    original_context_length: int = setting(
        8192, "llama3: context length of the training.", bounds="[1, inf)", unit="tokens"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor} must be below "
                f"high_freq_factor={self.high_freq_factor}. Try model.rope_scaling.low_freq_factor=1.0 "
                "model.rope_scaling.high_freq_factor=4.0."
            )


_MOST_HEADS = 10_000  # largest number of heads that an error proposes


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number among 1 to 10,000, and the number itself."""
    return [n for n in range(1, min(number, _MOST_HEADS) + 1) if number % n == 0] + [number]


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
        NormPosition.pre, "Normalize a layer's input (pre), the sum behind it (post), or what it adds (output)."
    )
    parallel_residual: bool = setting(
        False, "Attention and feed-forward read the same input (Wang and Komatsuzaki 2021, GPT-J); needs pre-norm."
    )
    norm_eps: float = setting(1e-5, "Added to the variance, or to the mean square.", bounds="(0.0, inf)")
    norm_bias: bool = setting(True, "Give layer norms a bias.")
    norm_first_block: bool = setting(
        True, "Normalize the input of the first block's attention; false where embedding_norm did so (ModernBERT)."
    )
    embedding_norm: bool = setting(False, "Normalize the embeddings.")
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
    qk_norm: bool = setting(
        False, "Normalize each head's queries and keys (Henry et al. 2020, arxiv.org/abs/2010.04245)."
    )
    qk_norm_across_heads: bool = setting(
        False, "With qk_norm: one norm over the channels of all heads, with as many weights (OLMo 2)."
    )
    sliding_window: int | None = setting(
        None, "Tokens a local layer attends to: the last ones if causal, else half on either side. null: all.",
        bounds="[1, inf)", unit="tokens", example=128, hint="or null for none",
    )  # fmt: skip
    global_attention_every: int = setting(
        1, "With sliding_window: layers 0, n, 2n, ... attend to the whole row; 0: none does.", bounds="[0, inf)"
    )
    token_types: int = setting(
        0, "Segment embeddings: BERT has 2, of which the second is for the second text of a pair.", bounds="[0, 65536]"
    )
    head: Head = setting(Head.linear, "Layers between the last hidden state and the vocabulary.")
    tie_embeddings: bool = setting(True, "The head shares the token embedding's matrix.")
    dropout: float = setting(
        0.0, "Dropout of embeddings and of each sub-layer's output.", bounds="[0.0, 1.0)", example=0.1
    )
    attention_dropout: float = setting(0.0, "Dropout of attention probabilities.", bounds="[0.0, 1.0)", example=0.1)
    init: Init = setting(Init.normal, "Distribution of the initial weights.")
    init_std: float = setting(0.02, "Standard deviation of the initial weights.", bounds="(0.0, inf)")
    residual_init: ResidualInit = setting(
        ResidualInit.scaled, "Initial scale of the matrices that write into the residual stream."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim is None and self.d_model % self.n_heads:
            nearest = self.n_heads * max(1, round(self.d_model / self.n_heads))
            raise ConfigError(
                f"model.d_model={self.d_model} does not split into model.n_heads={self.n_heads} equal heads. "
                f"Try model.d_model={nearest}."
            )
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            nearest = min(_divisors(self.n_heads), key=lambda n: abs(n - self.kv_heads))
            raise ConfigError(
                f"model.n_kv_heads={self.n_kv_heads} does not divide model.n_heads={self.n_heads}. "
                f"Try model.n_kv_heads={nearest}."
            )
        if self.position is Position.rope and self.attention_head_dim % 2:
            raise ConfigError(
                f"model.position=rope turns pairs of channels, but a head is {self.attention_head_dim} wide. "
                f"Try model.head_dim={self.attention_head_dim + 1}."
            )
        self._check_positions()
        if self.parallel_residual and self.norm_position is not NormPosition.pre:
            raise ConfigError(
                f"model.parallel_residual=true needs the norms before the layers, and model.norm_position="
                f"{self.norm_position.name} has them behind. Try model.norm_position=pre."
            )

    def _check_positions(self) -> None:
        rope = self.position is Position.rope
        if rope and self.rope_fraction != 1.0 and (self.rope_dim % 2 or not self.rope_dim):
            nearest = 2 * max(1, round(self.rope_fraction * self.attention_head_dim / 2)) / self.attention_head_dim
            raise ConfigError(
                f"model.rope_fraction={self.rope_fraction} rotates {self.rope_dim} of {self.attention_head_dim} "
                f"channels of a head, which are no pairs. Try model.rope_fraction={nearest}."
            )
        if rope and self.position_offset:
            raise ConfigError(
                f"model.position_offset={self.position_offset} is for a table of learned positions, and "
                "model.position=rope has none. Try model.position_offset=0."
            )

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
        return self.feed_forward in (Activation.swiglu, Activation.geglu)

    @property
    def attention_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    def layer_window(self, layer: int) -> int | None:
        """Return the tokens that this layer attends to; None: all of the row."""
        is_global = self.sliding_window is None or (
            self.global_attention_every > 0 and layer % self.global_attention_every == 0
        )
        return None if is_global else self.sliding_window

    def layer_rotates(self, layer: int) -> bool:
        """Return whether this layer rotates its queries and keys."""
        is_nope = self.nope_every > 0 and layer % self.nope_every == self.nope_every - 1
        return self.position is Position.rope and not is_nope

    def differences(self, other: TransformerConfig) -> dict[str, tuple[object, object]]:
        """Return each setting by which two shapes compute different things from the same weights, with both values.

        Dropout and initial values do not count; with rotary positions the length of the context does not either.
        """
        ours, theirs = self._effective(), other._effective()
        both = ((name, ours[name], theirs[name]) for name in ours)
        found = {name: (a, b) for name, a, b in both if a != b and None not in (a, b)}
        as_set = {
            name: (getattr(self, name), getattr(other, name))
            for name in ("sliding_window", "global_attention_every", "nope_every")
        }
        return {name: as_set.get(name, values) for name, values in found.items()}

    def _effective(self) -> dict[str, object]:
        """Return by setting what comes of it, with what was left out filled in; None where it has no effect."""
        alike = [
            "n_layers",
            "d_model",
            "n_heads",
            "feed_forward",
            "norm",
            "norm_position",
            "norm_eps",
            "norm_first_block",
        ]
        alike += ["embedding_norm", "position", "bias", "qk_norm", "token_types", "head", "tie_embeddings"]
        alike += ["parallel_residual"]
        rope, scaling = self.position is Position.rope, self.rope_scaling
        local = [self.layer_window(layer) is not None for layer in range(self.n_layers)]
        rotates = [self.layer_rotates(layer) for layer in range(self.n_layers)]
        scaled = rope and scaling.kind is not RopeScaling.none and scaling.factor != 1.0
        llama3 = scaled and scaling.kind is RopeScaling.llama3
        return {name: getattr(self, name) for name in alike} | {
            "n_kv_heads": self.kv_heads,
            "head_dim": self.attention_head_dim,
            "d_ff": self.ff_width,
            "context_length": None if rope else self.context_length,
            "position_offset": None if rope else self.position_offset,
            "qk_norm_across_heads": self.qk_norm_across_heads if self.qk_norm else None,
            "nope_every": rotates if rope else None,
            "rope_fraction": self.rope_dim / self.attention_head_dim if rope else None,
            "norm_bias": self.norm_bias if self.norm is Norm.layer else None,
            "qkv_bias": self.attention_bias,
            "sliding_window": self.sliding_window if any(local) else math.inf,
            "global_attention_every": local if any(local) else None,
            "rope_base": self.rope_base if rope and not all(local) else None,
            "rope_base_local": (self.rope_base_local or self.rope_base) if rope and any(local) else None,
            "rope_scaling.kind": scaling.kind if scaled else RopeScaling.none,
            "rope_scaling.factor": scaling.factor if scaled else 1.0,
            "rope_scaling.low_freq_factor": scaling.low_freq_factor if llama3 else None,
            "rope_scaling.high_freq_factor": scaling.high_freq_factor if llama3 else None,
            "rope_scaling.original_context_length": scaling.original_context_length if llama3 else None,
        }

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
        from pretrain.models.size import parameter_count

        if n_labels is None:
            return parameter_count(self, vocab_size)
        headless = replace(self, tie_embeddings=True, head=Head.linear)
        return parameter_count(headless, vocab_size) + n_labels * (self.d_model + 1)

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
