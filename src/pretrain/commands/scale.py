"""A scaling law from runs: train a ladder, fit it, predict a larger run before it starts, recommend one."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.command_line import is_hydras, parse
from pretrain.config.launcher import signals_passed_on
from pretrain.config.overrides import quoted
from pretrain.config.preset_folders import begins_with
from pretrain.config.sweep import JobError
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import CheckpointError, ConfigError, Interrupted, printable
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import read_record
from pretrain.files.untrusted_files import read_json
from pretrain.launch.run_folder import finished_run
from pretrain.planning.config import LadderSize, ScaleConfig
from pretrain.planning.ladder import Cell, cell_of, cells_of, lengths_of, operations_of, parameters_of, size_for
from pretrain.planning.scaling_fit import Fit, Point, Range, fit_law
from pretrain.program import SCRIPTS, command
from pretrain.reports.groups import as_json
from pretrain.reports.history import read_history
from pretrain.reports.scale import HeldOut, Ladder, LadderRun, Recommended, in_words, scale_page

PREDICTION, DATA, PAGE, RECOMMENDED = "prediction.json", "scale.json", "scale.html", "recommended"


@dataclass(frozen=True)
class Prediction:
    """What was predicted of the held-out run before it started."""

    written_at: str  # UTC
    time: float  # the same, Unix time in seconds
    name: str  # of the run
    parameters: int
    tokens: float
    loss: float
    low: float
    high: float
    confidence: float
    fitted_to: list[str]  # the overrides that all runs of the ladder share, then those of each


class Scaling:
    """The ladder of one run's settings, in a folder of its own."""

    def __init__(self, config: ScaleConfig, words: list[str]) -> None:
        """`words` are the typed arguments, flags and overrides of Hydra's own among them."""
        self.config = config
        name = config.name or "run"
        self.folder = Path(config.ladder.output or Path(config.paths.logs_dir) / "scale" / name).expanduser()
        given = parse(words)
        self.flags, self.config_name = given.where(), given.config_name
        keys = [word.partition("=")[0].lstrip("+") for word in given.overrides]
        pairs = list(zip(keys, given.overrides, strict=True))
        self.run_words = [
            word for key, word in pairs if not key.startswith(("ladder.", "paths.")) and not is_hydras(word)
        ]
        self.paths_words = [word for key, word in pairs if key in ("paths.cache_dir", "paths.logs_dir")]
        self.hydra_words = [word for key, word in pairs if is_hydras(word)]
        self.typed = set(keys)

    def answer(self) -> Ladder:
        """Train what is missing, fit, and return what came of it. Raises the errors of the runs."""
        config, settings = self.config, self.config.ladder
        self._refuse_config_of_scale()
        cells = cells_of(config, self.typed)
        larger = self._held_out_cell(cells)  # here: a wrong one is refused before the first run
        with self.writes():
            self.folder.mkdir(parents=True, exist_ok=True)
        runs = [run for cell, folder in zip(cells, self.train("ladder", cells), strict=True)
                for run in [self._read(cell, folder)]]  # fmt: skip
        points = [Point(run.parameters, run.tokens, run.loss) for run in runs]
        fit = fit_law(points, settings.confidence, settings.samples)
        vocab_size = Tokenizer.load(open_checkpoint(Path(runs[0].folder)).tokenizer_folder).vocab_size
        held_out = self._held_out(fit, vocab_size, cells, larger) if larger else None
        return Ladder(config.objective.kind, runs, fit, held_out, self._recommended(fit, runs, vocab_size))

    def _refuse_config_of_scale(self) -> None:
        """Raise ConfigError for a primary config that the runs, which are of train, cannot read."""
        if self.config_name is not None and begins_with(self.config_name, "scale"):
            raise ConfigError(
                f"--config-name {self.config_name} begins with scale, and the runs of the ladder, which are of train, "
                "read it as well. Let it begin with train, defaults: [train, _self_], and type what is of the ladder: "
                "ladder.sizes=[2x64,4x128]."
            )

    @contextmanager
    def writes(self) -> Iterator[None]:
        """Raise ConfigError that names the folder of the ladder where its storage fails."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"ladder.output={self.folder} cannot be written: {error.strerror}. Try ladder.output=logs/scale/mine."
            ) from error

    def train(self, part: str, cells: list[Cell]) -> list[Path]:
        """Run the cells as jobs of a sweep, those that are missing; return the folder of each.

        Raises JobError where a run failed, with its exit code, and Interrupted on a signal.
        """
        folders = self.folder / f"{part}.json"
        jobs = ",".join(quoted(" ".join(cell.words)) for cell in cells)
        words = [
            *self.run_words, *self.hydra_words, f"paths.logs_dir={quoted(str(self.folder / part))}",
            f"paths.cache_dir={quoted(self.config.paths.cache_dir)}", "hydra/sweeper=listed",
            f"hydra.sweeper.jobs=[{jobs}]", f"hydra.sweeper.folders={quoted(str(folders))}",
        ]  # fmt: skip
        exit_code = _ended([*_training_program(), *self.flags, "-m", *words])
        if exit_code in (129, 130, 143):
            raise Interrupted("the ladder was interrupted; type it again to go on", exit_code - 128)
        if exit_code:
            raise JobError(
                f"a run of the ladder ended with exit code {exit_code}; the lines above say why. Typed again, the "
                "command runs what is missing.",
                exit_code,
            )
        return [Path(each) for each in json.loads(folders.read_text())]

    def _read(self, cell: Cell, folder: Path) -> LadderRun:
        """Return the figures of a finished run. Raises CheckpointError for one without a validation loss."""
        report = finished_run(folder)
        loss = report.validation.get("val/loss") if report else None
        if report is None or loss is None or not report.tokens_seen:
            raise CheckpointError(
                f"{folder} ({cell.name}) has no validation loss to fit. Try a larger data.validation_fraction, and "
                "delete the folder."
            )
        return LadderRun(str(cell.size), cell.steps, report.parameters, float(report.tokens_seen), loss, str(folder))

    def _held_out_cell(self, cells: list[Cell]) -> Cell | None:
        """Return the held-out run; None without one.

        Raises ConfigError for a size that the model cannot have, and for a run that is no larger than those fitted.
        """
        settings = self.config.ladder
        if settings.held_out is None:
            return None
        lengths = (lengths_of(self.config, LadderSize.read(size)) for size in settings.sizes)
        tokens = settings.held_out_tokens or 2 * max(map(max, lengths))
        held_out = cell_of(self.config, LadderSize.read(settings.held_out), tokens, self.typed)
        most = max(cells, key=lambda cell: operations_of(self.config, cell))
        ratio = operations_of(self.config, held_out) / operations_of(self.config, most)
        if ratio <= 1.0:
            steps = math.ceil(4 * held_out.steps / ratio)
            raise ConfigError(
                f"ladder.held_out={settings.held_out}: {held_out.name} takes no more operations than {most.name}, to "
                "which the law is fitted, and only a larger run checks it. "
                f"Try ladder.held_out_tokens={self.config.batch_sizes().tokens(steps)}."
            )
        return held_out

    def _held_out(self, fit: Fit, vocab_size: int, cells: list[Cell], cell: Cell) -> HeldOut:
        """Predict the held-out run in a file, unless an earlier start did, then train it."""
        path = self.folder / PREDICTION
        prediction = _read_prediction(path)
        fitted_to = [" ".join(words) for words in (self.run_words, *(each.words for each in cells))]
        if prediction is None or (prediction.name, prediction.fitted_to) != (cell.name, fitted_to):
            tokens = float(self.config.batch_sizes().tokens(cell.steps))
            parameters = parameters_of(self.config, cell.size, vocab_size)
            expected = fit.predict(parameters, tokens)
            now = time.time()
            prediction = Prediction(
                datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S"), now, cell.name, parameters, tokens,
                expected.value, expected.low, expected.high, fit.confidence, fitted_to,
            )  # fmt: skip
            with self.writes():
                write_atomically(path, as_json(asdict(prediction)).encode())
        print(printable(f"predicted   {prediction.loss:.4f}, {prediction.low:.4f} to {prediction.high:.4f}, for "
                        f"{cell.name}, in {path}"), flush=True)  # fmt: skip
        run = self._read(cell, self.train("held_out", [cell])[0])
        history = read_history(Path(run.folder))
        is_late = history is None or not history.starts or history.starts[0].time < prediction.time
        return HeldOut(run, Range(prediction.loss, prediction.low, prediction.high), prediction.written_at, is_late)

    def _recommended(self, fit: Fit, runs: list[LadderRun], vocab_size: int) -> Recommended:
        """Return the run for the budget, and write it as an experiment for train and plan."""
        largest = max(run.flops for run in runs)
        budget = self.config.ladder.budget or 10 * largest
        optimum = fit.law.optimum(budget)
        sizes = [LadderSize.read(each) for each in self.config.ladder.sizes]
        size = size_for(self.config, sizes, optimum, vocab_size)
        parameters = parameters_of(self.config, size, vocab_size)
        cell = cell_of(self.config, size, budget / (6 * parameters), self.typed)
        tokens = float(self.config.batch_sizes().tokens(cell.steps))
        base = self._base_experiment()
        name = f"{base}_{RECOMMENDED}" if base else RECOMMENDED
        path = self.folder / "configs" / "experiment" / f"{name}.yaml"
        with self.writes():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _experiment(cell, base, budget).encode())
        words = ["--config-dir", str(path.parents[1]), *self._words_behind(cell), f"experiment={name}"]
        if self.flags:  # there is one such folder, and the runs need theirs
            words = [*self.flags, *self.run_words, *cell.words]
        words += self.paths_words
        return Recommended(
            budget, str(size), parameters, tokens, fit.predict(parameters, tokens), fit.optimal_parameters(budget),
            budget / largest, [f"{command(each)} {shlex.join(words)}" for each in ("plan", "train")],
        )  # fmt: skip

    def _words_behind(self, cell: Cell) -> list[str]:
        """Return the typed overrides that the recommended run does not set itself; others would win over its own."""
        set_by_it = {"experiment", *(word.partition("=")[0] for word in cell.words)}
        return [word for word in self.run_words if word.partition("=")[0].lstrip("+") not in set_by_it]

    def _base_experiment(self) -> str:
        """Return the experiment that was typed; empty for none."""
        names = [word.partition("=")[2] for word in self.run_words if word.startswith("experiment=")]
        return names[-1] if names and names[-1] != "null" else ""


def _experiment(cell: Cell, base: str, budget: float) -> str:
    """Return a preset of the group experiment, on top of another one, that makes the typed run the recommended one."""
    settings: dict[str, Any] = {"defaults": [base, "_self_"]} if base else {}
    for word in cell.words:
        key, _, value = word.partition("=")
        *way, last = key.split(".")
        node = settings
        for part in way:
            node = node.setdefault(part, {})
        node[last] = yaml.safe_load(value)
    about = f"# The size and length that a scaling law recommends for {budget:.3g} FLOPs.\n"
    return "# @package _global_\n" + about + yaml.safe_dump(settings, sort_keys=False)


def _read_prediction(path: Path) -> Prediction | None:
    """Return the prediction of an earlier start; None without one. Raises CheckpointError if it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        return read_record(Prediction, read_json(path, follow_links=False), "it")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Delete it; the run is predicted again.") from error


def _training_program() -> list[str]:
    """Return what starts a training in a process of its own."""
    script = SCRIPTS / "train.py"
    return [sys.executable, str(script)] if script.is_file() else [sys.executable, "-m", "pretrain", "train"]


def _ended(arguments: list[str]) -> int:
    """Run a program to its end, and pass on signals that ask to stop; return its exit code as a shell does."""
    running: list[subprocess.Popen[bytes]] = []
    with signals_passed_on(running):
        process = subprocess.Popen(arguments)
        running.append(process)
        code = process.wait()
    return 128 - code if code < 0 else code


def scale(config: ScaleConfig, words: list[str]) -> None:
    """Print and write what the ladder says; `words` are the typed arguments, Hydra's own among them."""
    scaling = Scaling(config, words)
    ladder = scaling.answer()
    page, data = scaling.folder / PAGE, scaling.folder / DATA
    with scaling.writes():
        write_atomically(page, scale_page(ladder, config.name or "run").encode())
        write_atomically(data, as_json(ladder.as_data()).encode())
    print(printable(in_words(ladder)))
    print(printable(f"\nreport      {page}\ndata        {data}"))
