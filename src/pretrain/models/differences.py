"""Which settings make two shapes compute different things from the same weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pretrain.models.choices import Norm, Position
from pretrain.models.rope_config import RopeScaling

if TYPE_CHECKING:
    from pretrain.models.config import TransformerConfig

_ALIKE = (
    "n_layers", "d_model", "n_heads", "feed_forward", "norm", "norm_position", "norm_unit_offset", "norm_eps",
    "norm_first_block", "embedding_norm", "scale_embeddings", "position", "bias", "qk_norm", "token_types", "head",
    "tie_embeddings", "parallel_residual", "attention_gate", "residual_scalars",
)  # fmt: skip
_AS_SET = (  # compared by layer or as a factor, shown as they are set
    "sliding_window", "global_attention_every", "nope_every", "value_embeddings_every", "base_width",
    "logit_softcap", "attention_softcap",
)  # fmt: skip

_WITH_ORIGINAL = (RopeScaling.llama3, RopeScaling.yarn)


def differences(ours: TransformerConfig, theirs: TransformerConfig) -> dict[str, tuple[object, object]]:
    """Return each setting by which two shapes compute different things from the same weights, with both values.

    Dropout and initial values do not count; with rotary positions the length of the context does not either.
    """
    values, others = effective(ours), effective(theirs)
    both = ((name, values[name], others[name]) for name in values)
    found = {name: (a, b) for name, a, b in both if a != b and None not in (a, b)}
    as_set = {name: (getattr(ours, name), getattr(theirs, name)) for name in _AS_SET}
    return {name: as_set.get(name, values) for name, values in found.items()}


def effective(config: TransformerConfig) -> dict[str, object]:
    """Return by setting what comes of it, with what was left out filled in; None where it has no effect."""
    rope = config.position is Position.rope
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    rotates = [config.layer_rotates(layer) for layer in range(config.n_layers)]
    return {name: getattr(config, name) for name in _ALIKE} | {
        "n_kv_heads": config.kv_heads,
        "head_dim": config.attention_head_dim,
        "d_ff": config.ff_width,
        "context_length": None if rope else config.context_length,
        "position_offset": None if rope else config.position_offset,
        "qk_norm_across_heads": config.qk_norm_across_heads if config.qk_norm else None,
        "nope_every": rotates if rope else None,
        "value_embeddings_every": [config.has_value_embedding(layer) for layer in range(config.n_layers)],
        "rope_fraction": config.rope_dim / config.attention_head_dim if rope else None,
        "norm_bias": config.norm_bias if config.norm is Norm.layer else None,
        "qkv_bias": config.attention_bias,
        "attention_output_bias": config.output_bias,
        "attention_scale": config.score_scale,
        "base_width": config.width_multiplier,
        "logit_softcap": config.logit_softcap or math.inf,
        "attention_softcap": config.attention_softcap or math.inf,
        "softcap_kind": config.softcap_kind if config.logit_softcap or config.attention_softcap else None,
        "sliding_window": config.sliding_window if any(local) else math.inf,
        "global_attention_every": local if any(local) else None,
        "rope_base": config.rope_base if rope and not all(local) else None,
        "rope_base_local": (config.rope_base_local or config.rope_base) if rope and any(local) else None,
    } | _effective_scaling(config, rope, local)  # fmt: skip


def _effective_scaling(config: TransformerConfig, rope: bool, local: list[bool]) -> dict[str, object]:
    scaling = config.rope_scaling
    reaches = rope and not (scaling.global_layers_only and all(local))
    scaled = reaches and scaling.is_on
    kind = scaling.kind if scaled else RopeScaling.none
    by_kind: dict[str, object] = {
        "low_freq_factor": scaling.low_freq_factor if kind is RopeScaling.llama3 else None,
        "high_freq_factor": scaling.high_freq_factor if kind is RopeScaling.llama3 else None,
        "beta_fast": scaling.beta_fast if kind is RopeScaling.yarn else None,
        "beta_slow": scaling.beta_slow if kind is RopeScaling.yarn else None,
        "attention_factor": scaling.rotation_scale if kind is RopeScaling.yarn else None,
        "original_context_length": scaling.original_context_length if kind in _WITH_ORIGINAL else None,
        "global_layers_only": scaling.global_layers_only if scaled and any(local) else None,
    }
    found = {"kind": kind, "factor": scaling.factor if scaled else 1.0} | by_kind
    return {f"rope_scaling.{name}": value for name, value in found.items()}
