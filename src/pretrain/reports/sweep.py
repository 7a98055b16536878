"""The report of a sweep, or of any folder of runs: which settings came to which loss."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pretrain.config.serialize import flat
from pretrain.errors import CheckpointError, shown
from pretrain.files.atomic_files import write_atomically
from pretrain.launch.run_folder import CONFIG, PAGE, record_of
from pretrain.reports.chart import Line, Look, line_chart
from pretrain.reports.page import Cell, Page, card, code, escaped, grid, number, table
from pretrain.reports.run import RunFiles, in_both_widths, read_run
from pretrain.reports.series import Scatter, Series

SWEEP_RECORD = "sweep.json"
MAX_RUNS = 200  # of a page
MAX_SMALL = 24  # runs that get a chart of their own
_BINS = 120  # of a curve, as there are many


@dataclass(frozen=True)
class SweptJob:
    """One job of a sweep."""

    folder: str  # its name beside the record
    swept: list[str]  # settings that differ between jobs, as typed
    exit_code: int | None = None  # None: not run


@dataclass(frozen=True)
class SweepRecord:
    """The jobs of the newest sweep in a folder."""

    jobs: list[SweptJob]


@dataclass(frozen=True)
class Trial:
    """A run among others."""

    job: SweptJob
    run: RunFiles | None  # None: it has left nothing
    values: dict[str, str]  # settings that differ between the runs

    @property
    def name(self) -> str:
        """The settings that tell it from the others, or its folder."""
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items()) or self.job.folder

    @property
    def loss(self) -> float | None:
        """Its last validation loss; None without one, and of a run that failed before its end."""
        value = self.run.latest("val/loss") if self.run and not self._failed else None
        return value if value is not None and math.isfinite(value) else None

    @property
    def _failed(self) -> bool:
        """Whether it ended without a report: what it last validated is no outcome of its settings."""
        if self.run is None or self.run.report is not None:
            return False
        return self.run.has_failed or self.job.exit_code not in (None, 0)


@dataclass(frozen=True)
class Sweep:
    """The runs of a folder."""

    folder: Path
    trials: list[Trial]
    left_out: int = 0  # runs beyond MAX_RUNS

    @property
    def best(self) -> int | None:
        """The position of the run with the lowest validation loss; None without one."""
        losses = {position: trial.loss for position, trial in enumerate(self.trials) if trial.loss is not None}
        return min(losses, key=lambda position: losses[position]) if losses else None


def write_record(folder: Path, jobs: Sequence[SweptJob]) -> None:
    """Write which jobs a sweep has, for its report."""
    write_atomically(folder / SWEEP_RECORD, json.dumps(asdict(SweepRecord(list(jobs))), indent=1).encode())


def read_sweep(folder: Path) -> Sweep:
    """Read the runs of a sweep, or those in the folders of a folder without a record."""
    if (folder / SWEEP_RECORD).exists():
        jobs = record_of(folder / SWEEP_RECORD, SweepRecord).jobs
        jobs = [job for job in jobs if "/" not in job.folder and job.folder not in ("", ".", "..")]
    else:
        jobs = [SweptJob(path.parent.name, []) for path in sorted(folder.glob(f"*/{CONFIG}"))]
    runs = [_run(folder / job.folder) for job in jobs[:MAX_RUNS]]
    values = [dict(word.partition("=")[::2] for word in job.swept) for job in jobs[:MAX_RUNS]]
    if not any(values):
        values = _differing(runs)
    trials = [Trial(*each) for each in zip(jobs, runs, values, strict=False)]
    return Sweep(folder, trials, len(jobs) - len(trials))


def _run(folder: Path) -> RunFiles | None:
    try:
        return read_run(folder)
    except CheckpointError:  # it failed early, or is damaged: the table shows that it has nothing
        return None


def _differing(runs: Sequence[RunFiles | None]) -> list[dict[str, str]]:
    """Return the settings of each run that differ between runs."""
    found = [{key: shown(value) for key, value in flat(run.settings)} if run else {} for run in runs]
    known = [values for values in found if values]
    keys = [key for key in (known[0] if known else {}) if not key.startswith(("paths.", "name"))]
    keys = [key for key in keys if len({values.get(key) for values in known}) > 1]
    return [{key: values[key] for key in keys if key in values} for values in found]


def sweep_page(sweep: Sweep, page_folder: Path | None = None) -> str:
    """Return the report of a sweep as HTML, for a file in `page_folder`; None: in that of the sweep."""
    trials, best = sweep.trials, sweep.best
    done = sum(trial.loss is not None for trial in trials)
    left_out = f" · the first {len(trials)} of {len(trials) + sweep.left_out} runs" if sweep.left_out else ""
    page = Page(f"{len(trials)} runs", f"{sweep.folder}{left_out}")
    if best is not None:
        page.tiles.append((f"{trials[best].loss:.4f}", "lowest validation loss"))
        page.tiles += [(value, key) for key, value in list(trials[best].values.items())[:4]]
    page.tiles.append((f"{done} of {len(trials)}", "runs with a validation loss"))
    page.add("Validation loss", _curves(trials, best))
    page.add(
        "By setting", grid(_by_setting(trials)), note="The last validation loss of every run, by one setting each."
    )
    base = os.path.relpath(sweep.folder, page_folder or sweep.folder)
    page.add("Runs", card(_table(trials, best, base)))
    page.add("One by one", grid(_one_by_one(trials)), note="The run in color, the others in gray, on the same axes.")
    return page.render()


def _table(trials: Sequence[Trial], best: int | None, base: str) -> str:
    """Return a table of the runs, best first; `base` is the way from the page to their folders."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))[:8]
    order = sorted(
        range(len(trials)), key=lambda position: (trials[position].loss is None, trials[position].loss or 0.0)
    )
    rows: list[list[str | Cell]] = []
    for position in order:
        trial = trials[position]
        speed = trial.run.latest("speed/tokens_per_s") if trial.run else None
        rows.append([
            *(code(trial.values.get(key, "-")) for key in keys),
            number("-" if trial.loss is None else f"{trial.loss:.4f}"),
            number(_bits_per_byte(trial)),
            number("-" if speed is None else f"{speed:,.0f}"),
            number(_outcome(trial)), _link(trial, base),
        ])  # fmt: skip
    return table(
        [*keys, "validation loss", "bits per byte", "tokens/s", "exit", "run"], rows, 0 if best is not None else None
    )


