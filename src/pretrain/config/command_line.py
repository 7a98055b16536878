"""The words after a script: Hydra's flags apart from overrides, and those that would change nothing here refused."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields

from pretrain.config.overrides import in_home, quoted
from pretrain.errors import ConfigError, nearest

_WITH_VALUE = {
    "--config-dir": "config_dir", "-cd": "config_dir", "--config-name": "config_name", "-cn": "config_name",
    "--cfg": "shows", "-c": "shows", "--package": "package", "-p": "package",
}  # fmt: skip
_ALONE = {
    "-h": "help", "--help": "help", "-m": "multirun", "--multirun": "multirun", "--resolve": "resolve",
    "--hydra-help": "shows", "--version": "shows", "-sc": "completes", "--shell-completion": "completes",
}  # fmt: skip
_EXCLUSIVE = {
    "-m": "--multirun", "--multirun": "--multirun", "--cfg": "--cfg", "-c": "--cfg", "-i": "--info", "--info": "--info",
    "--hydra-help": "--hydra-help", "-sc": "-sc", "--shell-completion": "-sc",
}  # fmt: skip
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_IDLE_FLAGS = {
    ("--config-path", "-cp"): "the presets stay where they are. Add your own folder beside them: --config-dir <folder>",
    ("--run", "-r"): "a script runs without it. Leave it out",
    ("--experimental-rerun",): "a run goes on by resume=<its folder>",
}
_NEEDS_CFG = {"--package", "-p", "--resolve"}
_IDLE_SETTINGS = {
    "hydra.searchpath": "--config-dir <folder>, which holds configs of your own",
    "hydra.run.dir": "paths.run_dir=<folder>",
    "hydra.sweep.dir": "paths.logs_dir=<folder>, where a sweep makes one",
    "hydra.sweep.subdir": "paths.logs_dir=<folder>, where a sweep makes one for each job",
    "hydra.output_subdir": "paths.run_dir=<folder>, which holds the run's config.yaml",
    "hydra.job.name": "name=<name>",
    "hydra.job.chdir": "paths.run_dir=<folder>, as a run stays in the folder where it is typed",
    "hydra.verbose": "trainer.log_every_n_steps=1",
    "hydra.job_logging": "logger=all, csv, tensorboard, wandb, mlflow, comet or none",
    "hydra.hydra_logging": "logger=all, csv, tensorboard, wandb, mlflow, comet or none",
}


@dataclass
class CommandLine:
    """What was typed after a script."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)  # those for Hydra, with their values
    config_dir: str | None = None
    config_name: str | None = None
    multirun: bool = False
    help: bool = False
    shows: bool = False  # --cfg, --info and the like print something instead of a run
    completes: bool = False

    def where(self) -> list[str]:
        """Return the flags that say where settings come from: a job of a sweep needs them as well."""
        flags = {"--config-dir": self.config_dir, "--config-name": self.config_name}
        return [word for flag, value in flags.items() if value is not None for word in (flag, value)]


def as_list(words: list[str], positional: str) -> list[str]:
    """Return the words of a command line, those without a key as one override of the list `positional`.

    Without such a list they stay as they are. Of `a b metric=x` and runs, `metric=x runs=['a','b']`. A path that exists
    has no key, as logs/lr=0.1.
    """
    values, rest, before = list[str](), list[str](), ""
    for word in words:
        is_value = before in _WITH_VALUE or (before in ("-i", "--info") and word in _INFO)
        is_key = "=" in word and re.match(r"[+~]*[\w./@-]+=", word) is not None
        is_key = is_key and not os.path.exists(word)  # noqa: PTH110 (Path.exists() raises for long words)
        (rest if not positional or word.startswith("-") or is_value or is_key else values).append(word)
        before = word
    return [*rest, f"{positional}=[{','.join(map(quoted, values))}]"] if values else rest


