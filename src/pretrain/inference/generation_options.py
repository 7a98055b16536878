"""The options of generate() and fill(), checked and turned into what the samplers take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pretrain.errors import ConfigError, nearest, shown
from pretrain.inference.config import DecodingOrder
from pretrain.inference.sampling import Sampling

SAMPLING = {field.name for field in fields(Sampling)}
CAUSAL_ONLY = ("repetition_penalty", "use_cache")
DIFFUSION_ONLY = ("order", "steps", "block_length", "guidance_scale", "on_step")


def check_options(method: str, kind: Any, options: Mapping[str, Any], causal: bool) -> None:
    """Raise ConfigError for an option that the method does not have, or that means nothing for the model."""
    for name, value in options.items():
        if name not in kind.__annotations__:
            raise ConfigError(f"{name} is not an option of {method}(). {nearest(name, kind.__annotations__)}")
        if method != "generate" or value is None:
            continue
        if not causal and name in CAUSAL_ONLY:
            raise ConfigError(
                f"{name}={shown(value)} means nothing for a diffusion model, which fills masks in any order. "
                f"Leave {name} out, or take a causal model: objective=causal."
            )
        if causal and name in DIFFUSION_ONLY:
            raise ConfigError(
                f"{name}={shown(value)} means nothing for a causal model, which continues a text from left to "
                f"right. Leave {name} out, or take a diffusion model: objective=diffusion."
            )


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """Return how tokens are drawn, from the options that say so."""
    return Sampling(**{name: value for name, value in options.items() if name in SAMPLING})


def denoising_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that only diffusion models have and that are set, as fields of `Denoising`."""
    chosen = {name: options[name] for name in DIFFUSION_ONLY if options.get(name) is not None}
    if "order" in chosen:
        chosen["order"] = _order(chosen["order"])
    return chosen


def _order(order: DecodingOrder | str) -> DecodingOrder:
    """Return the order of this name; raises ConfigError for another name."""
    names = [known.value for known in DecodingOrder]
    name = order.value if isinstance(order, DecodingOrder) else order
    if name not in names:
        raise ConfigError(f"order={shown(name)} is none of {', '.join(names)}. Try order=random.")
    return DecodingOrder(name)
