"""Rotary positions in config.json: their base, their scaling, which layers and channels have them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pretrain.errors import CheckpointError, ConfigError
from pretrain.interop.config_json import ConfigJson
from pretrain.interop.family import Group, Settings
from pretrain.models.choices import Position
from pretrain.models.config import TransformerConfig
from pretrain.models.rope_config import RopeScaling, RopeScalingConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"
_SCALINGS = {
    "default": RopeScaling.none, "linear": RopeScaling.linear, "llama3": RopeScaling.llama3, "yarn": RopeScaling.yarn,
}  # fmt: skip
_IN_ROPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_OPTIONAL = {"original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"}
_OF_SCALING = {  # further keys of each kind; those that a kind does not use change nothing
    "default": {"factor"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", *_OPTIONAL},
}

KindsOf = Callable[[ConfigJson], list[str]]  # the kind of each layer


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
        windows = [config.layer_window(layer) for layer in range(config.n_layers)]
        parameters = _write_rope(config, None if None in windows else windows[0])
        return {"rope_parameters": parameters, "rope_theta": parameters["rope_theta"], **_older(parameters)}

    return Group(read, write, ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor"))


def partial_rope(fraction_key: str, base_key: str, fraction: float, is_scaled: bool) -> Group:
    """Return rotary positions of a share of each head's channels, by default `fraction`, that all layers share.

    The keys are those from before version 5 of transformers. Without `is_scaled` positions can only be unscaled.
    """

    def read(record: ConfigJson) -> Settings:
        for key in (fraction_key, base_key):
            record.reject_null(key)
        parameters = record.section("rope_scaling")
        parameters = parameters if parameters.values else record.section("rope_parameters")
        parameters.reject_null("partial_rotary_factor")
        is_inside = "partial_rotary_factor" in parameters.values
        part, key = (parameters, "partial_rotary_factor") if is_inside else (record, fraction_key)
        share = part.positive(key, fraction) or 1.0
        if share > 1.0:
            raise part.error(key, "is above 1, all channels of a head")
        base = record.positive(base_key, 10_000.0) or 10_000.0
        rope_base, scaling = _read_rope(_without_fraction(parameters), _without_fraction(record), base)
        if scaling.is_on and not is_scaled:
            raise parameters.error("rope_type", "is not supported in this architecture, only default")
        return {"rope_base": rope_base, "rope_scaling": scaling, "rope_fraction": share}

    def write(config: TransformerConfig) -> Settings:
        parameters = _write_rope(config if is_scaled else replace(config, rope_scaling=RopeScalingConfig()))
        parameters |= {"partial_rotary_factor": config.rope_fraction}
        older = {fraction_key: config.rope_fraction, base_key: config.rope_base} | _older(parameters)
        return {"rope_parameters": parameters, **older}

    return Group(read, write, ("rope_scaling", "rope_parameters", fraction_key, base_key))


def _without_fraction(record: ConfigJson) -> ConfigJson:
    values = {key: value for key, value in record.values.items() if key != "partial_rotary_factor"}
    return ConfigJson(values, record.location, record.largest)


def _read_nope(record: ConfigJson) -> Settings:
    record.reject_null("no_rope_layer_interval")
    layers, every = record.layers("num_hidden_layers") or 0, record.layers("no_rope_layer_interval", 4) or 4
    for key in ("use_sliding_window", "layer_types"):
        if record.values.get(key) not in (None, False, [GLOBAL] * layers):
            raise record.error(key, f"is not supported here, only {GLOBAL} in all layers")
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
    record |= {"layer_types": [GLOBAL] * config.n_layers, "use_sliding_window": False}
    return record | ({"no_rope_layer_interval": config.nope_every} if config.nope_every else {})


LAYERS_WITHOUT_ROPE = Group(  # SmolLM3
    _read_nope, _write_nope, ("no_rope_layers", "no_rope_layer_interval", "layer_types", "use_sliding_window")
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
        hint = "; up to max_position_embeddings it changes nothing, and may be removed" if kind == "dynamic" else ""
        raise parameters.error(word, f"is not supported, only {', '.join(_SCALINGS)}{hint}")
    for key, value in parameters.values.items():
        if key not in _IN_ROPE | _OF_SCALING[kind] and value is not None:
            raise parameters.error(key, f"does not belong to the rope type {kind}. Remove it if it has no effect")
    return parameters.positive("rope_theta", base) or base, _read_scaling(parameters, record, kind)


def _read_scaling(parameters: ConfigJson, record: ConfigJson, kind: str) -> RopeScalingConfig:
    if kind == "default":
        if parameters.number("factor", 1.0) != 1.0:
            raise parameters.error("factor", "has no effect with the rope type default. Remove it, or name the type")
        return RopeScalingConfig()
    required = _OF_SCALING[kind] - _OPTIONAL
    missing = sorted(key for key in required if parameters.values.get(key) is None)
    if missing:
        raise CheckpointError(f"{parameters.location} has no {missing[0]}, which the rope type {kind} needs.")
    scaling = RopeScalingConfig(_SCALINGS[kind])
    scaling.factor = parameters.positive("factor") or 1.0
    for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
        if name in _OF_SCALING[kind]:
            setattr(scaling, name, parameters.positive(name, getattr(scaling, name)))
    if kind in ("llama3", "yarn"):
        parameters.reject_null("original_max_position_embeddings")
        context_length = record.length("max_position_embeddings")
        scaling.original_context_length = (
            parameters.length("original_max_position_embeddings", context_length) or scaling.original_context_length
        )
    try:
        scaling.__post_init__()
    except ConfigError as error:
        raise CheckpointError(f"{parameters.location} describes positions that cannot be: {error}") from error
    return scaling


def _write_rope(config: TransformerConfig, window: int | None = None) -> Settings:
    """Return the parameters of layers with this window; None: of those that attend to the whole row."""
    base, scaling = config.window_rope(window)
    word = next(word for word, kind in _SCALINGS.items() if kind is scaling.kind)
    parameters: Settings = {"rope_type": word, "rope_theta": base}
    if scaling.kind is not RopeScaling.none:
        parameters["factor"] = scaling.factor
    if scaling.kind in (RopeScaling.llama3, RopeScaling.yarn):
        parameters["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind is RopeScaling.llama3:
        parameters |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind is RopeScaling.yarn:
        parameters |= {
            "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "attention_factor": scaling.rotation_scale
        }  # fmt: skip
    return parameters


def _older(parameters: Settings) -> Settings:
    """Return the key that transformers read before version 5, if positions are scaled."""
    return {} if parameters["rope_type"] == "default" else {"rope_scaling": parameters}


def read_rope_by_kind(
    record: ConfigJson, parameters: tuple[ConfigJson, ConfigJson], bases: tuple[float, float], kinds: Sequence[str]
) -> Settings:
    """Return our settings for layers that attend to the whole row, and for those with a window, in this order.

    `bases` are the defaults, `kinds` the kind of each layer. Raises CheckpointError if only the latter are scaled.
    """
    (rope_base, scaling), (local_base, local) = (
        _read_rope(part, record, base) for part, base in zip(parameters, bases, strict=True)
    )
    if GLOBAL not in kinds:
        scaling = local
    elif LOCAL in kinds and scaling != local:
        if local.is_on:
            raise record.error("rope_parameters", f"scales the positions of {LOCAL} otherwise than those of {GLOBAL}, "
                               "which is not supported: the same way, or not at all")  # fmt: skip
        scaling.global_layers_only = True
    return {"rope_base": rope_base, "rope_base_local": local_base, "rope_scaling": scaling}


def sections_by_kind(record: ConfigJson) -> tuple[ConfigJson, ConfigJson]:
    """Return rope_parameters of layers that attend to the whole row, and of those with a window."""
    parameters = record.section("rope_parameters")
    for key in parameters.values:
        if key not in (LOCAL, GLOBAL):
            raise parameters.error(key, f"must be inside {GLOBAL} or {LOCAL}")
    return parameters.section(GLOBAL), parameters.section(LOCAL)


def write_rope_by_kind(config: TransformerConfig) -> dict[str, Settings]:
    """Return rope_parameters of both kinds of layers."""
    window = config.sliding_window or 1  # any: layers without one have the other kind
    return {GLOBAL: _write_rope(config), LOCAL: _write_rope(config, window)}


def rope_by_kind(base: float, local_base: float, local_key: str | None, kinds: KindsOf) -> Group:
    """Return rotary positions of two kinds of layers; `base` and `local_base` are the defaults of their rope_theta.

    `local_key` is the key of the latter before version 5; without one it was rope_theta for both. The key rope_scaling
    is added to the parameters of layers that attend to the whole row, as in transformers.
    """

    def read(record: ConfigJson) -> Settings:
        for key in ("rope_theta", local_key):
            record.reject_null(key or "rope_theta")
        whole, local = sections_by_kind(record)
        default = {} if record.values.get("rope_parameters") is not None else {"rope_type": "default"}
        more = record.section("rope_scaling").values
        theta = record.positive("rope_theta", base) or base
        local_theta = (record.positive(local_key, local_base) if local_key else None) or local_base
        if local_key is None and theta != local_theta and "rope_theta" not in local.values:
            raise record.error("rope_theta", f"is not inside rope_parameters of {LOCAL}, and versions of transformers "
                               "read it differently. Move it there, beside the rope_type")  # fmt: skip
        whole = ConfigJson({**default, **whole.values, **more}, whole.location, whole.largest)
        return read_rope_by_kind(record, (whole, local), (theta, local_theta), kinds(record))

    def write(config: TransformerConfig) -> Settings:
        parameters = write_rope_by_kind(config)
        thetas = [parameters[kind]["rope_theta"] for kind in (GLOBAL, LOCAL)]
        older: Settings = {"rope_theta": thetas[0]} if local_key or thetas[0] == thetas[1] else {}
        older |= {local_key: thetas[1]} if local_key else {}
        return {"rope_parameters": parameters, **older, **_older(parameters[GLOBAL])}

    keys = ("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor")
    return Group(read, write, (*keys, local_key) if local_key else keys)