def parse(words: list[str], config_class: type | None = None) -> CommandLine:
    """Return the words of a command line by their meaning; flags and overrides may stand in any order.

    `config_class`, of the script's settings, finds the setting that a flag of another tool stands for. Raises
    ConfigError for a flag that is none, and for words that Hydra would take and that change nothing here.
    """
    given = CommandLine()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            _read_flag(word, rest, given, config_class)
        else:
            refuse_idle_setting(word)
            given.overrides.append(word)
    idle = _NEEDS_CFG.intersection(given.flags)
    if idle and not given.shows and not given.help:
        raise ConfigError(f"{min(idle)} would do nothing without --cfg. Try --cfg job {min(idle)} ...")
    asked = list(dict.fromkeys(f for f in given.flags if f in _EXCLUSIVE))
    if len({_EXCLUSIVE[flag] for flag in asked}) > 1 and not given.help:
        raise ConfigError(f"{asked[0]} and {asked[1]} cannot go together. Try one of them, such as {_one_of(asked)}.")
    given.multirun = given.multirun or "hydra.mode=MULTIRUN" in given.overrides
    return given


def _one_of(flags: list[str]) -> str:
    """Return the flag to keep of several: the one that prints, as that is the quick one."""
    flag = next(each for each in flags if _EXCLUSIVE[each] != "--multirun")
    return f"{flag} {_example(flag)}" if flag in _WITH_VALUE else flag


def _read_flag(word: str, rest: list[str], given: CommandLine, config_class: type | None) -> None:
    """Read one flag into `given`, and its value from the words after it."""
    flag, equals, value = word.partition("=")
    meaning = _WITH_VALUE.get(flag) or _ALONE.get(flag) or ("shows" if flag in ("-i", "--info") else None)
    if meaning is None:
        raise _unknown(word, rest, config_class)
    given.flags.append(flag)
    if flag in _WITH_VALUE:
        if not equals and not rest:
            raise ConfigError(f"{flag} needs a value after it, such as {flag} {_example(flag)}.")
        value = value if equals else rest.pop(0)
        if meaning == "config_dir":
            value = in_home(value)
        given.flags.append(value)
    elif flag in ("-i", "--info") and (equals or (rest and rest[0] in _INFO)):
        given.flags.append(value if equals else rest.pop(0))
    elif flag in ("-i", "--info") and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        raise ConfigError(f"{flag} {rest[0]} shows nothing. {nearest(rest[0], _INFO)}")
    if meaning in ("config_dir", "config_name"):
        setattr(given, meaning, value)
    elif meaning in ("help", "multirun", "shows", "completes"):
        setattr(given, meaning, True)


def _example(flag: str) -> str:
    return {"config_dir": "my_configs", "config_name": "my_run", "shows": "job"}.get(_WITH_VALUE[flag], "model")


def _unknown(word: str, rest: list[str], config_class: type | None) -> ConfigError:
    flag, _, value = word.partition("=")
    instead = next((ours for names, ours in _IDLE_FLAGS.items() if flag in names), None)
    if instead is not None:
        return ConfigError(f"{word} would do nothing: {instead}.")
    setting = flag.lstrip("-").replace("-", "_")
    if not setting:
        hint = "settings are typed key=value."
    elif config_class is not None and not _is_setting(setting, config_class):
        from pretrain.config.near_misses import of_setting  # here: only a wrong flag needs it

        known = [each.name for each in fields(config_class)]
        hint = f"settings have no dashes, and {of_setting(setting, known, config_class, setting)}"
    else:
        after = next((word for word in rest[:1] if "=" not in word and not word.startswith("-")), "<value>")
        hint = f"settings have no dashes: {setting}={value or after}."
    return ConfigError(f"{word} is no flag of this script; {hint} All of them: --help")


def _is_setting(name: str, config_class: type) -> bool:
    """Return whether a script has a setting, or a group of presets, of this name."""
    from pretrain.config.declared import every_setting

    return any(f"{each}.".startswith(f"{name}.") for each in every_setting(config_class))


def is_hydras(override: str) -> bool:
    """Whether an override is of a setting of Hydra's own, such as hydra/launcher=joblib."""
    key = override.partition("=")[0].lstrip("+~").replace("/", ".").partition("@")[0]
    return key == "hydra" or key.startswith("hydra.")


def refuse_idle_setting(override: str) -> None:
    """Raise ConfigError for a setting of Hydra's own for which this framework has its own."""
    key = override.partition("=")[0].lstrip("+~").replace("/", ".").partition("@")[0]
    instead = next((ours for name, ours in _IDLE_SETTINGS.items() if f"{key}.".startswith(f"{name}.")), None)
    if instead is not None:
        raise ConfigError(f"{override} sets something of Hydra's that has no effect here. Try {instead}.")
