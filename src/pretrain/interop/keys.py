"""Settings of ours that correspond to several keys of config.json: sliding windows, biases, scales."""

from collections.abc import Sequence
from typing import Any

from pretrain.interop.config_json import ConfigJson
from pretrain.interop.family import Group, Settings
from pretrain.interop.rope_keys import (
    GLOBAL,
    LOCAL,
    KindsOf,
    read_rope_by_kind,
    sections_by_kind,
    write_rope_by_kind,
)
from pretrain.models.config import TransformerConfig


def _read_offset(record: ConfigJson) -> Settings:
    record.reject_null("pad_token_id")
    pad = record.values.get("pad_token_id", 1)
    if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < record.largest:
        raise record.error("pad_token_id", "is not the id of a token, and positions start after it")
    rows = record.count("max_position_embeddings", 512) or 512
    if rows <= pad + 1:
        raise record.error("max_position_embeddings", f"leaves no position, because the first is {pad + 1}")
    return {"position_offset": pad + 1, "context_length": rows - pad - 1}


def _write_offset(config: TransformerConfig) -> Settings:
    rows = config.context_length + config.position_offset
    return {"max_position_embeddings": rows, "pad_token_id": max(0, config.position_offset - 1)}


POSITIONS_AFTER_PADDING = Group(  # RoBERTa
    _read_offset, _write_offset, ("max_position_embeddings", "pad_token_id")
)


def _read_everywhere(record: ConfigJson) -> Settings:
    window = record.length("sliding_window", 4096) if record.values.get("sliding_window", 0) is not None else None
    if record.values.get("layer_types") is not None:
        raise record.error("layer_types", "is not supported here, only one window in all layers")
    return {"sliding_window": window, "global_attention_every": 1 if window is None else 0}


