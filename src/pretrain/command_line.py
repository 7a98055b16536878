"""From the words typed behind a script to typed settings, with one clear sentence where they do not fit.

Hydra composes presets and overrides. What it lets pass or explains in its own terms is checked here: unknown settings
behind `+` and inside experiment files, wrong types, misspelt presets.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from pretrain.asked_to_stop import cause_of, listen, stop_listening
from pretrain.composed_tree import NAMED_BY_USER, class_of, no_setting, typed
from pretrain.config import choices, groups, registered, to_dict
from pretrain.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    PretrainError,
    message_of,
    nearest,
    printable,
)
from pretrain.help_page import help_page
from pretrain.hydra_words import refuse_idle
from pretrain.imported import IMPORTED, words_of_imported
from pretrain.launcher import check_launcher, rank, under_launcher
from pretrain.memory_reuse import keep_freed_memory
from pretrain.near_misses import of_preset, of_value
from pretrain.slurm import adopt_slurm
from pretrain.sweep import checked_sweep
from pretrain.typed_words import as_hydra_reads, quote

CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"
_WHICH_RUN = ("resume", "name", "paths.run_dir", "paths.logs_dir")
_OF_THE_RUN = "_of_the_run"  # the preset that a resumed run's own settings of a group are
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory")  # as torch says it of processors and of GPUs
_classes: dict[str, type] = {}  # of the settings of each script


def main(config_name: str, config_class: type, task: Callable[[Any, list[str]], object], free_text: str = "") -> None:
    """Compose the settings of a script from the command line, run `task(settings, overrides)`, and exit.

    `free_text` is a setting whose value needs no quoting beyond the shell's. A PretrainError or a signal ends the
    process with its exit code and its message alone. Flags other than --help and -m (--cfg, --info) are Hydra's.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return  # a process that the run has started imports the script anew, to know what it registers
    words = [quote(word, free_text) for word in sys.argv[1:]]
    keep_freed_memory()
    try:
        listen()
        _check_environment(config_name)
        register_schemas(config_name, config_class)
        refuse_idle(words)
        if words and words[0] in ("-m", "--multirun"):
            swept = [as_hydra_reads(word, config_class, sweep=True) for word in words[1:]]
            if code := checked_sweep(swept, lambda given: compose(config_name, given)):
                sys.exit(code)
        elif set(words) & {"-h", "--help"}:
            show(help_page(_composed(config_name, [word for word in words if not word.startswith("-")]), presets))
        elif any(word.startswith("-") for word in words):
            _hand_to_hydra(config_name, words)
        else:
            follows = config_name == "train" and rank() > 0  # the first process decides, and hands on what it decided
            task(None if follows else compose(config_name, words), words)
    except BaseException as raised:
        error = _as_pretrain_error(raised)
        if error is None:
            raise
        stop_listening()
        print(message_of(error), file=sys.stderr)
        sys.stdout.flush()
        sys.exit(error.exit_code)


def _as_pretrain_error(error: BaseException) -> PretrainError | None:
    """Return what ended the process as one message: a request to stop, an error of ours, or memory that ended.

    None for any other.
    """
    asked = cause_of(error)
    if asked is not None and not isinstance(error, Interrupted | SystemExit):
        return Interrupted(str(asked), asked.exit_code - 128)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return ConfigError(
            f"there is not enough memory for these settings ({_first_line(error)[:200]}). Try a smaller "
            "micro_batch_size, model.context_length or model; plan.py says what a run takes."
        )
    return error if isinstance(error, PretrainError) else None


