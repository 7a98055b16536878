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


def with_current_name(override: str) -> str:
    """Return an override `key=value` with the current name of its setting; any other override as it is."""
    key, equals, value = override.partition("=")
    bare = key.lstrip("+")
    names = _ON_THE_COMMAND_LINE
    return f"{key[: len(key) - len(bare)]}{names[bare]}={value}" if equals and bare in names else override


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
    return current


def notes_on(overrides: list[str]) -> list[str]:
    """Return one line for each override that uses an old name, naming the new one."""
    keys = [override.partition("=")[0].lstrip("+") for override in overrides if "=" in override]
    known = [key for key in keys if key in _ON_THE_COMMAND_LINE]
    return [
        f"{key} is now called {_ON_THE_COMMAND_LINE[key]}; the old name is read for one version more." for key in known
    ]
