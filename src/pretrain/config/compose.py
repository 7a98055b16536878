"""Compose presets and overrides into typed settings.

Hydra composes. What it lets pass or explains in its own terms is checked here: unknown settings after `+` and inside
experiment files, wrong types, misspelled presets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pretrain.config.command_line import is_hydras
from pretrain.config.imported import IMPORTED, imported_overrides
from pretrain.config.named_entries import GROUPS, SECTIONS, SOURCES, STAGES, THRESHOLDS, section_of
from pretrain.config.near_misses import of_mapping, of_preset, of_reference, of_setting, of_value, of_word
from pretrain.config.overrides import as_hydra_reads, first_values
from pretrain.config.preset_errors import first_line, in_a_circle, is_base, of_file, of_missing, sentence, without_kind
from pretrain.config.preset_folders import (
    CONFIG_FOLDER,
    hydra_reads_presets,
    is_group,
    own_words,
    presets,
)
from pretrain.config.registry import choices, groups, kind_of, registered
from pretrain.config.serialize import to_dict
from pretrain.config.typed_lengths import let_typed_lengths_win
from pretrain.errors import ConfigError, show, shown

_WHICH_RUN = ("resume", "branch", "name", "paths.run_dir", "paths.logs_dir")
_OF_THE_RUN = "_of_the_run"  # the preset that a resumed run's own settings of a group are

_classes: dict[str, type] = {}  # of the settings of each script
_stored: dict[tuple[str | None, str], type] = {}  # what Hydra knows, by group and name


@dataclass
class LauncherSettings:
    """Settings below hydra.launcher of the launcher in config/launcher.py."""

    _target_: str = "hydra_plugins.pretrain.FreshProcessLauncher"
    n_jobs: int = 1  # jobs at a time


def compose(config_name: str, overrides: list[str]) -> Any:
    """Return the settings that a script's configuration and these overrides make.

    Raises ConfigError: an unknown setting or preset, a wrong type, a missing value, a combination that cannot work.
    """
    from omegaconf import open_dict

    tree, _ = composed(config_name, overrides)
    with open_dict(tree):
        del tree.hydra
    return typed_run(config_name, tree, overrides)


def typed_run(config_name: str, tree: Any, overrides: list[str]) -> Any:
    """Return the settings of a composed tree without Hydra's own; raises ConfigError as `compose` does."""
    overrides = own_words(config_name, overrides)
    _lower_micro_batch(tree, overrides)
    let_typed_lengths_win(tree, overrides)
    return typed(tree)


def _lower_micro_batch(tree: Any, overrides: list[str]) -> None:
    """Let a recipe's micro-batch and batch warm-up follow a typed batch_size, and print a line; typed ones must fit."""
    keys = {override.partition("=")[0].lstrip("+") for override in overrides}
    names = ("batch_size", "micro_batch_size", "batch_warmup_rows")
    # get() would raise for a reference to nothing, which `in` takes for missing, so that `typed` names it
    batch, micro, rows = (tree[name] if name in tree else None for name in names)  # noqa: SIM401
    if "micro_batch_size" not in keys and isinstance(batch, int) and isinstance(micro, int) and 0 < batch < micro:
        tree.micro_batch_size = None
        show(f"micro_batch_size={micro} of the recipe is above batch_size={batch}, and is lowered to fit.")
    is_typed = keys & {"batch_warmup_rows", "batch_warmup_tokens"}
    if "batch_size" in keys and isinstance(rows, int) and not is_typed:
        tree.batch_warmup_rows = tree.batch_warmup_tokens = None
        show(f"batch_warmup_rows={rows} of the recipe grow to its own batch_size, and batch_size={batch} is constant.")


