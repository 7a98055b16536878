"""Resume a run: find its checkpoint, and merge its settings with the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoint.read import Checkpoint, newest, open_checkpoint, run_meant_by_auto
from pretrain.checkpoint.recorded_paths import settings_of
from pretrain.config.imported import IMPORTED
from pretrain.config.named_entries import SECTIONS
from pretrain.config.preset_folders import is_group
from pretrain.config.renamed import with_current_name
from pretrain.config.run import RunConfig
from pretrain.config.serialize import from_dict, to_dict
from pretrain.config.stages import ENDS
from pretrain.config.typed_lengths import DEVICE_PRESETS, OTHER_LENGTHS, other_warmups
from pretrain.data.batch_sizes import BatchSizes
from pretrain.errors import CheckpointError, ConfigError, shown
from pretrain.launch.rank import log, under_launcher
from pretrain.launch.remote_runs import local_run, restore_newest
from pretrain.launch.resumed_stages import check_trained, keep_ends, new_and_begun, trained_stages

# settings that determine the result of a run: a resume must keep them, or allow each change by name
_RESUME_CRITICAL = (
    "seed", "batch_size", "batch_warmup_rows", "batch_warmup_tokens", "init_from", "data", "tokenizer", "objective",
    "model", "lora", "optimizer", "schedule",
)  # fmt: skip
_RESUME_CRITICAL_TRAINER = (
    "trainer.precision", "trainer.half_residual_stream", "trainer.loss_scale_growth_interval",
    "trainer.gradient_clip_val",
)  # fmt: skip
# exceptions to these; labels are read from the data, whose fingerprint is compared instead
_NOT_CRITICAL = ("data.prefetch", "data.max_validation_rows", "objective.labels", "objective.validation_draws")
# settings with an `auto` value, which a resume replaces by the value that the run resolved
_AUTO = {
    "trainer.precision": "auto", "optimizer.newton_schulz_precision": "auto", "parallel.compile": None,
    "trainer.max_steps": None, "micro_batch_size": "auto",
}  # fmt: skip
_FILLED = {"logger": "loggers"}  # presets whose settings have another name
_RESOLVED_ONCE = ("size", "time")  # a run's first start turns them into numbers, and those are saved
_DEVICES = ("accelerator", "strategy", "devices")  # of the trainer: what a preset of devices brings
_STEPS = "trainer.max_steps"
_OF_ONE_START = ("resume", "allow_change", "paths.run_dir", "plugins")  # overrides of one start, not of the run


def find_resumed(config: RunConfig, overrides: list[str]) -> Checkpoint | None:
    """Return the checkpoint that `resume` means; None if it is auto and there is nothing to resume.

    Auto is the newest run of this name, or of all names if no override concerns what is trained. Raises CheckpointError
    if none of a run's checkpoints can be used.
    """
    if config.resume != "auto":
        run = local_run(str(config.resume), config.paths, config.storage)
        if (run / "config.json").is_file() and not (run / "checkpoints").exists():
            raise ConfigError(
                f"resume={config.resume} is a model of Hugging Face, and only a run of train goes on. Start a run from "
                f"its weights: init_from={config.resume}."
            )
        named_one = open_checkpoint(run)
        _check_run_dir(config, named_one.folder.parent.parent)
        return named_one
    named = any(_key_of(word).split(".")[0] in (*_RESUME_CRITICAL, "name", "experiment") for word in overrides)
    name = config.name if named else None
    restore_newest(config.paths, config.storage, name)
    folder = run_meant_by_auto(config.paths.run_dir, config.paths.logs_dir, name)
    if folder is not None:
        checkpoint, skipped = newest(folder)
        for path, reason in skipped:
            log(f"resume=auto skips {path}: {reason}", one_line=True)
        if checkpoint is not None:
            return checkpoint
        if skipped:
            raise CheckpointError(
                f"{folder} holds checkpoints, but all are damaged, and resume=auto does not silently start over. "
                "Delete the folder to start anew, or choose another one: resume=<folder>."
            )
    log("resume=auto found nothing to resume: starting a new run")
    return None


def _check_run_dir(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError where `paths.run_dir` asks for another folder than that of the run, in which it goes on."""
    asked = config.paths.run_dir
    if asked is not None and Path(asked).expanduser().resolve() != folder.resolve():
        raise ConfigError(
            f"paths.run_dir={asked} is not the folder of resume={config.resume}, and a run goes on in its own: "
            f"{folder}. Leave paths.run_dir out, or copy the folder and resume the copy. init_from starts another run."
        )


