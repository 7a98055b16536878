"""Settings of the model: the shape of a Transformer, in numbers with names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.models.transformer import Transformer


class Norm(Enum):
    """How activations are normalized."""

    layer = "layer"  # Ba et al. 2016, https://arxiv.org/abs/1607.06450
    rms = "rms"  # Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467


class NormPosition(Enum):
    """Where a block normalizes: its input, or the sum it adds to the residual stream."""

    pre = "pre"  # Xiong et al. 2020, https://arxiv.org/abs/2002.04745
    post = "post"  # Vaswani et al. 2017, https://arxiv.org/abs/1706.03762


class Position(Enum):
    """How a token knows where it stands."""

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
    """What stands between the last hidden state and the vocabulary."""

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
class RopeScalingConfig:
    """Stretching of rotary positions; `factor` = 1 leaves them alone."""

    kind: RopeScaling = RopeScaling.none
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3: wavelengths above original_context_length / this are stretched in full
    high_freq_factor: float = 4.0  # llama3: wavelengths below original_context_length / this are kept
    original_context_length: int = 8192  # llama3: tokens


_MOST_HEADS = 10_000  # among which a number of heads is looked for that works


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number among 1 to 10,000, and the number itself."""
    return [n for n in range(1, min(number, _MOST_HEADS) + 1) if number % n == 0] + [number]


@dataclass
class ModelConfig:
    """What every model has in common."""

    kind: str = "?"
    context_length: int = 1024  # tokens in one row, the furthest a position can be from the first
    vocab_multiple: int = 1  # the vocabulary is rounded up to a multiple of this

    def vocabulary(self, tokenizer_vocab_size: int) -> int:
        """Return the rows of the embedding for a tokenizer of this many ids."""
        return -(-tokenizer_vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclass
class TransformerConfig(ModelConfig):
    """Shape of a Transformer. Who may attend to whom is the objective's choice, not the model's."""

    kind: str = "transformer"
    n_layers: int = 12
    d_model: int = 768  # width of the residual stream
    n_heads: int = 12
    n_kv_heads: int | None = None  # fewer than n_heads: grouped-query attention; none given: n_heads
    head_dim: int | None = None  # of one head; none given: d_model / n_heads
    d_ff: int | None = None  # hidden width of the feed-forward layer; none given: 4 d_model
    feed_forward: Activation = Activation.gelu_tanh
    norm: Norm = Norm.layer
    norm_position: NormPosition = NormPosition.pre
    norm_eps: float = 1e-5
    norm_bias: bool = True  # layer norm only
    norm_first_block: bool = True  # false: the first block's attention reads the embedding norm directly (ModernBERT)
    embedding_norm: bool = False
    position: Position = Position.learned
    rope_base: float = 10_000.0
    rope_base_local: float | None = None  # of layers with a window; none given: rope_base
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    bias: bool = True  # of every linear layer except the head
    qkv_bias: bool | None = None  # of the query, key and value projections; none given: bias
    qk_norm: bool = False  # normalize each head's queries and keys (Henry et al. 2020, arxiv.org/abs/2010.04245)
    sliding_window: int | None = (
        None  # tokens a local layer sees: the last so many if causal, half to either side if not
    )
    global_attention_every: int = (
        1  # with a window: layers 0, n, 2n, ... see everything, the others their window; 0: none does
    )
    token_types: int = 0  # segment embeddings (BERT has 2; a packed row uses segment 0)
    head: Head = Head.linear
    tie_embeddings: bool = True  # the head shares the token embedding's matrix
    dropout: float = 0.0  # of embeddings and of what each sub-layer adds
    attention_dropout: float = 0.0
    init: Init = Init.normal
    init_std: float = 0.02
    residual_init: ResidualInit = ResidualInit.scaled

    def __post_init__(self) -> None:
        self._check_numbers()
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
        self._check_shares_and_reach()

    def _check_numbers(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "context_length", "vocab_multiple", "head_dim", "d_ff"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"model.{name}={value} is below 1. Try model.{name}=1.")
        if self.token_types < 0:
            raise ConfigError(f"model.token_types={self.token_types} is negative. Try model.token_types=0.")
        for name, usual in (("norm_eps", 1e-5), ("init_std", 0.02), ("rope_base", 1e4), ("rope_base_local", 1e4)):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ConfigError(f"model.{name}={value} is not a number above 0. Try model.{name}={usual}.")

    def _check_shares_and_reach(self) -> None:
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} is not a share from 0 up to but not including 1. "
                    f"Try model.{name}=0.1."
                )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(
                f"model.sliding_window={self.sliding_window} lets a token see nothing. "
                "Try model.sliding_window=128 or null."
            )
        if self.global_attention_every < 0:
            raise ConfigError(
                f"model.global_attention_every={self.global_attention_every} is negative. "
                "Try model.global_attention_every=1."
            )
        scaling = self.rope_scaling
        if not 1.0 <= scaling.factor < math.inf:
            raise ConfigError(
                f"model.rope_scaling.factor={scaling.factor} would shrink the context. "
                "Try model.rope_scaling.factor=1.0."
            )
        if not 0.0 < scaling.low_freq_factor < scaling.high_freq_factor < math.inf:
            raise ConfigError(
                f"model.rope_scaling.low_freq_factor={scaling.low_freq_factor} must be above 0 and below "
                f"high_freq_factor={scaling.high_freq_factor}. Try model.rope_scaling.low_freq_factor=1.0 "
                "model.rope_scaling.high_freq_factor=4.0."
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
        """Return how many tokens this layer sees, or none where it sees everything."""
        is_global = self.sliding_window is None or (
            self.global_attention_every > 0 and layer % self.global_attention_every == 0
        )
        return None if is_global else self.sliding_window

    def differences(self, other: TransformerConfig) -> dict[str, tuple[object, object]]:
        """Return each setting by which two shapes compute different things from the same weights, with both values.

        Dropout and initial values do not count; with rotary positions the length of the context does not either.
        """
        ours, theirs = self._effective(), other._effective()
        both = ((name, ours[name], theirs[name]) for name in ours)
        found = {name: (a, b) for name, a, b in both if a != b and None not in (a, b)}
        as_set = {
            name: (getattr(self, name), getattr(other, name)) for name in ("sliding_window", "global_attention_every")
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
        rope, scaling = self.position is Position.rope, self.rope_scaling
        local = [self.layer_window(layer) is not None for layer in range(self.n_layers)]
        scaled = rope and scaling.kind is not RopeScaling.none and scaling.factor != 1.0
        llama3 = scaled and scaling.kind is RopeScaling.llama3
        return {name: getattr(self, name) for name in alike} | {
            "n_kv_heads": self.kv_heads,
            "head_dim": self.attention_head_dim,
            "d_ff": self.ff_width,
            "context_length": None if rope else self.context_length,
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
        """Return the model with uninitialised weights, on the current default device.

        With `n_labels` it tells so many labels of texts apart instead of predicting tokens.
        """
        from pretrain.models.transformer import Transformer  # here: reading settings must not load torch

        return Transformer(self, vocab_size, causal, n_labels)