def composed(config_name: str, overrides: list[str]) -> tuple[Any, list[str]]:
    """Return the tree that Hydra composes, its own settings among it, and the overrides that make it.

    These are the given ones in Hydra's grammar, after those that they imply. Raises ConfigError for a wrong override.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pretrain.config.preset_reader import read_presets_for

    config_class = _classes.get(config_name)
    if config_class:
        read_presets_for(config_class)
    overrides = [as_hydra_reads(override, config_class) if config_class else override for override in overrides]
    with hydra_reads_presets():
        _check_words(config_name, overrides)
        try:
            return _with_implied(config_name, overrides, [])
        except (HydraException, OmegaConfBaseException) as first:
            error: Exception = first
        if (in_preset := of_file(error)) is not None:
            raise in_preset from error
        chosen = [override for override in overrides if is_group(override.split("=")[0].lstrip("+~"))]
        bare = _by_hydra(config_name, chosen)
        if implied := _implied(config_name, overrides, bare):
            try:
                return _with_implied(config_name, overrides, implied)
            except (HydraException, OmegaConfBaseException) as second:
                error, bare = second, _by_hydra(config_name, [*implied, *chosen])
        raise _explain(error, bare, overrides) from error


def _with_implied(config_name: str, overrides: list[str], implied: list[str]) -> tuple[Any, list[str]]:
    """Return the tree that Hydra composes from what is typed, on top of what that implies, and all overrides."""
    whole = [*implied, *(_new_names_allowed(override) for override in overrides)]
    tree = _by_hydra(config_name, whole, with_hydras=True)
    if config_name in _classes and class_of(tree) is not _classes[config_name]:
        raise ConfigError(
            f"{config_name}.yaml does not begin with the settings of this script: defaults: [train, _self_], or the "
            "script's own name instead of train."
        )
    chosen = dict(tree.hydra.runtime.choices)
    if chosen.get("model") == IMPORTED:
        whole = [*imported_overrides(tree, chosen, overrides), *whole]
        tree = _by_hydra(config_name, whole, with_hydras=True)
    return tree, whole


def _by_hydra(config_name: str, overrides: list[str], *, with_hydras: bool = False) -> Any:
    """Return the tree that Hydra composes, with its own settings if asked; raises ConfigError for a missing preset."""
    from hydra import compose as hydra_compose
    from hydra.errors import MissingConfigException

    try:
        return hydra_compose(config_name, overrides=overrides, return_hydra_config=with_hydras)
    except MissingConfigException as error:
        raise of_missing(error) from error
    except RecursionError as error:
        raise in_a_circle() from error


def _new_names_allowed(override: str) -> str:
    """Return an override with Hydra's ++ where its key is in a mapping whose names are the user's."""
    return f"++{override.lstrip('+')}" if _names_entry(override) else override


def sweep_words(config_name: str, overrides: list[str]) -> list[str]:
    """Return the overrides of a sweep in Hydra's grammar, after the presets that they imply."""
    from pretrain.config.preset_reader import read_presets_for

    read_presets_for(_classes[config_name])
    swept = [_new_names_allowed(as_hydra_reads(each, _classes[config_name], sweep=True)) for each in overrides]
    with hydra_reads_presets():
        one = first_values(swept)
        chosen = [each for each in one if is_group(each.partition("=")[0].lstrip("+~"))]
        return [*_implied(config_name, one, _by_hydra(config_name, chosen)), *swept]


def _implied(config_name: str, overrides: list[str], tree: Any) -> list[str]:
    """Return the presets that settings imply which the kinds chosen do not have; `tree` is what the presets make.

    Of a run resumed, a group's kind is the run's own; of a new one, a data.path alone is that of text files. An
    experiment keeps its kind of data, unless that is python_docs.
    """
    keys = [override.partition("=")[0].lstrip("+") for override in overrides]
    wanted: dict[str, set[str]] = {}
    for group in groups():
        if group in tree and group not in keys:
            known = {field.name for field in fields(class_of(tree, group))}
            typed_names = {key.split(".")[1] for key in keys if key.startswith(f"{group}.")}
            if typed_names - known:
                wanted[group] = typed_names
    resumes = bool({"resume", "branch"} & {*keys}) and bool(wanted)
    if resumes and (of_the_run := _kinds_of_the_run(config_name, overrides, list(wanted))):
        return of_the_run
    text = {field.name for field in fields(choices("data")["text_files"])}
    is_text = "path" in wanted.get("data", ()) and wanted["data"] <= text
    has_own_text = "experiment" in keys and class_of(tree, "data") is not choices("data")["python_docs"]
    return ["data=text_files"] if is_text and not has_own_text else []


