"""Going on with an earlier run: which one is meant, and with which of its settings and of those typed now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint, newest, open_checkpoint, run_meant_by_auto
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.compose import is_group
from pretrain.config.imported import IMPORTED
from pretrain.config.renamed import with_current_name
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.launch.rank import log, under_launcher

# settings that decide the result of a run; on resume they must be those of the run, or be allowed by name
_RESUME_CRITICAL = (
    "seed",
    "batch_size",
    "init_from",
    "data",
    "tokenizer",
    "objective",
    "model",
    "optimizer",
    "schedule",
)


_RESUME_CRITICAL_TRAINER = ("trainer.precision", "trainer.gradient_clip_val")


# of these, labels come from the data, whose fingerprint decides, and that of the tokenizer, wherever they lie
_FREE = ("data.prefetch", "data.max_validation_rows", "objective.labels")


# what these say stands for a measurement: on resume it is what the run found
_MEASURED = {"trainer.precision": "auto", "optimizer.newton_schulz_precision": "auto", "parallel.compile": None}


_OF_THE_START = ("resume", "allow_change", "paths.run_dir")  # typed for one start, not for the run


def find_resumed(config: RunConfig, overrides: list[str]) -> Checkpoint | None:
    """Return the checkpoint that `resume` means; none where it is auto and there is nothing to resume.

    Where what is typed says nothing of what is trained, auto is the newest run of all; else the newest of that name.
    Raises CheckpointError where there is one that cannot be used.
    """
    if config.resume != "auto":
        return open_checkpoint(Path(str(config.resume)))
    told = any(key_of(word).split(".")[0] in (*_RESUME_CRITICAL, "name", "experiment") for word in overrides)
    folder = run_meant_by_auto(config.paths.run_dir, config.paths.logs_dir, config.name if told else None)
    if folder is not None:
        found, passed_over = newest(folder)
        for path, reason in passed_over:
            log(f"resume=auto passes over {path}: {reason}", one_line=True)
        if found is not None:
            return found
        if passed_over:
            raise CheckpointError(
                f"{folder} holds checkpoints but none verifies, so resume=auto does not start over in silence. "
                "Delete the folder to start anew, or name another one by resume=<folder>."
            )
    log("resume=auto found nothing to resume: starting a new run")
    return None


def typed_for_the_run(overrides: list[str], before: list[str]) -> list[str]:
    """Return the words that a run was typed with, newest last: those of its earlier starts, and those typed now."""
    words: dict[str, str] = {}
    for word in [*before, *overrides]:
        key = key_of(word)
        if key not in _OF_THE_START:
            words.pop(key, None)
            words[key] = word.lstrip("+")
    return list(words.values())


def key_of(word: str) -> str:
    """Return the setting or group that a word of the command line is for."""
    return word.partition("=")[0].lstrip("+")


def merge(config: RunConfig, overrides: list[str], resumed: Checkpoint) -> RunConfig:
    """Return the resumed run's settings with those that the command line names on top.

    What was typed for the run before is what it was, and what stands for a measurement is what the run found. Raises
    ConfigError where the rest would change the result of the run and is not allowed by name.
    """
    before, typed = settings_of(resumed, log), to_dict(config)
    saved = to_dict(before)  # a setting that is newer than the run: usual
    merged = to_dict(before)
    earlier = [with_current_name(word) for word in resumed.typed]
    known = {key_of(word): word for word in earlier}
    for word in overrides:
        _take(word, merged, typed, known)
    _take_devices(merged, typed, overrides)
    for key, measured in _MEASURED.items():
        if _at(merged, key) == measured and (found := _at(saved, key)) is not None:
            _put(merged, key, found)
    base = typed["init_from"]
    if base is None or _same_place(base, saved["init_from"]):  # null: a run that goes on needs none
        merged["init_from"] = saved["init_from"]
    _check_changes(saved, merged, config.allow_change)
    return as_config(merged)


def _take(word: str, merged: dict[str, Any], typed: dict[str, Any], known: dict[str, str]) -> None:
    """Write into `merged` what one word typed now says; `known` are those that the run was typed with, by key."""
    key = key_of(word)
    if key in ("resume", "paths.run_dir") or word == f"model={IMPORTED}":
        return
    if key == "experiment":
        if known and known.get(key) != word.lstrip("+"):
            raise ConfigError(
                f"{word} sets many settings, and the run resumed was typed {known.get(key, 'without an experiment')}. "
                "Leave it out and type the settings that are to change, or start anew with init_from=<run>."
            )
    elif not is_group(key):
        _put(merged, key, _at(typed, key))
    elif known.get(key) != word.lstrip("+"):
        old, new = merged.get(key), typed.get(key)
        merged[key] = new
        for earlier in known:  # typed for the run, and not taken back
            if earlier.startswith(f"{key}.") and isinstance(old, dict) and isinstance(new, dict):
                _put(merged, earlier, _at({key: old}, earlier))


def _take_devices(merged: dict[str, Any], typed: dict[str, Any], overrides: list[str]) -> None:
    """Take devices and machines from this start: they are those that there are now."""
    launched, trainer = under_launcher(), merged["trainer"]
    if launched or any(word.lstrip("+").startswith(("trainer=", "trainer.devices=")) for word in overrides):
        trainer["devices"] = typed["trainer"]["devices"]
    trainer["num_nodes"] = typed["trainer"]["num_nodes"]


def _check_changes(saved: dict[str, Any], merged: dict[str, Any], allowed: list[str]) -> None:
    """Print what a resume changes; raise ConfigError where that would change the result and is not allowed."""
    differing = _changes(saved, merged)
    refused = {key: pair for key, pair in differing.items() if _decides(key) and not _allowed(key, allowed)}
    if refused:
        lines = "".join(
            f"\n  {key}: {shown(before)} in the run, {shown(after)} now" for key, (before, after) in refused.items()
        )
        names = ",".join(refused)
        raise ConfigError(
            f"these settings would change the result of the run resumed:{lines}\n"
            f"Leave them as they are, or allow them: 'allow_change=[{names}]'."
        )
    for key, (before, after) in differing.items():
        if not key.startswith(("resume", "paths", "allow_change", "objective.labels")):
            log(f"  {key}: {shown(before)} before, {shown(after)} from here on", one_line=True)
    if from_dict(saved).step_size().order != as_config(merged).step_size().order:
        log("  the rows come in another order from here on: some are read twice, others not, until an epoch has ended")


def as_config(record: dict[str, Any]) -> RunConfig:
    """Return the settings of a run that `to_dict` gave."""
    found: RunConfig = from_dict(record)
    return found


def _at(record: Any, key: str) -> Any:
    """Return the value of a setting by its full name; None where there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _put(record: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a setting by its full name."""
    *above, last = key.split(".")
    for part in above:
        if not isinstance(record.get(part), dict):
            record[part] = {}
        record = record[part]
    record[last] = value


def _same_place(one: str, other: Any) -> bool:
    return isinstance(other, str) and Path(one).exists() and Path(one).resolve() == Path(other).resolve()


def _decides(key: str) -> bool:
    group, _, rest = key.partition(".")
    if key in _FREE or (group in ("data", "tokenizer") and rest.rpartition(".")[2] == "path"):
        return False
    return group in _RESUME_CRITICAL or key in _RESUME_CRITICAL_TRAINER


def _allowed(key: str, allowed: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return each setting that differs between two records, by its full name, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        key, before, after = f"{prefix}{name}", old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _changes(before, after, f"{key}.")
        elif before != after:
            found[key] = (before, after)
    return found