def show(text: str, *, one_line: bool = False) -> None:
    """Print a text, as much of it as is read: `| head` closes the pipe early, which must not end a run."""
    try:
        print(printable(text, one_line=one_line), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its own end


def _check_environment(config_name: str) -> None:
    """Refuse to start where the environment tells torch to run code that files hold, or makes no sense of a launcher.

    Scripts that compute in one process take no notice of what a launcher says.
    """
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() not in ("", "0", "false"):
        raise ConfigError(f"{name}={os.environ[name]} lets files run code as torch loads them. Unset it: unset {name}")
    if config_name in ("train", "doctor"):
        adopt_slurm()
        check_launcher()
    if config_name == "doctor" and under_launcher():
        raise ConfigError("doctor.py starts its processes itself. Start it alone: python src/doctor.py")


def compose(config_name: str, overrides: list[str]) -> Any:
    """Return the settings that a script's configuration and these overrides make.

    Raises ConfigError: an unknown setting or preset, a wrong type, a missing value, a combination that cannot work.
    """
    from omegaconf import open_dict

    tree = _composed(config_name, overrides)
    with open_dict(tree):
        del tree.hydra
    return typed(tree)


def _composed(config_name: str, overrides: list[str]) -> Any:
    """Return the tree that Hydra composes, its own settings among it; raises ConfigError where a word does not fit."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from pretrain.preset_files import read_presets_for

    GlobalHydra.instance().clear()
    config_class = _classes.get(config_name)
    if config_class:
        read_presets_for(config_class)
    overrides = [as_hydra_reads(word, config_class) if config_class else word for word in overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_FOLDER)):
        _check_words(overrides)
        try:
            return _by_hydra(config_name, overrides, [])
        except (HydraException, OmegaConfBaseException) as first:
            error: Exception = first
        if (in_preset := _explain_preset(error)) is not None:
            raise in_preset from error
        chosen = [word for word in overrides if is_group(word.split("=")[0].lstrip("+~"))]
        bare = hydra_compose(config_name, overrides=chosen)
        if implied := _implied(config_name, overrides, bare):
            try:
                return _by_hydra(config_name, overrides, implied)
            except (HydraException, OmegaConfBaseException) as second:
                error, bare = second, hydra_compose(config_name, overrides=[*implied, *chosen])
        raise _explain(error, bare, overrides) from error


def _by_hydra(config_name: str, overrides: list[str], implied: list[str]) -> Any:
    """Return the tree that Hydra composes from what is typed, on top of what that implies."""
    from hydra import compose as hydra_compose

    words = [f"++{word.lstrip('+')}" if _declared(word) in NAMED_BY_USER else word for word in overrides]
    tree = hydra_compose(config_name, overrides=[*implied, *words], return_hydra_config=True)
    chosen = dict(tree.hydra.runtime.choices)
    if chosen.get("model") == IMPORTED:
        imported = words_of_imported(tree, chosen, overrides)
        tree = hydra_compose(config_name, overrides=[*implied, *imported, *words], return_hydra_config=True)
    return tree


def _implied(config_name: str, overrides: list[str], tree: Any) -> list[str]:
    """Return the presets that settings imply which the kinds chosen do not have; `tree` is what the presets make.

    Of a run resumed, a group's kind is the run's own; of a new one, a data.path alone is that of text files.
    """
    keys = [word.partition("=")[0].lstrip("+") for word in overrides]
    wanted: dict[str, set[str]] = {}
    for group in groups():
        if group in tree and group not in keys:
            known = {field.name for field in fields(class_of(tree, group))}
            typed_names = {key.split(".")[1] for key in keys if key.startswith(f"{group}.")}
            if typed_names - known:
                wanted[group] = typed_names
    if "resume" in keys and wanted:
        return _kinds_of_the_run(config_name, overrides, list(wanted))
    text = {field.name for field in fields(choices("data")["text_files"])}
    if "path" in wanted.get("data", ()) and wanted["data"] <= text and "experiment" not in keys:
        return ["data=text_files"]
    return []


def _kinds_of_the_run(config_name: str, overrides: list[str], wanted: list[str]) -> list[str]:
    """Return words that choose, for each group wanted, the settings of the run that is resumed; none where none is."""
    from hydra import compose as hydra_compose
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from pretrain.checkpoint import run_meant_by_auto, unverified  # here: only who resumes waits for torch
    from pretrain.recorded_paths import settings_of

    where = [word for word in overrides if is_group(key := word.partition("=")[0].lstrip("+")) or key in _WHICH_RUN]
    tree = hydra_compose(config_name, overrides=where)
    path = Path(tree.resume)
    if tree.resume == "auto":
        path = run_meant_by_auto(tree.paths.run_dir, tree.paths.logs_dir, tree.name) or Path()
    saved = unverified(path)
    if saved is None:
        return []
    try:
        record = to_dict(settings_of(saved))
    except CheckpointError:  # which resuming says in its own words
        return []
    for group in wanted:
        declared = choices(group)[record[group]["kind"]]
        node = OmegaConf.merge(OmegaConf.structured(declared), record[group])
        ConfigStore.instance().store(group=group, name=_OF_THE_RUN, node=node, provider="pretrain")
    return [f"{group}={_OF_THE_RUN}" for group in wanted]


def _declared(word: str) -> str:
    """Return the key of a word as far as a dataclass declares it."""
    key = word.partition("=")[0].lstrip("+")
    return next((name for name in NAMED_BY_USER if f"{key}.".startswith(f"{name}.")), key)


def is_group(name: str) -> bool:
    """Whether `name` chooses a preset (model, trainer, experiment, ...) rather than a value."""
    return (CONFIG_FOLDER / name.split("@")[0]).is_dir()


def presets(group: str) -> list[str]:
    """Return the names of a group's presets: of its files, and of what plugins and scripts registered."""
    return sorted({path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml")} | registered(group).keys())


def _check_words(overrides: list[str]) -> None:
    """Refuse words that are no `key=value`, and presets that do not exist."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    for word in overrides:
        key, equals, value = word.partition("=")
        key = key.lstrip("+")
        if key.startswith("~"):
            raise ConfigError(f"{word} would delete a setting, and every setting has a place. Give it another value.")
        if not equals or not key:
            raise ConfigError(
                f"{word!r} is not a setting with a value. Write key=value, such as trainer.max_steps=100."
            )
        try:
            (parsed,) = OverridesParser.create().parse_overrides([word])
        except OverrideParseException as error:
            raise ConfigError(f"""{word!r} cannot be read. Quote special characters twice: '{key}="..."'.""") from error
        if parsed.is_sweep_override():
            raise ConfigError(f"{word!r} gives several values, which is a sweep. Add -m to run one after the other.")
        if is_group(key):
            known = presets(key)
            for item in [item.strip() for item in value.strip("[]").split(",")]:
                if item not in known:
                    raise ConfigError(f"{key}={item} is not a preset. {of_preset(key, item, known)}")


def _explain_preset(error: Exception) -> ConfigError | None:
    """Say which setting of which preset's file is at fault, where it is one's."""
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    where, cause = re.match(r"In '([^']+)'", str(error)), error.__context__
    if where is None or not isinstance(cause, OmegaConfBaseException):
        return None
    key = str(cause.full_key)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        above = key.rpartition(".")[0]
        known = [f"{above}.{name}".lstrip(".") for name in cause.parent_node or ()]
        return ConfigError(f"{key} in {where[1]}.yaml is not a setting. {nearest(key, known)}")
    return ConfigError(f"{key} in {where[1]}.yaml does not fit: {_first_line(cause)}")


def _explain(error: Exception, tree: Any, overrides: list[str]) -> ConfigError:
    """Say which word is at fault, given the tree that the presets alone make."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for word in overrides:
        key, _, value = word.partition("=")
        key = key.lstrip("+")
        if is_group(key):
            continue
        declared = _declared(word)
        unknown = _explain_unknown(declared, tree, class_of(tree))
        if unknown is not None:
            return unknown
        try:
            new = OmegaConf.create({"value": None}).value if value == "null" else _parse(value)
            OmegaConf.update(tree, key, new, force_add=declared in NAMED_BY_USER)
        except OmegaConfBaseException as problem:
            expected = re.search(r"expected one of \[(.*)\]", _first_line(problem))
            near = of_value(value, expected[1].split(", ")) if expected else None
            hint = f" Did you mean {key}={near}?" if near else ""
            return ConfigError(f"{key}={value} does not fit: {_first_line(problem)}{hint}")
    return ConfigError(_first_line(error))


def _explain_unknown(key: str, tree: Any, config_class: type) -> ConfigError | None:
    """Say which part of a key is no setting, where one is none."""
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def register_schemas(config_name: str, config_class: type) -> None:
    """Make the dataclasses known to Hydra, so that presets are checked against them."""
    from hydra.core.config_store import ConfigStore

    _classes[config_name] = config_class
    store = ConfigStore.instance()
    store.store(name=config_class.__name__, node=config_class, provider="pretrain")
    for group in groups():
        for choice in choices(group).values():
            store.store(group=group, name=choice.__name__, node=choice, provider="pretrain")
        for kind, choice in registered(group).items():  # has no preset file, so its kind is the preset
            store.store(group=group, name=kind, node=choice, provider="pretrain")


def _hand_to_hydra(config_name: str, words: list[str]) -> None:
    """Let Hydra act on its own flags, such as --cfg and --info."""
    import hydra

    from pretrain.preset_files import read_presets_for

    if "-m" in words or "--multirun" in words:
        raise ConfigError("-m comes first: python src/train.py -m optimizer.learning_rate=0.001,0.003")
    read_presets_for(_classes[config_name])
    sys.argv[1:] = words
    hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=config_name)(lambda tree: None)()
