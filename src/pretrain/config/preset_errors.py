"""What is wrong in a file of presets or of settings, mostly one of the user's own, in one line with the file's name."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from pretrain.config.near_misses import of_preset
from pretrain.config.preset_folders import CONFIG_FOLDER, presets, primary_configs
from pretrain.config.registry import choices, groups, kind_of
from pretrain.errors import ConfigError, nearest


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def sentence(error: BaseException) -> str:
    """Return the same with a full stop."""
    return f"{first_line(error).rstrip('.')}."


def in_a_circle() -> ConfigError:
    """Return the error of presets whose defaults lists name each other."""
    return ConfigError("a preset is in the defaults list of a preset that is in its own. Leave one of them out there.")


def without_kind(group: str, where: str) -> ConfigError:
    """Return the error of a preset that says of no class what its settings are."""
    named = next(iter(choices(group).values())).__name__
    return ConfigError(
        f"{where} chooses no kind of {group}. Begin its file with `defaults: [{named}, _self_]`, or with the name of a "
        "preset that it changes."
    )


def of_file(error: Exception) -> ConfigError | None:
    """Return the error of a setting in a preset's file; None where the error is not of a file."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    where, cause = re.match(r"In '([^']+)'", str(error)), error.__context__
    if where is None or not isinstance(cause, OmegaConfBaseException):
        return None
    key, file = str(cause.full_key), f"{where[1].removesuffix('.yaml')}.yaml"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        above = key.rpartition(".")[0]
        if key == where[1].rpartition("/")[0]:  # where Hydra puts the values of a file that does not say where
            return ConfigError(f"{file} must begin with the line `# @package _global_`, as {key} is no setting.")
        known = [f"{above}.{name}".lstrip(".") for name in cause.parent_node or ()]
        declared: Any = OmegaConf.get_type(cause.parent_node)
        if above in groups() and is_base(declared):
            return without_kind(above, file)
        if kinds := _kinds_with(key):
            return ConfigError(
                f"{key} in {file} is a setting of {' and '.join(kinds)}, and {above}={kind_of(declared)} is chosen. "
                f"Choose {kinds[0]}, or leave {key} out of the file."
            )
        return ConfigError(f"{key} in {file} is not a setting. {nearest(key, known)}")
    return ConfigError(f"{key} in {file} does not fit: {sentence(cause)}")


def _kinds_with(key: str) -> list[str]:
    """Return the presets of a group whose kinds have a setting, such as tokenizer=bpe for tokenizer.vocab_size."""
    group, _, name = key.rpartition(".")
    kinds = choices(group) if group in groups() else {}
    return [f"{group}={kind}" for kind, each in kinds.items() if name in {field.name for field in fields(each)}]


def is_base(declared: Any) -> bool:
    """Whether a class is that of all kinds of a group, and no kind itself."""
    return "kind" in getattr(declared, "__dataclass_fields__", ()) and kind_of(declared) == "?"


def of_missing(error: Exception) -> ConfigError:
    """Return the error of a preset, or a primary config, that a file or a sweep names and that does not exist."""
    found = re.search(r"(?:In '([^']*)': )?Could not (?:find|load) '(?:([^']+)/)?([^']*)'", first_line(error))
    if found is None:
        return ConfigError(first_line(error))
    where, group, name = found.groups()
    if (group or "").startswith("hydra/"):
        return ConfigError(
            f"{group}={name} is not installed. joblib, submitit_local, submitit_slurm, ray and optuna come with "
            "pip install -e '.[sweep]'; ours needs nothing: hydra/launcher=pretrain."
        )
    file = "" if where is None or (CONFIG_FOLDER / f"{where}.yaml").is_file() else f" in {where}.yaml"
    if group is None:
        return ConfigError(f"{name}{file} is no file of settings. {nearest(name, primary_configs())}")
    return ConfigError(f"{group}={name}{file} is not a preset. {of_preset(group, name, presets(group))}")