def _write_everywhere(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {"sliding_window": config.sliding_window if all(local) else None}


WINDOW_EVERYWHERE = Group(_read_everywhere, _write_everywhere, ("sliding_window", "layer_types"))  # Mistral
OPTIONAL_WINDOW = Group(  # Phi-3: as Mistral, but by default none
    lambda record: _read_everywhere(ConfigJson({"sliding_window": None, **record.values}, record.location)),
    _write_everywhere,
    ("sliding_window",),
)


def _read_by_layer(record: ConfigJson) -> Settings:
    for key in ("use_sliding_window", "max_window_layers"):
        record.reject_null(key)
    layers, first = record.layers("num_hidden_layers") or 0, record.number("max_window_layers", 28)
    has_window = record.flag("use_sliding_window", False) and record.values.get("sliding_window", 0) is not None
    default = [LOCAL if has_window and layer >= (first or 0) else GLOBAL for layer in range(layers)]
    kinds = record.texts("layer_types") or default
    if LOCAL in kinds and not has_window:
        raise record.error("layer_types", "names a window, and use_sliding_window or sliding_window turns it off")
    return _pattern(record, kinds, record.length("sliding_window", 4096))


def _write_by_layer(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {
        "use_sliding_window": any(local),
        "sliding_window": config.sliding_window if any(local) else None,
        "max_window_layers": 0 if any(local) else config.n_layers,
        "layer_types": _kinds(config),
    }


WINDOW_BY_LAYER = Group(  # Qwen2 and Qwen3
    _read_by_layer, _write_by_layer, ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
)


def _read_modern(record: ConfigJson) -> Settings:
    for key in ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", "local_attention"):
        record.reject_null(key)
    layers, every = record.layers("num_hidden_layers") or 0, record.length("global_attn_every_n_layers", 3) or 3
    kinds = record.texts("layer_types") or [LOCAL if layer % every else GLOBAL for layer in range(layers)]
    settings = _pattern(record, kinds, record.length("local_attention", 128))
    base = record.positive("global_rope_theta", 160_000.0) or 160_000.0
    local = record.positive("local_rope_theta", 10_000.0) or 10_000.0
    return settings | read_rope_by_kind(record, sections_by_kind(record), (base, local), kinds)


def _write_modern(config: TransformerConfig) -> Settings:
    parameters = write_rope_by_kind(config)
    record: Settings = {
        "layer_types": _kinds(config),
        "local_attention": config.sliding_window or 128,
        "rope_parameters": parameters,
        "global_rope_theta": parameters[GLOBAL]["rope_theta"],  # this and the next: read before version 5
        "local_rope_theta": parameters[LOCAL]["rope_theta"],
    }
    every = 1 if config.sliding_window is None else config.global_attention_every
    regular = every and not config.global_attention_offset and not config.global_attention_layers
    return record | ({"global_attn_every_n_layers": every} if regular else {})


LOCAL_AND_GLOBAL = Group(  # ModernBERT
    _read_modern,
    _write_modern,
    ("layer_types", "local_attention", "global_attn_every_n_layers", "rope_parameters", "partial_rotary_factor",
     "global_rope_theta", "local_rope_theta"),
)  # fmt: skip


def _kinds(config: TransformerConfig) -> list[str]:
    return [GLOBAL if config.layer_window(layer) is None else LOCAL for layer in range(config.n_layers)]


def _pattern(record: ConfigJson, kinds: Sequence[str], window: int | None) -> Settings:
    """Return our settings for layers of these kinds: which attend to the whole row, as every n-th, a list, or none."""
    if len(kinds) != record.layers("num_hidden_layers") or not set(kinds) <= {LOCAL, GLOBAL}:
        raise record.error("layer_types", f"is not {LOCAL} or {GLOBAL} for each layer")
    if LOCAL not in kinds:
        return {"sliding_window": None}
    numbers = [layer for layer, kind in enumerate(kinds) if kind == GLOBAL]
    first, second = [*numbers, 0, 0][0], [*numbers, len(kinds), len(kinds)][1]
    every = second - first if len(numbers) > 1 else len(kinds) * len(numbers)
    regular = first < max(1, every) and numbers == (list(range(first, len(kinds), every)) if every else [])
    pattern = {"global_attention_every": every, "global_attention_offset": first}
    return {"sliding_window": window} | (pattern if regular else {"global_attention_layers": numbers})


def layer_kinds(every: int, pattern_key: str | None = None) -> KindsOf:
    """Return what reads the kind of each layer: by default the last of every `every` layers attends to the whole row.

    `pattern_key` is the key for that number in configurations without layer_types, if there is one.
    """

    def kinds(record: ConfigJson) -> list[str]:
        layers = record.layers("num_hidden_layers") or 0
        period = every
        if pattern_key is not None:
            record.reject_null(pattern_key)
            period = record.length(pattern_key, every) or every
        return record.texts("layer_types") or [LOCAL if (n + 1) % period else GLOBAL for n in range(layers)]

    return kinds


def window_by_kind(kinds: KindsOf, *older_keys: str) -> Group:
    """Return sliding windows in the layers of one kind."""

    def read(record: ConfigJson) -> Settings:
        found = kinds(record)
        if LOCAL in found and "sliding_window" in record.values:
            record.reject_null("sliding_window")
        return _pattern(record, found, record.length("sliding_window", 4096))

    def write(config: TransformerConfig) -> Settings:
        return {"layer_types": _kinds(config), "sliding_window": config.sliding_window or 4096}

    return Group(read, write, ("layer_types", "sliding_window", *older_keys))


def biases(attention: Sequence[str], others: Sequence[str] = ()) -> Group:
    """Return a bias in all linear layers of attention or in none, and so in all others.

    Keys are false by default, and those of a list must agree; where `others` is empty they have none.
    """

    def agreed(record: ConfigJson, keys: Sequence[str]) -> bool:
        for key in keys:
            record.reject_null(key)
        values = [record.flag(key, False) for key in keys] or [False]
        if len(set(values)) > 1:
            raise record.error(keys[0], f"differs from {', '.join(keys[1:])}, which is not supported")
        return values[0]

    def read(record: ConfigJson) -> Settings:
        inside, outside = agreed(record, attention), agreed(record, others)
        own = None if inside is outside else inside
        found: Settings = {"bias": outside} if others else {}
        return found | {"qkv_bias": own, "attention_output_bias": own}

    def write(config: TransformerConfig) -> dict[str, Any]:
        return dict.fromkeys(attention, config.attention_bias) | dict.fromkeys(others, config.bias)

    return Group(read, write, (*attention, *others))


def softcaps(attention: float | None, logits: float | None) -> Group:
    """Return bounds of attention scores and of logits; null is none, and a missing key means these defaults."""
    names = {"attention_softcap": ("attn_logit_softcapping", attention)}
    names |= {"logit_softcap": ("final_logit_softcapping", logits)}

    def read(record: ConfigJson) -> Settings:
        return {ours: record.positive(key) if key in record.values else usual for ours, (key, usual) in names.items()}

    def write(config: TransformerConfig) -> Settings:
        return {key: getattr(config, ours) for ours, (key, _) in names.items()}

    return Group(read, write, [key for key, _ in names.values()])


def _read_gemma(record: ConfigJson) -> Settings:
    record.reject_null("query_pre_attn_scalar")
    scalar = record.positive("query_pre_attn_scalar", 256.0) or 256.0
    return {"attention_scale": scalar**-0.5}


def _write_gemma(config: TransformerConfig) -> Settings:
    return {"query_pre_attn_scalar": max(1, round(config.score_scale**-2))}


QUERY_SCALAR = Group(_read_gemma, _write_gemma, ("query_pre_attn_scalar",))  # Gemma
