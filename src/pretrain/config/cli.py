"""The way every script starts: settings from the command line, the task under Hydra, errors in one line with a code."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pretrain.config.command_line import CommandLine, as_list, parse
from pretrain.config.compose import compose, composed, register_schemas, sweep_words
from pretrain.config.hydra_job import HydraJob
from pretrain.config.near_misses import of_reference
from pretrain.config.overrides import first_values, quote, quoted
from pretrain.config.preset_folders import (
    CONFIG_FOLDER,
    config_file,
    hydra_reads_presets,
    named_plugins,
    own_words,
    presets,
    use_configs,
)
from pretrain.config.project import use_project
from pretrain.config.registry import load_plugins
from pretrain.config.renamed import notes_on, with_current_name
from pretrain.config.settings_help import help_page
from pretrain.config.sweep import SWEEP, combinations, leave_report, of_the_job, show_table, swept_keys
from pretrain.errors import ConfigError, Interrupted, PretrainError, message_of, outlive_readers, printable, show
from pretrain.kernels.malloc import keep_freed_memory
from pretrain.launch.rank import check_launcher, rank, under_launcher
from pretrain.launch.slurm import adopt_slurm
from pretrain.program import command, program
from pretrain.reports.write import DEADLINE_S
from pretrain.stop_signals import CLEAN_UP_S, cause_of, listen, stop_listening

_NO_MEMORY = re.compile(r"can't allocate memory|out of memory")  # torch's messages, of CPUs and GPUs


def main(
    config_name: str, config_class: type, task: Callable[[Any, list[str]], object], *, free_text: str = "",
    positional: str = "", subcommand: str = "",
) -> None:  # fmt: skip
    """Compose the settings of a script from the command line, run `task(settings, overrides)` under Hydra, and exit.

    `free_text` is a setting whose value needs no quoting beyond the shell's; `positional` the list that words without
    a key belong to; `subcommand` the first word typed, which chose this task. A PretrainError or a signal ends the
    process with its exit code and its message alone.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        return  # a process of the run imports the script to register its classes
    typed = sys.argv[2:] if subcommand else sys.argv[1:]
    if config_name != "curate":  # its tasks need their memory once
        keep_freed_memory()
    outlive_readers()
    try:
        listen()
        check_environment(config_name)
        for note in notes_on(typed):
            print(printable(note, one_line=True), file=sys.stderr)
        typed = as_list(typed, positional)
        given = parse([with_current_name(quote(word, free_text)) for word in typed], config_class)
        words = of_the_job(given.overrides)
        if config_name == "train" and rank() > 0:  # the first process decides, and hands on what it decided
            task(None, words)
            return
        use_project(config_name, given)
        name, start = given.config_name or config_name, [*program(subcommand), *given.where()]
        _run(HydraJob(name, config_class, task, words, start, given.config_dir), given)
    except BaseException as raised:
        error = as_pretrain_error(raised)
        if error is None:
            raise
        stop_listening()
        print(message_of(error), file=sys.stderr)
        sys.stdout.flush()
        sys.exit(error.exit_code)


def _run(job: HydraJob, given: CommandLine) -> None:
    """Do what a command line asks for."""
    from hydra.types import RunMode

    from pretrain.config.launcher import register_plugins  # here: it loads Hydra

    name = job.config_name
    use_configs(given.config_dir, name)
    config_file(name)
    load_plugins(named_plugins(own_words(name, job.words)))
    register_schemas(name, job.config_class)
    register_plugins()
    if given.help:
        show(help_page(composed(name, given.overrides)[0], presets))
        return
    if given.completes:
        _call_hydra(job, given.flags, given.overrides)
    elif given.multirun:
        _sweep(job, given)
    else:
        tree, overrides = composed(name, given.overrides)
        if tree.hydra.mode is RunMode.MULTIRUN and not given.shows:
            _sweep(job, given)
        else:
            _call_hydra(job, given.flags, overrides)