def _kinds_of_the_run(config_name: str, overrides: list[str], wanted: list[str]) -> list[str]:
    """Return overrides that choose the resumed run's settings for each group of `wanted`; none without such a run."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from pretrain.checkpoint.read import run_meant_by_auto  # here: only who resumes waits for torch
    from pretrain.checkpoint.remote import recorded_settings

    where = [
        override
        for override in overrides
        if is_group(key := override.partition("=")[0].lstrip("+")) or key in _WHICH_RUN
    ]
    tree = _by_hydra(config_name, where)
    path = tree.get("branch") or tree.resume
    if tree.resume == "auto":
        path = run_meant_by_auto(tree.paths.run_dir, tree.paths.logs_dir, tree.name) or ""
    saved = recorded_settings(str(path))
    if saved is None:  # resuming raises the error itself
        return []
    record = to_dict(saved)
    for group in wanted:
        declared = choices(group)[record[group]["kind"]]
        node = OmegaConf.merge(OmegaConf.structured(declared), record[group])
        ConfigStore.instance().store(group=group, name=_OF_THE_RUN, node=node, provider="pretrain")
    return [f"{group}={_OF_THE_RUN}" for group in wanted]


def _declared(override: str) -> str:
    """Return the key of an override as far as a dataclass declares it."""
    key = override.partition("=")[0].lstrip("+")
    return section_of(key) or key


def _names_entry(override: str) -> bool:
    """Return whether an override is of a section whose keys the user names, and no choice of its presets."""
    return _declared(override) in (*SECTIONS, STAGES, GROUPS, THRESHOLDS) and not is_group(
        override.partition("=")[0].lstrip("+")
    )


def _check_words(config_name: str, overrides: list[str]) -> None:
    """Raise ConfigError for an override without a value, and for a preset that does not exist."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+")
        if key.startswith("~"):
            raise ConfigError(f"{override} would delete a setting, and a run needs every setting. {_instead_of(key)}")
        if not equals or not key:
            raise ConfigError(of_word(config_name, overrides, override))
        try:
            (parsed,) = OverridesParser.create().parse_overrides([override])
        except OverrideParseException as error:
            raise ConfigError(
                f"""{override!r} cannot be read. Quote special characters twice: '{key}="..."'."""
            ) from error
        if parsed.is_sweep_override():
            raise ConfigError(
                f"{override!r} gives several values, which is a sweep. Add -m to run one after the other."
            )
        if is_group(key):
            known = presets(key)
            for item in [] if value == "[]" else [item.strip() for item in value.strip("[]").split(",")]:
                if item not in known:
                    raise ConfigError(f"{key}={item} is not a preset. {of_preset(key, item, known)}")


def _instead_of(deletion: str) -> str:
    """Return what to type instead of `~setting`."""
    key = deletion.lstrip("~")
    if is_group(key) and "none" in presets(key):
        return f"Try {key}=none."
    return f"Try {key}=null." if section_of(key) and "." in key else "Give it another value."