def overrides_of_the_run(overrides: list[str], earlier: list[str]) -> list[str]:
    """Return the overrides of all starts of a run, the newest of each setting, newest last."""
    words: dict[str, str] = {}
    for word in [*earlier, *overrides]:
        key = _key_of(word)
        if key not in _OF_ONE_START:
            words.pop(key, None)
            words[key] = word.lstrip("+")
    return list(words.values())


def _key_of(word: str) -> str:
    """Return the setting or group of an override."""
    return word.partition("=")[0].lstrip("+")


def merge(config: RunConfig, overrides: list[str], resumed: Checkpoint) -> RunConfig:
    """Return the resumed run's settings with the overrides on top.

    An override repeated from an earlier start changes nothing, and `auto` is what the run resolved it to. Raises
    ConfigError if another change would alter the result of the run and is not in `allow_change`.
    """
    if resumed.manifest.get("average_of"):
        raise ConfigError(
            f"{resumed.folder} is an average of weights, without the state of an optimizer. "
            f"Start a new run from it: init_from={resumed.folder.parent.parent}."
        )
    before, typed = settings_of(resumed, log, whole_run=True), to_dict(config)
    saved = to_dict(before)  # a setting newer than the run has its default
    merged = to_dict(before)
    earlier = {_key_of(word): word for word in map(with_current_name, resumed.typed)}
    for word in overrides:
        _apply(word, merged, typed, earlier)
    _apply_devices(merged, typed, overrides)
    for key, auto in _AUTO.items():
        if _get(merged, key) == auto and (resolved := _get(saved, key)) is not None:
            _set(merged, key, resolved)
    merged["plugins"] = typed["plugins"]  # of this start: what a saved run names is never imported
    merged["storage"] = typed["storage"]  # of this start, too: a saved run does not decide where this one is copied
    base = typed["init_from"]
    if base is None or _is_same_path(base, saved["init_from"]):  # None: a resumed run needs no base
        merged["init_from"] = saved["init_from"]
    trained = trained_stages(before, saved_sizes(resumed), resumed.step)
    keep_ends(trained, saved, merged)
    new = new_and_begun(trained, before, as_config(merged)) if merged["stages"] else []
    _check_changes(saved, merged, config.allow_change, [*trained.begins, *new])
    final = as_config(merged)
    check_trained(trained, final)
    return final


def _apply(word: str, merged: dict[str, Any], typed: dict[str, Any], earlier: dict[str, str]) -> None:
    """Write one override into `merged`; `earlier` are the overrides of earlier starts by key."""
    key = _key_of(word)
    repeated = earlier.get(key) == word.lstrip("+")
    if key in ("resume", "paths.run_dir", *_RESOLVED_ONCE) or word == f"model={IMPORTED}":
        return
    if key.split(".")[0] == "stages":
        if not repeated:  # what the run was started with may be saved in another form since: `keep_ends`
            _set_in_stages(merged, key, _get(typed, key))
    elif is_group(key):
        _apply_group(word, merged, typed, earlier)
    else:
        _set(merged, key, _get(typed, key))
        others = [] if repeated else other_warmups(key)  # repeated, it changes nothing
        if key in OTHER_LENGTHS and not repeated and _get(typed, _STEPS) == -1:  # as in a new run
            others = [_STEPS]
        for other in others:
            _set(merged, other, _get(typed, other))


def _apply_group(word: str, merged: dict[str, Any], typed: dict[str, Any], earlier: dict[str, str]) -> None:
    """Write a chosen preset of a group into `merged`."""
    group, repeated = _key_of(word), earlier.get(_key_of(word)) == word.lstrip("+")
    key = _FILLED.get(group, group)
    if key not in merged:
        if earlier and not repeated:
            raise ConfigError(
                f"{word} sets many settings, and the resumed run was started "
                f"{earlier.get(group, 'without ' + ('an' if group[0] in 'aeiou' else 'a') + ' ' + group)}. "
                "Leave it out and type only the settings to change, or start anew with init_from=<run>."
            )
        return
    if repeated:
        return
    old, new = merged.get(key), typed.get(key)
    if key == "trainer" and word.partition("=")[2] in DEVICE_PRESETS:  # length and intervals stay those of the run
        new = merged[key] | {name: typed[key][name] for name in _DEVICES}
    merged[key] = new
    for name in earlier:  # earlier overrides within the group stay, but for entries that were not chosen again
        within = name.startswith(f"{key}.") and (key not in SECTIONS or name.split(".")[1] in (new or ()))
        if within and isinstance(old, dict) and isinstance(new, dict):
            _set(merged, name, _get({key: old}, name))


