"""Settings that had another name in an earlier version: read under it for one version more.

Saved files hold the old names, and so do command lines in scripts. All other code has the new names only.
"""

from __future__ import annotations

from typing import Any

RENAMED = {
    "model.tied": "model.tie_embeddings",
    "model.norm_place": "model.norm_position",
    "model.head_width": "model.head_dim",
    "model.window": "model.sliding_window",
    "model.global_every": "model.global_attention_every",
    "objective.mask_share": "objective.mask_token_prob",
    "objective.random_share": "objective.random_token_prob",
    "schedule.final_share": "schedule.min_lr_ratio",
    "schedule.decay_share": "schedule.decay_fraction",
    "data.num_workers": "data.prefetch",
    "parallel.reduce_once_a_step": "parallel.no_sync_accumulation",
    "logger.norms": "logging.norms",
    "logger.ledger": "logging.ledger",
    "logger.tensorboard": "loggers.tensorboard",
    "logger.csv": "loggers.csv",
}


_ON_THE_COMMAND_LINE = RENAMED | {"weights": "dtype"}  # of generate.py and eval.py, whose settings no run saves
_RESPELLED = {"task=memorisation": "task=memorization", "data=labelled": "data=labeled"}
_KINDS_OF_DATA = {"labelled": "labeled"}
_WEIGHTS = ("trained", "ema")  # values of the setting that is called weights now


def with_current_name(override: str) -> str:
    """Return an override `key=value` with the current name of its setting; any other override as it is."""
    key, equals, value = _RESPELLED.get(override, override).partition("=")
    bare = key.lstrip("+")
    names = _ON_THE_COMMAND_LINE
    is_old = equals and bare in names and not _is_current(bare, value)
    return f"{key[: len(key) - len(bare)]}{names[bare]}={value}" if is_old else f"{key}{equals}{value}"


def _is_current(key: str, value: str) -> bool:
    """Whether a name that was another setting's is used as its own: `weights` is also that of the average."""
    return key == "weights" and value in _WEIGHTS


def with_current_names(saved: dict[str, Any]) -> dict[str, Any]:
    """Return saved settings with the current names, as a new dict; where both names are there, the current one wins."""
    current = {name: dict(value) if isinstance(value, dict) else value for name, value in saved.items()}
    for old, new in RENAMED.items():
        (group, old_name), (new_group, new_name) = old.split("."), new.split(".")
        section = current.get(group)
        if isinstance(section, dict) and old_name in section:
            value = section.pop(old_name)
            target = current.setdefault(new_group, {})
            if isinstance(target, dict):
                target.setdefault(new_name, value)
            if not section:  # the group is no longer one
                del current[group]
    for name in ("data", "stages"):
        if isinstance(current.get(name), dict):
            current[name] = _with_current_kinds(current[name])
    return current


def _with_current_kinds(saved: dict[str, Any]) -> dict[str, Any]:
    """Return settings of data with the current kinds, those of a mixture's sources and of stages too."""
    found = {key: _with_current_kinds(value) if isinstance(value, dict) else value for key, value in saved.items()}
    if isinstance(kind := found.get("kind"), str):
        found["kind"] = _KINDS_OF_DATA.get(kind, kind)
    return found


def notes_on(overrides: list[str]) -> list[str]:
    """Return one line for each override that uses an old name, naming the new one."""
    notes = []
    for word in (override.lstrip("+") for override in overrides):
        key, equals, value = word.partition("=")
        new = _ON_THE_COMMAND_LINE.get(key) if equals and not _is_current(key, value) else None
        if word in _RESPELLED:
            key, new = word, _RESPELLED[word]
        if new is not None:
            notes.append(f"{key} is now called {new}; the old name is read for one version more.")
    return notes
