"""Settings of a Transformer that do not go together are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.errors import ConfigError, shown
from pretrain.models.choices import Norm, NormPosition, Parametrization, Position
from pretrain.models.rope_config import RopeScaling

if TYPE_CHECKING:
    from pretrain.models.config import TransformerConfig

_MOST_HEADS = 10_000  # largest number of heads that an error proposes


def _divisors(number: int) -> list[int]:
    """Return the divisors of a number among 1 to 10,000, and the number itself."""
    return [n for n in range(1, min(number, _MOST_HEADS) + 1) if number % n == 0] + [number]


def check_shape(config: TransformerConfig) -> None:
    """Raise ConfigError for settings that do not go together, with values that do."""
    if config.head_dim is None and config.d_model % config.n_heads:
        # rotary positions turn pairs of channels of a head
        step = config.n_heads * (2 if config.position is Position.rope else 1)
        nearest = step * max(1, round(config.d_model / step))
        raise ConfigError(
            f"model.d_model={config.d_model} does not split into model.n_heads={config.n_heads} equal heads. "
            f"Try model.d_model={nearest}."
        )
    if config.kv_heads < 1 or config.n_heads % config.kv_heads:
        nearest = min(_divisors(config.n_heads), key=lambda n: abs(n - config.kv_heads))
        raise ConfigError(
            f"model.n_kv_heads={config.n_kv_heads} does not divide model.n_heads={config.n_heads}. "
            f"Try model.n_kv_heads={nearest}."
        )
    if config.position is Position.rope and config.attention_head_dim % 2:
        raise ConfigError(
            f"model.position=rope turns pairs of channels, but a head is {config.attention_head_dim} wide. "
            f"Try model.head_dim={config.attention_head_dim + 1}."
        )
    _check_positions(config)
    _check_parametrization(config)
    if config.attention_softcap is not None and config.attention_dropout:
        raise ConfigError(
            f"model.attention_softcap={config.attention_softcap} does not go with model.attention_dropout="
            f"{config.attention_dropout}. Try model.attention_dropout=0."
        )
    if config.head_init_std is not None and config.tie_embeddings:
        raise ConfigError(
            f"model.head_init_std={config.head_init_std} is for a matrix of the head's own, and model.tie_embeddings="
            "true shares that of the embedding. Try model.tie_embeddings=false."
        )
    if config.norm_unit_offset and config.norm is not Norm.rms:
        raise ConfigError(
            f"model.norm_unit_offset=true is for RMS norms, and model.norm={config.norm.name} is none. "
            "Try model.norm=rms."
        )
    if not config.norm_first_block and config.norm_position in (NormPosition.post, NormPosition.output):
        raise ConfigError(
            f"model.norm_first_block=false leaves out the norm of an input, and model.norm_position="
            f"{config.norm_position.name} has none there. Try model.norm_first_block=true."
        )
    if config.parallel_residual and config.norm_position is not NormPosition.pre:
        raise ConfigError(
            f"model.parallel_residual=true needs the norms before the layers, and model.norm_position="
            f"{config.norm_position.name} has some after. Try model.norm_position=pre."
        )


def _check_parametrization(config: TransformerConfig) -> None:
    if config.parametrization is Parametrization.mup:
        if config.base_width is None:
            raise ConfigError(
                "model.parametrization=mup needs model.base_width=null to be the d_model of the model whose rates were "
                "tuned. Try model.base_width=256."
            )
        return
    for name in ("base_width", "base_head_dim"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"model.{name}={getattr(config, name)} is of muP, and model.parametrization=standard. "
                f"Try model.parametrization=mup, or model.{name}=null."
            )


def _check_positions(config: TransformerConfig) -> None:
    if config.sliding_window is not None and config.global_attention_offset >= max(1, config.global_attention_every):
        raise ConfigError(
            f"model.global_attention_offset={config.global_attention_offset} is not one of the first "
            f"model.global_attention_every={config.global_attention_every} layers, of which it names the global one. "
            f"Try model.global_attention_offset={max(0, config.global_attention_every - 1)}."
        )
    layers = config.global_attention_layers
    if len(set(layers)) < len(layers) or not all(0 <= layer < config.n_layers for layer in layers):
        raise ConfigError(
            f"model.global_attention_layers={shown(layers)} must be of 0 to {config.n_layers - 1}, each once. "
            "Try model.global_attention_layers=[0]."
        )
    rope = config.position is Position.rope
    if rope and config.rope_scaling.kind is RopeScaling.yarn and min(config.window_rope(w)[0] for w in (None, 1)) <= 1:
        raise ConfigError(
            f"model.rope_scaling.kind=yarn needs a base above 1, and model.rope_base={config.rope_base}, "
            f"model.rope_base_local={shown(config.rope_base_local)}. Try model.rope_base=10000."
        )
    if rope and config.rope_fraction != 1.0 and (config.rope_dim % 2 or not config.rope_dim):
        nearest = 2 * max(1, round(config.rope_fraction * config.attention_head_dim / 2)) / config.attention_head_dim
        raise ConfigError(
            f"model.rope_fraction={config.rope_fraction} rotates {config.rope_dim} of {config.attention_head_dim} "
            f"channels of a head, which are no pairs. Try model.rope_fraction={nearest}."
        )
    if rope and config.position_offset:
        raise ConfigError(
            f"model.position_offset={config.position_offset} is for a table of learned positions, and "
            "model.position=rope has none. Try model.position_offset=0."
        )