def _bits_per_byte(trial: Trial) -> str:
    for metric, mark in (("val/bits_per_byte", ""), ("val/bits_per_byte_bound", " (bound)")):
        if trial.run and (bits := trial.run.latest(metric)) is not None:
            return f"{bits:.4f}{mark}"
    return "-"


def _outcome(trial: Trial) -> str:
    if trial.run and trial.run.has_diverged("val/loss"):
        return "diverged"
    if trial.job.exit_code is not None:
        return str(trial.job.exit_code)
    return "0" if trial.run and trial.run.report else "-"


def _link(trial: Trial, base: str) -> Cell:
    name = escaped(trial.job.folder)
    if trial.run is None:
        return Cell(name)
    target = quote(f"{base}/{trial.job.folder}/{PAGE}", errors="surrogatepass")
    return Cell(f'<a href="{target}">{name}</a>')


def _curve(trial: Trial) -> Series | None:
    """Return the curve to compare a run by: of the validation, or of the training where that has few points."""
    if trial.run is None:
        return None
    validation, training = (trial.run.curves.get(metric) for metric in ("val/loss", "train/loss"))
    chosen = validation if validation and len(validation.points()) > 2 else training or validation
    return Series.of(((point.x, point.mean) for point in chosen.points()), _BINS) if chosen else None


def _curves(trials: Sequence[Trial], best: int | None) -> str:
    """Return the curves of all runs, that of the best one in color."""
    found = [(position, trial, series) for position, trial in enumerate(trials) if (series := _curve(trial))]
    lines = [Line(trial.name, series, quiet=position != best) for position, trial, series in found]
    title = "Loss of every run, nats per token"
    named = f"The best in color: {trials[best].name}" if best is not None else ""
    ends = (0.0, max((series.last[0] for _, _, series in found if series.last), default=1.0))
    return card(in_both_widths(lines, Look(title, x_ends=ends), 380), heading=named or title)


def _by_setting(trials: Sequence[Trial]) -> list[str]:
    """Return a chart of the last loss by each setting whose values are numbers, a table by those that are not."""
    cards = []
    for key in list(dict.fromkeys(key for trial in trials for key in trial.values))[:12]:
        pairs = [(trial.values[key], trial.loss) for trial in trials if trial.loss is not None and key in trial.values]
        if len({value for value, _ in pairs}) < 2:
            continue
        if all(_is_number(value) for value, _ in pairs):
            chart = _by_number(key, sorted((float(value), loss) for value, loss in pairs))
        else:
            lowest = {value: min(loss for each, loss in pairs if each == value) for value, _ in pairs}
            ordered = sorted(lowest.items(), key=lambda item: item[1])
            chart = table([key, "lowest loss"], [[code(value), number(f"{loss:.4f}")] for value, loss in ordered], 0)
        cards.append(card(chart, heading=key))
    return cards


def _by_number(key: str, positions: list[tuple[float, float]]) -> str:
    """Return the loss of every run by the value of a setting; a line joins the lowest of each value."""
    lowest: dict[float, float] = {}
    for value, loss in positions:
        lowest[value] = min(loss, lowest.get(value, loss))
    first, last = positions[0][0], positions[-1][0]
    look = Look(key, x=key, log_x=first > 0 and last / first >= 8, log_y=False)
    dots = Line("validation loss", Scatter.of(positions), dots=True, joined=False)
    return line_chart([Line("lowest", Scatter.of(lowest.items()), quiet=True), dots], look)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _one_by_one(trials: Sequence[Trial]) -> list[str]:
    """Return a chart for each run with the others behind it, best first."""
    found = [(trial, series) for trial in trials if (series := _curve(trial))]
    found.sort(key=lambda each: (each[0].loss is None, each[0].loss or 0.0))
    cards = []
    for trial, series in found[:MAX_SMALL]:
        others = [Line(other.name, curve, quiet=True) for other, curve in found[:MAX_SMALL] if other is not trial]
        cards.append(card(line_chart([*others, Line(trial.name, series)], Look(trial.name)), heading=trial.name))
    return cards
