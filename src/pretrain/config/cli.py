"""The way every script starts: settings from the command line, one task, and errors as one line with an exit code."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

from pretrain.config.compose import (
    _NO_MEMORY,
    _composed,
    _first_line,
    _hand_to_hydra,
    compose,
    presets,
    register_schemas,
)
from pretrain.config.hydra_words import refuse_idle
from pretrain.config.overrides import as_hydra_reads, quote
from pretrain.config.renamed import notes_on, with_current_name
from pretrain.config.settings_help import help_page
from pretrain.config.sweep import checked_sweep
from pretrain.errors import (
    ConfigError,
    Interrupted,
    PretrainError,
    message_of,
    printable,
    show,
)
from pretrain.kernels.malloc import keep_freed_memory
from pretrain.launch.rank import check_launcher, rank, under_launcher
from pretrain.launch.slurm import adopt_slurm
from pretrain.stop_signals import cause_of, listen, stop_listening


def main(config_name: str, config_class: type, task: Callable[[Any, list[str]], object], free_text: str = "") -> None:
    """Compose the settings of a script from the command line, run `task(settings, overrides)`, and exit.

    `free_text` is a setting whose value needs no quoting beyond the shell's. A PretrainError or a signal ends the
    process with its exit code and its message alone. Flags other than --help and -m (--cfg, --info) are Hydra's.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return  # a process of the run imports the script to register its classes
    words = [with_current_name(quote(word, free_text)) for word in sys.argv[1:]]
    keep_freed_memory()
    try:
        listen()
        _check_environment(config_name)
        register_schemas(config_name, config_class)
        for note in notes_on(sys.argv[1:]):
            print(printable(note, one_line=True), file=sys.stderr)
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
    """Return the error that ended the process: a request to stop, an error of ours, or memory that ended.

    None for any other.
    """
    asked = cause_of(error)
    if asked is not None and not isinstance(error, Interrupted | SystemExit):
        return Interrupted(str(asked), asked.exit_code - 128)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return ConfigError(
            f"there is not enough memory for these settings ({_first_line(error)[:200]}). Try a smaller "
            "micro_batch_size, model.context_length or model; plan.py prints the memory of a run."
        )
    return error if isinstance(error, PretrainError) else None


def _check_environment(config_name: str) -> None:
    """Raise ConfigError if the environment lets torch run code from files, or a launcher's variables do not fit.

    Scripts that compute in one process ignore launchers.
    """
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() not in ("", "0", "false"):
        raise ConfigError(f"{name}={os.environ[name]} lets files run code as torch loads them. Unset it: unset {name}")
    if config_name in ("train", "doctor"):
        adopt_slurm()
        check_launcher()
    if config_name == "doctor" and under_launcher():
        raise ConfigError("doctor.py starts its processes itself. Start it alone: python src/doctor.py")