def _sweep(job: HydraJob, given: CommandLine) -> None:
    """Check the settings of every job, then let Hydra's sweeper and launcher run them, and print the table."""
    words = sweep_words(job.config_name, given.overrides)
    with hydra_reads_presets():  # whose names `glob` lists
        tree, _ = composed(job.config_name, first_values(words))
        choices, settings = dict(tree.hydra.runtime.choices), tree.hydra.sweeper
        swept = [f"{key}={value}" for key, value in (settings.get("params") or {}).items()]
        if choices.get("hydra/sweeper") == "basic":  # what others will choose is not known before
            for each in combinations(of_the_job([*swept, *words])):
                compose(job.config_name, each)
        job.swept = tuple(dict.fromkeys([*swept_keys(swept), *swept_keys(words)]))
    job.logs_folder = Path(tree.paths.logs_dir)
    words.append(f"hydra.sweep.dir={quoted(str(job.logs_folder / SWEEP))}")
    flags = given.flags if "-m" in given.flags or "--multirun" in given.flags else [*given.flags, "-m"]
    with tempfile.TemporaryDirectory() as records:
        job.records = Path(records)
        stopped = True
        try:
            _call_hydra(job, flags, words)
            stopped = False
        except PretrainError as error:
            stopped = isinstance(error, Interrupted)
            raise
        finally:
            if jobs := job.recorded():
                show_table(jobs)
                if "logging" in tree and tree.logging.report:
                    leave_report(jobs, CLEAN_UP_S / 3 if stopped else DEADLINE_S)


def _call_hydra(job: HydraJob, flags: list[str], overrides: list[str]) -> None:
    """Let `@hydra.main` act on flags and overrides: run the job, several of them, or print what is asked for."""
    import hydra

    with _arguments([sys.argv[0], *flags, *overrides]):
        hydra.main(version_base="1.3", config_path=str(CONFIG_FOLDER), config_name=job.config_name)(job)()


@contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """Replace the process's arguments, which Hydra reads, and let it raise errors rather than print them."""
    before, variable = sys.argv, "HYDRA_FULL_ERROR"
    known = os.environ.get(variable)
    sys.argv, os.environ[variable] = arguments, "1"
    try:
        yield
    finally:
        sys.argv = before
        os.environ.pop(variable, None)
        if known is not None:
            os.environ[variable] = known


def as_pretrain_error(error: BaseException) -> PretrainError | None:
    """Return the error that ended the process: a request to stop, an error of ours, or memory that ended.

    None for any other.
    """
    asked = cause_of(error)
    if asked is not None and not isinstance(error, Interrupted | SystemExit):
        return Interrupted(str(asked), asked.exit_code - 128)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return ConfigError(
            f"there is not enough memory for these settings ({first}). Try a smaller "
            f"micro_batch_size, model.context_length or model; {command('plan')} prints the memory of a run."
        )
    if type(error).__module__ == "hydra.errors":  # of a plug-in: what it cannot take, or a library
        cause = error.__cause__
        return cause if isinstance(cause, PretrainError) else ConfigError(" ".join(str(error).split())[:600])
    if type(error).__module__ == "omegaconf.errors":  # of a setting that is read before all are made
        return ConfigError(of_reference(error))
    return error if isinstance(error, PretrainError) else None


def check_environment(config_name: str) -> None:
    """Raise ConfigError if the environment lets torch run code from files, or a launcher's variables do not fit.

    Scripts that compute in one process ignore launchers.
    """
    refuse_unsafe_loading()
    if config_name in ("train", "doctor"):
        adopt_slurm()
        check_launcher()
    if config_name == "doctor" and under_launcher():
        raise ConfigError(f"doctor starts its processes itself. Start it alone: {command('doctor')}")


def refuse_unsafe_loading() -> None:
    """Raise ConfigError if the environment lets torch run code from the files that it loads."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if os.environ.get(name, "0").lower() not in ("", "0", "false"):
        raise ConfigError(f"{name}={os.environ[name]} lets files run code as torch loads them. Unset it: unset {name}")
