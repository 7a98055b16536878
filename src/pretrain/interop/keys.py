"""Settings of ours that correspond to several keys of config.json: rotary positions, sliding windows, biases."""

from collections.abc import Sequence
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.interop.config_json import ConfigJson
from pretrain.interop.family import Group, Settings
from pretrain.models.config import Position, RopeScaling, RopeScalingConfig, TransformerConfig

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_SCALINGS = {"default": RopeScaling.none, "linear": RopeScaling.linear, "llama3": RopeScaling.llama3}
_IN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_OF_SCALING = {  # further keys of each kind; those that a kind does not use change nothing
    "default": {"factor"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def rope(base: float = 10_000.0, default: Settings | None = None) -> Group:
    """Return rotary positions that all layers share; `base` is the default of `rope_theta`.

    `default` holds the architecture's parameters for a config.json with none. `rope_scaling` overrides
    `rope_parameters`, as in transformers.
    """

    def read(record: ConfigJson) -> Settings:
        record.reject_null("rope_theta")
        parameters = record.section("rope_scaling")
        if not parameters.values and record.values.get("rope_parameters") is None and default is not None:
            if "rope_theta" in record.values:
                raise record.error("rope_theta", "is not inside rope_parameters, and versions of transformers read it "
                                   "differently. Move it there, beside the rope_type")  # fmt: skip
            parameters = ConfigJson(default, record.location)
        elif not parameters.values:
            parameters = record.section("rope_parameters")
        rope_base, scaling = _read_rope(parameters, record, record.positive("rope_theta", base) or base)
        return {"rope_base": rope_base, "rope_scaling": scaling}

    def write(config: TransformerConfig) -> Settings:
        if config.position is not Position.rope:
            return {}
        local_only = all(config.layer_window(layer) is not None for layer in range(config.n_layers))
        parameters = _write_rope(config, config.rope_base_local if local_only else None)
        older = {"rope_theta": parameters["rope_theta"]}  # keys that transformers read before version 5
        if config.rope_scaling.kind is not RopeScaling.none:
            older["rope_scaling"] = parameters
        return {"rope_parameters": parameters, **older}

    return Group(read, write, ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor"))


def _read_neox(record: ConfigJson) -> Settings:
    for key in ("rotary_pct", "rotary_emb_base"):
        record.reject_null(key)
    parameters = record.section("rope_scaling")
    parameters = parameters if parameters.values else record.section("rope_parameters")
    parameters.reject_null("partial_rotary_factor")
    fraction = parameters.positive("partial_rotary_factor", record.positive("rotary_pct", 0.25)) or 1.0
    if fraction > 1.0:
        raise parameters.error("partial_rotary_factor", "or rotary_pct is above 1, all channels of a head")
    whole = {key: value for key, value in parameters.values.items() if key != "partial_rotary_factor"}
    base = record.positive("rotary_emb_base", 10_000.0) or 10_000.0
    rope_base, scaling = _read_rope(ConfigJson(whole, parameters.location), record, base)
    return {"rope_base": rope_base, "rope_scaling": scaling, "rope_fraction": fraction}


def _write_neox(config: TransformerConfig) -> Settings:
    parameters = _write_rope(config) | {"partial_rotary_factor": config.rope_fraction}
    older = {"rotary_pct": config.rope_fraction, "rotary_emb_base": config.rope_base}  # read before version 5
    return {"rope_parameters": parameters, **older} | (
        {"rope_scaling": parameters} if config.rope_scaling.kind is not RopeScaling.none else {}
    )


PARTIAL_ROPE = Group(  # GPT-NeoX
    _read_neox, _write_neox, ("rope_scaling", "rope_parameters", "rotary_pct", "rotary_emb_base")
)


def _read_nope(record: ConfigJson) -> Settings:
    record.reject_null("no_rope_layer_interval")
    layers, every = record.layers("num_hidden_layers") or 0, record.layers("no_rope_layer_interval", 4) or 4
    for key in ("use_sliding_window", "layer_types"):
        if record.values.get(key) not in (None, False, [_GLOBAL] * layers):
            raise record.error(key, f"is not supported here, only {_GLOBAL} in all layers")
    rotates = record.values.get("no_rope_layers")
    if rotates is None:
        return {"nope_every": every}
    if not isinstance(rotates, list) or any(type(each) is not int for each in rotates) or len(rotates) < layers:
        raise record.error("no_rope_layers", "is not 0 or 1 for each layer")
    rotates = [bool(each) for each in rotates[:layers]]
    every = rotates.index(False) + 1 if False in rotates else 0
    if rotates != [not every or layer % every != every - 1 for layer in range(layers)]:
        raise record.error("no_rope_layers", "is not supported, only a 0 for the last of every n layers")
    return {"nope_every": every}


def _write_nope(config: TransformerConfig) -> Settings:
    record: Settings = {"no_rope_layers": [int(config.layer_rotates(layer)) for layer in range(config.n_layers)]}
    record |= {"layer_types": [_GLOBAL] * config.n_layers, "use_sliding_window": False}
    return record | ({"no_rope_layer_interval": config.nope_every} if config.nope_every else {})


LAYERS_WITHOUT_ROPE = Group(  # SmolLM3
    _read_nope, _write_nope, ("no_rope_layers", "no_rope_layer_interval", "layer_types", "use_sliding_window")
)


def _read_offset(record: ConfigJson) -> Settings:
    record.reject_null("pad_token_id")
    pad = record.values.get("pad_token_id", 1)
    if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < record.largest:
        raise record.error("pad_token_id", "is not the id of a token, and positions start behind it")
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


def _read_rope(parameters: ConfigJson, record: ConfigJson, base: float) -> tuple[float, RopeScalingConfig]:
    for key, value in parameters.values.items():
        if isinstance(value, dict):
            raise parameters.error(key, "differs from layer to layer, which is not supported here")
    for part in (parameters, record):
        if part.number("partial_rotary_factor", 1.0) != 1.0:
            raise part.error("partial_rotary_factor", "is not supported, only 1.0")
    for key in ("rope_theta", "rope_type", "factor"):
        parameters.reject_null(key)
    word = "rope_type" if "rope_type" in parameters.values else "type"
    kind = parameters.text(word, "default")
    if kind not in _SCALINGS:
        raise parameters.error(word, f"is not supported, only {', '.join(_SCALINGS)}")
    for key, value in parameters.values.items():
        if key not in _IN_ROPE | _OF_SCALING[kind] and value is not None:
            raise parameters.error(key, f"does not belong to the rope type {kind}. Remove it if it has no effect")
    return parameters.positive("rope_theta", base) or base, _read_scaling(parameters, record, kind)


def _read_scaling(parameters: ConfigJson, record: ConfigJson, kind: str) -> RopeScalingConfig:
    if kind == "default":
        if parameters.number("factor", 1.0) != 1.0:
            raise parameters.error("factor", "has no effect with the rope type default. Remove it, or name the type")
        return RopeScalingConfig()
    required = _OF_SCALING[kind] - {"original_max_position_embeddings"}
    missing = sorted(key for key in required if parameters.values.get(key) is None)
    if missing:
        raise CheckpointError(f"{parameters.location} has no {missing[0]}, which the rope type {kind} needs.")
    scaling = RopeScalingConfig(_SCALINGS[kind], factor=parameters.positive("factor") or 1.0)
    if kind == "llama3":
        parameters.reject_null("original_max_position_embeddings")
        context_length = record.length("max_position_embeddings")
        scaling.low_freq_factor = parameters.positive("low_freq_factor") or scaling.low_freq_factor
        scaling.high_freq_factor = parameters.positive("high_freq_factor") or scaling.high_freq_factor
        scaling.original_context_length = (
            parameters.length("original_max_position_embeddings", context_length) or scaling.original_context_length
        )
    return scaling


def _write_rope(config: TransformerConfig, base: float | None = None) -> Settings:
    scaling = config.rope_scaling
    word = next(word for word, kind in _SCALINGS.items() if kind is scaling.kind)
    parameters: Settings = {"rope_type": word, "rope_theta": base or config.rope_base}
    if scaling.kind is not RopeScaling.none:
        parameters["factor"] = scaling.factor
    if scaling.kind is RopeScaling.llama3:
        parameters |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        }
    return parameters


def _read_everywhere(record: ConfigJson) -> Settings:
    window = record.length("sliding_window", 4096) if record.values.get("sliding_window", 0) is not None else None
    if record.values.get("layer_types") is not None:
        raise record.error("layer_types", "is not supported here, only one window in all layers")
    return {"sliding_window": window, "global_attention_every": 1 if window is None else 0}


def _write_everywhere(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {"sliding_window": config.sliding_window if all(local) else None}


WINDOW_EVERYWHERE = Group(_read_everywhere, _write_everywhere, ("sliding_window", "layer_types"))  # Mistral


def _read_by_layer(record: ConfigJson) -> Settings:
    for key in ("use_sliding_window", "max_window_layers"):
        record.reject_null(key)
    layers, first = record.layers("num_hidden_layers") or 0, record.number("max_window_layers", 28)
    has_window = record.flag("use_sliding_window", False) and record.values.get("sliding_window", 0) is not None
    default = [_LOCAL if has_window and layer >= (first or 0) else _GLOBAL for layer in range(layers)]
    kinds = record.texts("layer_types") or default
    if _LOCAL in kinds and not has_window:
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
    kinds = record.texts("layer_types") or [_LOCAL if layer % every else _GLOBAL for layer in range(layers)]
    settings = _pattern(record, kinds, record.length("local_attention", 128))
    parameters = record.section("rope_parameters")
    for key in parameters.values:
        if key not in (_LOCAL, _GLOBAL):
            raise parameters.error(key, f"must be inside {_GLOBAL} or {_LOCAL}")
    base = record.positive("global_rope_theta", 160_000.0) or 160_000.0
    local = record.positive("local_rope_theta", 10_000.0) or 10_000.0
    settings["rope_base"], scaling = _read_rope(parameters.section(_GLOBAL), record, base)
    settings["rope_base_local"], scaling_local = _read_rope(parameters.section(_LOCAL), record, local)
    if _LOCAL in kinds and _GLOBAL in kinds and scaling != scaling_local:
        raise record.error("rope_parameters", "scales positions in some layers only, which is not supported")
    return settings | {"rope_scaling": scaling if _GLOBAL in kinds else scaling_local}


def _write_modern(config: TransformerConfig) -> Settings:
    parameters = {_GLOBAL: _write_rope(config), _LOCAL: _write_rope(config, config.rope_base_local)}
    record: Settings = {
        "layer_types": _kinds(config),
        "local_attention": config.sliding_window or 128,
        "rope_parameters": parameters,
        "global_rope_theta": parameters[_GLOBAL]["rope_theta"],  # this and the next: read before version 5
        "local_rope_theta": parameters[_LOCAL]["rope_theta"],
    }
    every = 1 if config.sliding_window is None else config.global_attention_every
    return record | ({"global_attn_every_n_layers": every} if every else {})


LOCAL_AND_GLOBAL = Group(  # ModernBERT
    _read_modern,
    _write_modern,
    ("layer_types", "local_attention", "global_attn_every_n_layers", "rope_parameters", "partial_rotary_factor",
     "global_rope_theta", "local_rope_theta"),
)  # fmt: skip


def _kinds(config: TransformerConfig) -> list[str]:
    return [_GLOBAL if config.layer_window(layer) is None else _LOCAL for layer in range(config.n_layers)]


def _pattern(record: ConfigJson, kinds: Sequence[str], window: int | None) -> Settings:
    """Return our settings for layers of these kinds: global attention in layers 0, n, 2n, ... or in none."""
    if len(kinds) != record.layers("num_hidden_layers") or not set(kinds) <= {_LOCAL, _GLOBAL}:
        raise record.error("layer_types", f"is not {_LOCAL} or {_GLOBAL} for each layer")
    if _LOCAL not in kinds:
        return {"sliding_window": None}
    numbers = [layer for layer, kind in enumerate(kinds) if kind == _GLOBAL]
    every = 0 if not numbers else numbers[1] if len(numbers) > 1 else len(kinds)
    if numbers != (list(range(0, len(kinds), every)) if every else []):
        raise record.error("layer_types", "is not supported, only full attention in every n-th layer from the first")
    return {"sliding_window": window, "global_attention_every": every}


def one_bias(*keys: str) -> Group:
    """Return a bias in all linear layers or in none; these keys, false by default, must agree."""

    def read(record: ConfigJson) -> Settings:
        for key in keys:
            record.reject_null(key)
        values = [record.flag(key, False) for key in keys]
        if len(set(values)) > 1:
            raise record.error(keys[0], f"differs from {', '.join(keys[1:])}, which is not supported")
        return {"bias": values[0]}

    def write(config: TransformerConfig) -> dict[str, Any]:
        return dict.fromkeys(keys, config.bias)

    return Group(read, write, keys)