def _explain(error: Exception, tree: Any, overrides: list[str]) -> ConfigError:
    """Return the error of the override at fault; `tree` is what the presets alone make."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        if is_group(key) or is_hydras(override):
            continue
        declared = _declared(override)
        unknown = _explain_unknown(declared, tree, class_of(tree))
        if unknown is not None:
            return unknown
        before = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
        try:
            new = OmegaConf.create({"value": None}).value if value == "null" else _parse(value)
            OmegaConf.update(tree, key, new, force_add=_names_entry(override))
        except OmegaConfBaseException as problem:
            expected = re.search(r"expected one of \[(.*)\]", first_line(problem))
            near = of_value(value, expected[1].split(", ")) if expected else None
            hint = f" Did you mean {key}={near}?" if near else ""
            if OmegaConf.is_dict(before):
                return ConfigError(of_mapping(key, value))
            if expected is None and isinstance(before, int | float):  # the preset's own value fits
                hint = f" Try {key}={shown(before)}."
            return ConfigError(f"{key}={value} does not fit: {sentence(problem)}{hint}")
    if (of_hydra := re.match(r"Could not override '(hydra\.[\w.]*)'", first_line(error))) is not None:
        return ConfigError(f"{of_hydra[1]} is not a setting of Hydra's. All of them: --cfg hydra")
    merged, cause = re.match(r"Error merging override (.+)", first_line(error)), error.__cause__ or error.__context__
    if merged is not None and cause is not None:
        return ConfigError(f"{merged[1]} does not fit: {sentence(cause)}")
    return ConfigError(first_line(error))


def _explain_unknown(key: str, tree: Any, config_class: type) -> ConfigError | None:
    """Return the error of the first part of a key that is not a setting; None if all are."""
    from omegaconf import OmegaConf

    known = tree
    for depth, part in enumerate(key.split(".")):
        if not OmegaConf.is_dict(known) or part not in list(known):  # a setting without a value yet is one, too
            above = "".join(f"{name}." for name in key.split(".")[:depth])
            names = [f"{above}{name}" for name in known] if OmegaConf.is_dict(known) else []
            return no_setting(above + part, names, config_class, key)
        known = known._get_node(part)
    return None


def _parse(value: str) -> Any:
    """Return a value as Hydra would read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"x={value}").value()


def register_schemas(config_name: str, config_class: type) -> None:
    """Make the dataclasses known to Hydra, so that presets are checked against them."""
    _classes[config_name], ours = config_class, (CONFIG_FOLDER / f"{config_name}.yaml").is_file()
    for each in (base for base in config_class.__mro__ if is_dataclass(base)):
        # plan and doctor read the user's own config of a training as one of theirs
        _store(None, each.__name__, each if ours else config_class)
    _store("hydra/launcher", "pretrain", LauncherSettings)
    for group in groups():
        for choice in choices(group).values():
            _store(group, choice.__name__, choice)
        for kind, choice in registered(group).items():  # has no preset file, so its kind is the preset
            _store(group, kind, choice)


def _store(group: str | None, name: str, node: type) -> None:
    """Store a class as a preset of a group unless it is there, as Hydra would read all of its fields again."""
    from hydra.core.config_store import ConfigStore

    if _stored.get((group, name)) is not node:
        ConfigStore.instance().store(group=group, name=name, node=node, provider="pretrain")
        _stored[group, name] = node


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
        raise ConfigError(of_reference(error)) from error


def class_of(tree: Any, group: str | None = None) -> type:
    """Return the dataclass of a whole tree, or of one of its groups."""
    from omegaconf import OmegaConf

    found: type = OmegaConf.get_type(tree, group)  # type: ignore[assignment]
    return found


def no_setting(key: str, known: list[str], config_class: type, whole: str | None = None) -> ConfigError:
    """Return the error of a key that is no setting, with what may have been meant; `known` are those beside it.

    `whole` is what was typed, where the key is only its beginning.
    """
    if key == SOURCES.key:
        preset = SOURCES.presets
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
        if is_base(declared):
            raise without_kind(group, f"the preset of {group}")
        if declared is not None and is_dataclass(declared) and tree[group].kind != kind_of(declared):
            raise ConfigError(f"{group}.kind={tree[group].kind} cannot be set. Choose a preset instead: {group}=...")