def _set_in_stages(merged: dict[str, Any], key: str, value: Any) -> None:
    """Set what a stage has; it has one end, the one typed last."""
    _set(merged, key, value)
    section, _, rest = key.partition(".")
    name, _, end = rest.partition(".")
    if end in ENDS:
        entry = merged[section][name]
        merged[section][name] = {each: entry[each] for each in entry if each == end or each not in ENDS}


def _apply_devices(merged: dict[str, Any], typed: dict[str, Any], overrides: list[str]) -> None:
    """Set the number of devices and machines of this start."""
    trainer = merged["trainer"]
    if under_launcher() or any(word.lstrip("+").startswith(("trainer=", "trainer.devices=")) for word in overrides):
        trainer["devices"] = typed["trainer"]["devices"]
    trainer["num_nodes"] = typed["trainer"]["num_nodes"]


def saved_sizes(checkpoint: Checkpoint) -> BatchSizes:
    """Return the sizes of the steps of a checkpoint's run so far; raises CheckpointError where they are damaged."""
    config = checkpoint.run_config()
    return BatchSizes.saved(checkpoint.progress, config.step_size(), config.warmup_batches())


def _check_changes(saved: dict[str, Any], merged: dict[str, Any], allowed: list[str], begun: list[str]) -> None:
    """Log the settings that a resume changes; raise ConfigError for a critical one that is not allowed.

    What stages change is critical from their first step on: `begun` are the names of those that have taken it.
    """
    changes = _changes(saved, merged)
    kept = {key for key in changes if _is_critical(key) or _is_of(key, begun)}
    refused = {key: pair for key, pair in changes.items() if key in kept and not _is_allowed(key, allowed)}
    if refused:
        lines = "".join(
            f"\n  {key}: {shown(before)} in the run, {shown(after)} now" for key, (before, after) in refused.items()
        )
        names = ",".join(refused)
        raise ConfigError(
            f"these settings would change the result of the resumed run:{lines}\n"
            f"Leave them as they are, or allow them: 'allow_change=[{names}]'."
        )
    for key, (before, after) in changes.items():
        if not key.startswith(("resume", "paths", "storage", "allow_change", "objective.labels", "plugins")):
            log(f"  {key}: {shown(before)} before, {shown(after)} from here on", one_line=True)
    if from_dict(saved).step_size().order != as_config(merged).step_size().order:
        log("  the order of rows changes from here on: until the epoch ends, some are read twice and some not at all")


def as_config(record: dict[str, Any]) -> RunConfig:
    """Return the settings of a run from their plain data."""
    config: RunConfig = from_dict(record)
    return config


def _get(record: Any, key: str) -> Any:
    """Return the value of a setting by its full name; None if there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _set(record: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a setting by its full name."""
    *above, last = key.split(".")
    for part in above:
        if not isinstance(record.get(part), dict):
            record[part] = {}
        record = record[part]
    record[last] = value


def _is_same_path(one: str, other: Any) -> bool:
    return isinstance(other, str) and Path(one).exists() and Path(one).resolve() == Path(other).resolve()


def _is_critical(key: str) -> bool:
    group, _, rest = key.partition(".")
    if key in _NOT_CRITICAL or (group in ("data", "tokenizer") and rest.rpartition(".")[2] == "path"):
        return False  # a fingerprint is compared instead of a path
    return group in _RESUME_CRITICAL or key in _RESUME_CRITICAL_TRAINER


def _is_of(key: str, stages: list[str]) -> bool:
    """Whether a setting is one that these stages change; their ends may move, as the length of a run may."""
    section, _, rest = key.partition(".")
    name, _, setting = rest.partition(".")
    return section == "stages" and name in stages and setting not in ENDS


def _is_allowed(key: str, allowed: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two records: both values by full name."""
    changes: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        key, before, after = f"{prefix}{name}", old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes |= _changes(before, after, f"{key}.")
        elif before != after:
            changes[key] = (before, after)
    return changes
