"""Training from Python, such as in a notebook: the settings and the result of `pretrain train`, in this process."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config.cli import as_pretrain_error, refuse_unsafe_loading
from pretrain.config.command_line import CommandLine, refuse_idle_setting
from pretrain.config.compose import compose, register_schemas
from pretrain.config.keyword_settings import overrides_of
from pretrain.config.preset_folders import config_file, named_plugins, own_words, use_configs
from pretrain.config.project import use_project
from pretrain.config.registry import load_plugins
from pretrain.config.renamed import with_current_name
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError, Interrupted
from pretrain.launch.rank import under_launcher
from pretrain.launch.run_folder import TABLE, FinishedRun, finished_run, read_rows
from pretrain.process_state import generators_and_logs_restored, process_restored
from pretrain.program import command
from pretrain.stop_signals import AskedToStop, interrupts_raised

if TYPE_CHECKING:
    from pretrain.language_model import LanguageModel


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended: its folder, which holds all that the command line leaves there, and its figures."""

    folder: Path
    report: FinishedRun
    """The figures of `report.json` that other programs read: steps, tokens, parameters, speed, validation."""

    @property
    def loss(self) -> float | None:
        """The last validation loss in nats per token; None for a run without validation."""
        return self.report.validation.get("val/loss")

    def curve(self, name: str = "train/loss") -> list[tuple[int, float]]:
        """Return step and value of a figure of `metrics.csv`, in the order of steps; raises ConfigError for no such."""
        rows = read_rows(self.folder / TABLE)
        found = {int(row["step"]): float(row["value"]) for row in rows if row["name"] == name}
        if not found:
            known = ", ".join(sorted({row["name"] for row in rows})) or "none, as this run has no metrics.csv"
            raise ConfigError(f"curve({name!r}): the run has no figure of this name. There are: {known}.")
        return sorted(found.items())

    def model(self, device: str = "cpu", dtype: str = "fp32") -> LanguageModel:
        """Return the trained model; `device` and `dtype` as for `LanguageModel.load`."""
        from pretrain.language_model import LanguageModel

        return LanguageModel.load(self.folder, device, dtype)


def train(
    *overrides: str, config_dir: str | Path | None = None, config_name: str | None = None, **settings: Any
) -> TrainedRun:
    """Train a model in this process, as `pretrain train` with the same settings does, and return the run.

    `settings` are those of the command line by name: a text for a preset, a mapping for the settings of a group, in
    which `preset` chooses one, as in `train(model="gpt_nano", data={"preset": "text_files", "path": "texts"},
    trainer={"max_steps": 20})`. `overrides` are those of the command line, such as `"model.n_layers=4"`, and
    `settings` win over them. `config_dir` and `config_name` are its flags, and a `pretrain.yaml` in the working folder
    is read as there. Weights, curves and files are those of the command line.

    Raises the errors of the command line, such as ConfigError, and never ends the process. Ctrl-C, or the interrupt of
    a notebook, saves the run and raises Interrupted: the same call with `resume="auto"` goes on, where `name` or
    `paths={"run_dir": ...}` says which run. Signal handlers, environment, random generators, log levels and warning
    filters are afterwards what they were. Only the main thread may train.
    """
    _refuse_elsewhere()
    # what a message says to type next is the command's, not the words of the program around
    arguments, sys.argv = sys.argv, ["pretrain.train()"]
    with process_restored():
        try:
            with interrupts_raised():
                folder = _train([*overrides, *overrides_of(settings)], config_dir, config_name)
        except AskedToStop as asked:
            raise Interrupted(f"{asked}: nothing was trained yet", asked.exit_code - 128) from None
        except SystemExit as ended:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from ended
        except Exception as raised:
            error = as_pretrain_error(raised)
            if error is None or error is raised:
                raise
            raise error from raised
        finally:
            sys.argv = arguments
            use_configs(None, "train")
    report = finished_run(folder)
    assert report is not None
    return TrainedRun(folder, report)


def _refuse_elsewhere() -> None:
    """Raise ConfigError in a thread, where no signal can be handled, and in a process that a launcher started."""
    refuse_unsafe_loading()
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            f"pretrain.train() runs in the main thread, and this is {threading.current_thread().name}. Call it there, "
            f"or start {command('train')} as a process."
        )
    if under_launcher():
        raise ConfigError(
            "pretrain.train() starts the processes of a run itself, and torchrun or srun has started this one. Type "
            f'{command("train")} after it, or start Python alone: trainer={{"preset": "ddp"}}.'
        )


def _train(words: list[str], config_dir: str | Path | None, config_name: str | None) -> Path:
    for word in words:
        if not isinstance(word, str) or word.startswith("-"):
            raise ConfigError(
                f'{word!r} is no setting. Flags are arguments here, as in train(config_dir="my_configs"), and a sweep '
                "is a loop over calls."
            )
        if word.lstrip("+").startswith("search="):
            raise ConfigError(f"{word} starts many runs, and pretrain.train() is one. Type: {command('train')} {word}")
        refuse_idle_setting(word)
    words = [with_current_name(word) for word in words]
    sys.argv[1:] = words  # the run records its command line
    given = CommandLine(words, config_dir=None if config_dir is None else str(config_dir), config_name=config_name)
    use_project("train", given)
    name = given.config_name or "train"
    use_configs(given.config_dir, name)
    config_file(name)
    load_plugins(named_plugins(own_words(name, words)))
    register_schemas(name, RunConfig)
    config = compose(name, words)
    with generators_and_logs_restored():
        from pretrain.training.launch import train_to_end

        return train_to_end(config, words)
