"""From the tree that Hydra composes to typed settings: what it lets pass and no dataclass declares is refused here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from pretrain.config import groups, kind_of
from pretrain.errors import ConfigError
from pretrain.near_misses import of_setting

# mappings whose keys are the user's own, where Hydra asks for ++ before a new one, and the preset that has them
NAMED_BY_USER = {"data.sources": "data=mixture"}


def typed(tree: Any) -> Any:
    """Return the dataclasses of a composed tree; raises ConfigError for keys that none of them declares."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    for key, known in _undeclared(tree, ""):
        raise no_setting(key, known, class_of(tree))
    _refuse_environment(OmegaConf.to_container(tree, resolve=False), "")
    try:
        _check_kinds(tree)
        for key in sorted(OmegaConf.missing_keys(tree)):
            raise ConfigError(f"{key} has no value, and needs one. Give it as {key}=... on the command line.")
        return OmegaConf.to_object(tree)
    except MissingMandatoryValue as error:
        raise ConfigError(str(error)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"the settings cannot be resolved: {str(error).splitlines()[0]}") from error


def class_of(tree: Any, group: str | None = None) -> type:
    """Return the dataclass of a whole tree, or of one of its groups."""
    from omegaconf import OmegaConf

    found: type = OmegaConf.get_type(tree, group)  # type: ignore[assignment]
    return found


def no_setting(key: str, known: list[str], config_class: type, whole: str | None = None) -> ConfigError:
    """Return the error of a key that is no setting, with what may have been meant; `known` are those beside it.

    `whole` is what was typed, where the key is only its beginning.
    """
    preset = NAMED_BY_USER.get(key)
    if preset:
        return ConfigError(f"{key} is a setting of {preset} only. Choose that as well: {preset}")
    return ConfigError(of_setting(key, known, config_class, whole or key))


def _undeclared(tree: Any, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every key that the dataclass of its node does not declare, with the names that it does."""
    from omegaconf import DictConfig, OmegaConf

    declared = OmegaConf.get_type(tree)
    if is_dataclass(declared):
        known = [f.name for f in fields(declared)]
        for key in tree:
            if key not in known:
                yield f"{prefix}{key}", [prefix + name for name in known]
    for key in tree:
        node = tree._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_missing() or node._is_none() or node._is_interpolation()):
            yield from _undeclared(node, f"{prefix}{key}.")


def _refuse_environment(value: Any, key: str) -> None:
    """Refuse values that OmegaConf would take from the environment: settings are saved, and go where the model goes."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_environment(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and re.search(r"(?<!\\)(\\\\)*\$\{\s*oc\.env", value):
        raise ConfigError(
            f"{key}={value} is taken from the environment, and settings are saved with the model. Where it is no "
            f'secret, have the shell fill it in: {key}="$NAME".'
        )


def _check_kinds(tree: Any) -> None:
    """Refuse a `kind` that is not the preset's own: a saved record would name a class that its settings are not of."""
    from omegaconf import OmegaConf

    for group in groups():
        declared = OmegaConf.get_type(tree, group) if group in tree else None
        if declared is not None and is_dataclass(declared) and tree[group].kind != kind_of(declared):
            raise ConfigError(f"{group}.kind={tree[group].kind} cannot be set. Choose a preset instead: {group}=...")
