"""Settings that take several keys of config.json: rotary positions, sliding windows, biases."""

from collections.abc import Sequence
from typing import Any

from pretrain.errors import CheckpointError
from pretrain.interop.family import Group, Settings
from pretrain.interop.record import Record
from pretrain.models.config import Position, RopeScaling, RopeScalingConfig, TransformerConfig

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_SCALINGS = {"default": RopeScaling.none, "linear": RopeScaling.linear, "llama3": RopeScaling.llama3}
_IN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_OF_SCALING = {  # what else the parameters of each kind may say, changing nothing where the kind does not use it
    "default": {"factor"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}


def rope(base: float = 10_000.0, default: Settings | None = None) -> Group:
    """Return rotary positions that all layers share, turning with this base where config.json does not say another.

    `default` are the parameters that the architecture takes where nothing is said; `rope_scaling` goes before
    `rope_parameters`, as in transformers.
    """

    def read(record: Record) -> Settings:
        record.refuse_null("rope_theta")
        said = record.section("rope_scaling")
        if not said.values and record.values.get("rope_parameters") is None and default is not None:
            if "rope_theta" in record.values:
                raise record.refuse("rope_theta", "does not stand in rope_parameters, where versions of transformers "
                                    "differ on it. Write it there, with the rope_type")  # fmt: skip
            said = Record(default, record.where)
        elif not said.values:
            said = record.section("rope_parameters")
        found, scaling = _read_rope(said, record, record.positive("rope_theta", base) or base)
        return {"rope_base": found, "rope_scaling": scaling}

    def write(config: TransformerConfig) -> Settings:
        if config.position is not Position.rope:
            return {}
        local_only = all(config.layer_window(layer) is not None for layer in range(config.n_layers))
        said = _write_rope(config, config.rope_base_local if local_only else None)
        before = {"rope_theta": said["rope_theta"]}  # where versions of transformers before 5 look
        if config.rope_scaling.kind is not RopeScaling.none:
            before["rope_scaling"] = said
        return {"rope_parameters": said, **before}

    return Group(read, write, ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor"))


def _read_rope(said: Record, record: Record, base: float) -> tuple[float, RopeScalingConfig]:
    for key, value in said.values.items():
        if isinstance(value, dict):
            raise said.refuse(key, "differs from layer to layer, which is not supported here")
    for part in (said, record):
        if part.number("partial_rotary_factor", 1.0) != 1.0:
            raise part.refuse("partial_rotary_factor", "is not supported, only 1.0")
    for key in ("rope_theta", "rope_type", "factor"):
        said.refuse_null(key)
    word = "rope_type" if "rope_type" in said.values else "type"
    kind = said.text(word, "default")
    if kind not in _SCALINGS:
        raise said.refuse(word, f"is not supported, only {', '.join(_SCALINGS)}")
    for key, value in said.values.items():
        if key not in _IN_ROPE | _OF_SCALING[kind] and value is not None:
            raise said.refuse(key, f"does not belong to the rope type {kind}. Remove it if it means nothing")
    return said.positive("rope_theta", base) or base, _read_scaling(said, record, kind)


def _read_scaling(said: Record, record: Record, kind: str) -> RopeScalingConfig:
    if kind == "default":
        if said.number("factor", 1.0) != 1.0:
            raise said.refuse("factor", "has no effect with the rope type default. Remove it, or name the type")
        return RopeScalingConfig()
    needed = _OF_SCALING[kind] - {"original_max_position_embeddings"}
    lacking = sorted(key for key in needed if said.values.get(key) is None)
    if lacking:
        raise CheckpointError(f"{said.where} has no {lacking[0]}, which the rope type {kind} needs.")
    found = RopeScalingConfig(_SCALINGS[kind], factor=said.positive("factor") or 1.0)
    if kind == "llama3":
        said.refuse_null("original_max_position_embeddings")
        usual = record.length("max_position_embeddings")
        found.low_freq_factor = said.positive("low_freq_factor") or found.low_freq_factor
        found.high_freq_factor = said.positive("high_freq_factor") or found.high_freq_factor
        found.original_context_length = (
            said.length("original_max_position_embeddings", usual) or found.original_context_length
        )
    return found


def _write_rope(config: TransformerConfig, base: float | None = None) -> Settings:
    scaling = config.rope_scaling
    word = next(word for word, kind in _SCALINGS.items() if kind is scaling.kind)
    said: Settings = {"rope_type": word, "rope_theta": base or config.rope_base}
    if scaling.kind is not RopeScaling.none:
        said["factor"] = scaling.factor
    if scaling.kind is RopeScaling.llama3:
        said |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        }
    return said


def _read_everywhere(record: Record) -> Settings:
    window = record.length("sliding_window", 4096) if record.values.get("sliding_window", 0) is not None else None
    if record.values.get("layer_types") is not None:
        raise record.refuse("layer_types", "is not supported here, only windows that are alike in all layers")
    return {"sliding_window": window, "global_attention_every": 1 if window is None else 0}


def _write_everywhere(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {"sliding_window": config.sliding_window if all(local) else None}


WINDOW_EVERYWHERE = Group(_read_everywhere, _write_everywhere, ("sliding_window", "layer_types"))  # Mistral


def _read_by_layer(record: Record) -> Settings:
    for key in ("use_sliding_window", "max_window_layers"):
        record.refuse_null(key)
    layers, first = record.layers("num_hidden_layers") or 0, record.number("max_window_layers", 28)
    has_window = record.flag("use_sliding_window", False) and record.values.get("sliding_window", 0) is not None
    usual = [_LOCAL if has_window and layer >= (first or 0) else _GLOBAL for layer in range(layers)]
    kinds = record.texts("layer_types") or usual
    if _LOCAL in kinds and not has_window:
        raise record.refuse("layer_types", "names a window, and use_sliding_window and sliding_window give none")
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


def _read_modern(record: Record) -> Settings:
    for key in ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", "local_attention"):
        record.refuse_null(key)
    layers, every = record.layers("num_hidden_layers") or 0, record.length("global_attn_every_n_layers", 3) or 3
    kinds = record.texts("layer_types") or [_LOCAL if layer % every else _GLOBAL for layer in range(layers)]
    settings = _pattern(record, kinds, record.length("local_attention", 128))
    said = record.section("rope_parameters")
    for key in said.values:
        if key not in (_LOCAL, _GLOBAL):
            raise said.refuse(key, f"belongs into {_GLOBAL} or {_LOCAL}")
    base = record.positive("global_rope_theta", 160_000.0) or 160_000.0
    local = record.positive("local_rope_theta", 10_000.0) or 10_000.0
    settings["rope_base"], scaling = _read_rope(said.section(_GLOBAL), record, base)
    settings["rope_base_local"], scaling_local = _read_rope(said.section(_LOCAL), record, local)
    if _LOCAL in kinds and _GLOBAL in kinds and scaling != scaling_local:
        raise record.refuse("rope_parameters", "stretches positions in some layers only, which is not supported")
    return settings | {"rope_scaling": scaling if _GLOBAL in kinds else scaling_local}


def _write_modern(config: TransformerConfig) -> Settings:
    parameters = {_GLOBAL: _write_rope(config), _LOCAL: _write_rope(config, config.rope_base_local)}
    record: Settings = {
        "layer_types": _kinds(config),
        "local_attention": config.sliding_window or 128,
        "rope_parameters": parameters,
        "global_rope_theta": parameters[_GLOBAL]["rope_theta"],  # where versions of transformers before 5 look
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


def _pattern(record: Record, kinds: Sequence[str], window: int | None) -> Settings:
    """Return our settings for layers of these kinds: those numbered 0, n, 2n, ... see everything, or none does."""
    if len(kinds) != record.layers("num_hidden_layers") or not set(kinds) <= {_LOCAL, _GLOBAL}:
        raise record.refuse("layer_types", f"does not say {_LOCAL} or {_GLOBAL} of each of the layers")
    if _LOCAL not in kinds:
        return {"sliding_window": None}
    numbers = [layer for layer, kind in enumerate(kinds) if kind == _GLOBAL]
    every = 0 if not numbers else numbers[1] if len(numbers) > 1 else len(kinds)
    if numbers != (list(range(0, len(kinds), every)) if every else []):
        raise record.refuse("layer_types", "is not supported, only every n-th layer from the first may see everything")
    return {"sliding_window": window, "global_attention_every": every}


def one_bias(*keys: str) -> Group:
    """Return a bias in all linear layers or in none, which these keys (by default false) must agree on."""

    def read(record: Record) -> Settings:
        for key in keys:
            record.refuse_null(key)
        values = [record.flag(key, False) for key in keys]
        if len(set(values)) > 1:
            raise record.refuse(keys[0], f"differs from {', '.join(keys[1:])}, which is not supported")
        return {"bias": values[0]}

    def write(config: TransformerConfig) -> dict[str, Any]:
        return dict.fromkeys(keys, config.bias)

    return Group(read, write, keys)
