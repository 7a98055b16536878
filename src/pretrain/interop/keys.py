"""Settings that config.json spreads over several keys: rotary positions, windows, biases."""

from collections.abc import Sequence
from typing import Any

from pretrain.interop.family import Group, Settings
from pretrain.interop.record import Record
from pretrain.models.config import Position, RopeScaling, RopeScalingConfig, TransformerConfig

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_SCALINGS = {"default": RopeScaling.none, "linear": RopeScaling.linear, "llama3": RopeScaling.llama3}


def rope(default: Settings | None = None) -> Group:
    """Return rotary positions that all layers share; `default` is what the architecture takes where nothing is said."""

    def read(record: Record) -> Settings:
        said = record.section("rope_scaling")
        said = said if said.values else record.section("rope_parameters")
        if default is not None and not said.values:
            said = Record(default, record.where)
        base, scaling = _read_rope(said, record)
        return {"rope_base": base, "rope_scaling": scaling}

    def write(config: TransformerConfig) -> Settings:
        if config.position is not Position.rope:
            return {}
        local_only = all(config.layer_window(layer) is not None for layer in range(config.n_layers))
        said = _write_rope(config, config.rope_base_local if local_only else None)
        before = {"rope_theta": said["rope_theta"]}  # where versions of transformers before 5 look
        if config.rope_scaling.kind is not RopeScaling.none:
            before["rope_scaling"] = said
        return {"rope_parameters": said, **before}

    return Group(read, write)


def _read_rope(said: Record, record: Record, base: float = 10_000.0) -> tuple[float, RopeScalingConfig]:
    for key, value in said.values.items():
        if isinstance(value, dict):
            raise said.refuse(key, "differs from layer to layer, which is not supported here")
    for part in (said, record):
        if part.number("partial_rotary_factor", 1.0) != 1.0:
            raise part.refuse("partial_rotary_factor", "is not supported, only 1.0")
    theta = said.number("rope_theta", record.number("rope_theta", base))
    kind = said.text("rope_type", said.text("type", "default"))
    if kind not in _SCALINGS:
        raise said.refuse("rope_type" if "rope_type" in said.values else "type",
                          f"is not supported, only {', '.join(_SCALINGS)}")  # fmt: skip
    usual = RopeScalingConfig()
    scaling = RopeScalingConfig(
        kind=_SCALINGS[kind],
        factor=said.number("factor", 1.0) or 1.0,
        low_freq_factor=said.number("low_freq_factor") or usual.low_freq_factor,
        high_freq_factor=said.number("high_freq_factor") or usual.high_freq_factor,
        original_context_length=said.count("original_max_position_embeddings", record.count("max_position_embeddings"))
        or usual.original_context_length,
    )
    return theta or base, RopeScalingConfig() if kind == "default" else scaling


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
    window = record.count("sliding_window", 4096) if record.values.get("sliding_window", 0) is not None else None
    if record.values.get("layer_types") is not None:
        raise record.refuse("layer_types", "is not supported here, only windows that are alike in all layers")
    return {"window": window, "global_every": 1 if window is None else 0}


def _write_everywhere(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {"sliding_window": config.window if all(local) else None}


WINDOW_EVERYWHERE = Group(_read_everywhere, _write_everywhere)  # Mistral


def _read_by_layer(record: Record) -> Settings:
    if not record.flag("use_sliding_window", False) or record.values.get("sliding_window", 0) is None:
        return {"window": None}
    layers, first = record.layers("num_hidden_layers") or 0, record.number("max_window_layers", 28) or 0
    kinds = record.texts("layer_types") or [_LOCAL if layer >= first else _GLOBAL for layer in range(layers)]
    return _pattern(record, kinds, record.count("sliding_window", 4096))


def _write_by_layer(config: TransformerConfig) -> Settings:
    local = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    return {
        "use_sliding_window": any(local),
        "sliding_window": config.window if any(local) else None,
        "max_window_layers": 0 if any(local) else config.n_layers,
        "layer_types": _kinds(config),
    }


WINDOW_BY_LAYER = Group(_read_by_layer, _write_by_layer)  # Qwen2 and Qwen3


def _read_modern(record: Record) -> Settings:
    layers, every = record.layers("num_hidden_layers") or 0, record.count("global_attn_every_n_layers", 3) or 3
    kinds = record.texts("layer_types") or [_LOCAL if layer % every else _GLOBAL for layer in range(layers)]
    settings = _pattern(record, kinds, record.count("local_attention", 128))
    said = record.section("rope_parameters")
    base = record.number("global_rope_theta", 160_000.0) or 160_000.0
    local = record.number("local_rope_theta", 10_000.0) or 10_000.0
    settings["rope_base"], scaling = _read_rope(said.section(_GLOBAL), record, base)
    settings["rope_base_local"], scaling_local = _read_rope(said.section(_LOCAL), record, local)
    if _LOCAL in kinds and _GLOBAL in kinds and scaling != scaling_local:
        raise record.refuse("rope_parameters", "stretches positions in some layers only, which is not supported")
    return settings | {"rope_scaling": scaling if _GLOBAL in kinds else scaling_local}


def _write_modern(config: TransformerConfig) -> Settings:
    parameters = {_GLOBAL: _write_rope(config), _LOCAL: _write_rope(config, config.rope_base_local)}
    record: Settings = {
        "layer_types": _kinds(config),
        "local_attention": config.window or 128,
        "rope_parameters": parameters,
        "global_rope_theta": parameters[_GLOBAL]["rope_theta"],  # where versions of transformers before 5 look
        "local_rope_theta": parameters[_LOCAL]["rope_theta"],
    }
    every = 1 if config.window is None else config.global_every
    return record | ({"global_attn_every_n_layers": every} if every else {})


LOCAL_AND_GLOBAL = Group(_read_modern, _write_modern)  # ModernBERT


def _kinds(config: TransformerConfig) -> list[str]:
    return [_GLOBAL if config.layer_window(layer) is None else _LOCAL for layer in range(config.n_layers)]


def _pattern(record: Record, kinds: Sequence[str], window: int | None) -> Settings:
    """Return our settings for layers of these kinds: those numbered 0, n, 2n, ... see everything, or none does."""
    if len(kinds) != record.count("num_hidden_layers") or not set(kinds) <= {_LOCAL, _GLOBAL}:
        raise record.refuse("layer_types", f"does not say {_LOCAL} or {_GLOBAL} of each of the layers")
    if _LOCAL not in kinds:
        return {"window": None}
    for every in range(len(kinds) + 1):
        if all((kind == _GLOBAL) is (every > 0 and layer % every == 0) for layer, kind in enumerate(kinds)):
            return {"window": window, "global_every": every}
    raise record.refuse("layer_types", "is not supported, only every n-th layer from the first may see everything")


def one_bias(*keys: str, also: tuple[str, ...] = ()) -> Group:
    """Return a bias in all linear layers or in none, which these keys (by default false) must agree on."""

    def read(record: Record) -> Settings:
        values = [record.flag(key, False) for key in keys]
        if len(set(values)) > 1:
            raise record.refuse(keys[0], f"differs from {', '.join(keys[1:])}, which is not supported")
        return {"bias": values[0]}

    def write(config: TransformerConfig) -> dict[str, Any]:
        return dict.fromkeys(keys, config.bias)

    return Group(read, write)
