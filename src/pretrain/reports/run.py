"""The report of a run: what it learned, wrote and read, how long that took, and with which settings."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pretrain.config.changed_settings import Settings, compare
from pretrain.errors import CheckpointError
from pretrain.files.untrusted_files import MAX_YAML_BYTES, read_yaml
from pretrain.launch.run_folder import CONFIG, REPORT, TABLE, FinishedRun, finished_run, lines_of
from pretrain.planning.units import count, duration
from pretrain.reports.chart import (
    COLORS,
    WIDE,
    Bar,
    Histogram,
    Line,
    Look,
    bar_chart,
    histogram,
    line_chart,
    stacked_bar,
)
from pretrain.reports.history import End, History, Sample, StageRecord, Start, read_history, read_samples
from pretrain.reports.page import Page, card, code, escaped, folded, grid, number, table, verbatim
from pretrain.reports.scores import score_cards
from pretrain.reports.series import Series

MAX_CURVES = 60  # metrics that get a chart of their own; a run of ours has about ten
MAX_SAMPLES = 12  # steps whose samples are shown
_HIDDEN = ("weights/", "progress/", "speed/goodput")  # too many, or no news
_TITLES = {
    "optim/learning_rate": "Learning rate",
    "optim/grad_norm": "Gradient norm, before clipping",
    "speed/tokens_per_s": "Speed in tokens/s",
    "speed/memory_gib": "Memory in GiB",
    "val/bits_per_byte": "Bits per byte, validation",
    "val/bits_per_byte_bound": "Bits per byte (upper bound), validation",
    "val/accuracy": "Accuracy, validation",
    "val/f1": "Macro F1, validation",
    "val/pearson": "Pearson correlation, validation",
    "val/spearman": "Spearman correlation, validation",
    "speed/mfu": "Share of the peak FLOP/s (MFU)",
    "speed/data_wait_s": "Seconds spent waiting for text, so far",
    "optim/skipped_steps": "Skipped steps, so far",
    "system/cpu_percent": "CPU of the machine, percent",
    "system/process_cpu_percent": "CPU of the run, percent of one core",
    "system/memory_gib": "Memory in use on the machine, GiB",
    "system/process_memory_gib": "Memory of the run's process, GiB",
}


@dataclass
class RunFiles:
    """What a run folder holds; None or empty for what is missing."""

    folder: Path
    settings: dict[str, Any]
    history: History | None
    report: FinishedRun | None
    samples: list[Sample]
    curves: dict[str, Series] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run, or that of its folder."""
        return self.history.name if self.history and self.history.name else self.folder.absolute().name

    @property
    def start(self) -> Start | None:
        """The newest start."""
        return self.history.starts[-1] if self.history and self.history.starts else None

    @property
    def end(self) -> End | None:
        """How the newest start ended."""
        return self.start.end if self.start else None

    @property
    def has_failed(self) -> bool:
        """Whether it ended in an error: what it last validated is no outcome of its settings."""
        return self.report is None and self.end is not None and self.end.outcome == "failed"

    def latest(self, metric: str) -> float | None:
        """Return the newest value of a metric, from the table or the final report; None where that has no number."""
        series = self.curves.get(metric)
        if self.has_diverged(metric):
            return None  # the table keeps no value that is not finite
        if series and series.last:
            return series.last[1]
        return self.report.validation.get(metric) if self.report else None

    def has_diverged(self, metric: str) -> bool:
        """Return whether the run ended with a value of a metric that is no number."""
        series, report = self.curves.get(metric), self.report
        if report is None or not report.has_diverged(metric):
            return False
        return not (series and series.last) or series.last[0] <= report.steps  # else it goes on after the report


def read_run(folder: Path) -> RunFiles:
    """Read what a run has left. Raises CheckpointError where the folder holds no run or a file is damaged."""
    if not any(os.path.lexists(folder / name) for name in (CONFIG, REPORT, TABLE)):
        raise CheckpointError(
            f"{folder} holds no run: there is no {CONFIG}, no {REPORT} and no {TABLE}. Try path=logs/gpt_nano/<time>."
        )
    return RunFiles(
        folder, _settings(folder), read_history(folder), finished_run(folder), read_samples(folder),
        read_curves(folder / TABLE),
    )  # fmt: skip


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = read_yaml(path, MAX_YAML_BYTES, follow_links=False)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return found if isinstance(found, dict) else {}


def read_curves(path: Path) -> dict[str, Series]:
    """Return the metrics of a metrics.csv by name, thinned while they are read; {} if there is no table."""
    curves: dict[str, Series] = {}
    for line in lines_of(path):
        step, name, value = _fields(line)
        if not step.isascii() or not step.isdigit() or len(step) > 18 or name.startswith(_HIDDEN):
            continue
        if name not in curves and len(curves) >= 4 * MAX_CURVES:
            continue
        try:
            curves.setdefault(name, Series()).add(int(step), float(value))
        except ValueError:  # a kill may leave half of the last line
            continue
    return {name: series for name, series in curves.items() if series}


def _fields(line: str) -> tuple[str, str, str]:
    """Return step, name and value of a line; empty texts for one of another form."""
    parts = line.split(",") if '"' not in line else next(csv.reader([line]), [])
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def run_page(run: RunFiles) -> str:
    """Return the report of a run as HTML."""
    history = run.history
    objective = history.objective if history else str((run.settings.get("objective") or {}).get("kind", ""))
    page = Page(run.name, f"{run.folder} · {objective}" if objective else str(run.folder), _state(run), _tiles(run))
    page.add("Loss", *_loss(run))
    page.add("Curves", grid(card(chart) for chart in _curves(run)))
    if run.curves:
        look = Look("Scores", marks=_marks(run), x_ends=_x_ends(run))
        page.add("Scores", score_cards(run.curves, look), note="Tasks that scored the model while it trained.")
    page.add("Samples", _samples(run.samples), note="What the model wrote at these steps, from the same prompts.")
    if history:
        page.add("Stages", _stages(history))
        page.add("What it read", *_text(run, history))
        page.add("Time", *_time(history.starts))
    page.add("Settings", *_settings_table(compare(run.settings, history.typed if history else [])))
    page.add("Environment", *_environment(history.starts if history else []))
    page.add("Go on", "".join(verbatim(line) for line in run.end.commands) if run.end else "")
    if not run.curves:
        page.sections.insert(0, card(f"There are no curves: {TABLE} is missing. The logger csv writes it."))
    return page.render()


def _state(run: RunFiles) -> tuple[str, bool] | None:
    if run.end is not None:
        return run.end.outcome, run.end.outcome == "finished"
    if run.start is not None:
        return "not ended", False
    return ("finished", True) if run.report else None


def _tiles(run: RunFiles) -> list[tuple[str, str]]:
    tiles = []
    is_bound = " (bound)" if "val/loss_bound" in run.curves else ""
    for metric, name in (
        ("val/loss", f"validation loss{is_bound}"), ("val/loss_ema", f"loss of the average{is_bound}"),
        ("val/bits_per_byte", "bits per byte"),
        ("val/bits_per_byte_bound", "bits per byte (bound)"), ("val/accuracy", "accuracy"),
        ("val/spearman", "Spearman correlation"),
    ):  # fmt: skip
        if (value := run.latest(metric)) is not None:
            tiles.append((f"{value:.4f}", name))
    train = run.curves.get("train/loss")
    if not tiles and train and train.last:
        tiles.append((f"{train.last[1]:.4f}", "training loss"))
    steps = max((int(series.last[0]) for series in run.curves.values() if series.last), default=0)
    steps = run.end.step if run.end else max(steps, run.report.steps if run.report else 0)
    tiles.append((f"{steps:,}", "steps"))
    if run.history:
        tiles.append((count(_tokens_read(run, run.history, steps)), "tokens read"))
        tiles.append((count(run.history.parameters), "parameters"))
        training_s = sum(start.end.training_s for start in run.history.starts if start.end)
        tiles += [(duration(training_s), "in steps")] if training_s else []
    if run.report and run.report.tokens_per_s:
        tiles.append((f"{run.report.tokens_per_s:,.0f}", "tokens/s"))
    return tiles


def _x_ends(run: RunFiles) -> tuple[float, float]:
    """Return the first and the last step, so that all charts of a page have one axis."""
    return 0.0, max(series.last[0] for series in run.curves.values() if series.last)


def _marks(run: RunFiles) -> list[tuple[float, str]]:
    """Return the steps at which the run was resumed, and those at which a stage began."""
    starts = run.history.starts if run.history else []
    steps = dict.fromkeys(float(start.step) for start in starts[1:] if start.step)
    marks = {step: "resumed" if len(steps) < 4 else "" for step in steps}
    last = _x_ends(run)[1] if run.curves else 0.0
    marks |= {float(stage.begin): stage.name for stage in _entered(run.history) if 0 < stage.begin < last}
    return list(marks.items())


def _entered(history: History | None) -> list[StageRecord]:
    """Return the stages that have a step of their own."""
    stages = history.stages if history else []
    return [stage for stage in stages if stage.end is None or stage.end > stage.begin]


def _tokens_read(run: RunFiles, history: History, steps: int) -> int:
    """Return the tokens of the first `steps` steps, padding included, as logged or reported; else an estimate.

    The estimate is wrong for a batch that grew or changed.
    """
    curve = run.curves.get("progress/tokens")
    if run.report and run.report.steps == steps:
        return run.report.tokens_seen
    if curve and curve.last and curve.last[0] > 0:
        return round(curve.last[1] * steps / curve.last[0])
    if not history.stages:
        return steps * history.batch_size * history.row_length
    read = 0
    for stage in _entered(history):
        if stage.tokens is not None and stage.end is not None and steps >= stage.end:
            read += stage.tokens
        else:
            read += max(0, steps - stage.begin) * stage.batch_size * stage.row_length
    return read


def _stages(history: History) -> str:
    """Return a table of the stages; empty for a run without."""
    rows = [
        [stage.name, number(f"{stage.begin + 1:,} {f'to {stage.end:,}' if stage.end else 'on'}"),
         number(f"{stage.tokens:,}" if stage.tokens is not None else "-"),
         number(f"{stage.batch_size:,} x {stage.row_length:,}"), number(f"{stage.learning_rate:g}"),
         ", ".join(f"{key}={value}" for key, value in stage.changes.items()) or "-"]
        for stage in _entered(history)
    ]  # fmt: skip
    heads = ["stage", "steps", "tokens", "rows x length", "peak rate", "what it changes"]
    return card(table(heads, rows)) if rows else ""


def _loss(run: RunFiles) -> list[str]:
    """Return the chart of the loss for wide and for narrow screens, and that of each source of a mixture."""
    validation = "validation (bound)" if "val/loss_bound" in run.curves else "validation"
    lines = [
        Line(name, run.curves[metric], dots=metric != "train/loss" and len(run.curves[metric].points()) <= 40)
        for metric, name in (
            ("train/loss", "training"),
            ("val/loss", validation),
            ("val/loss_ema", "validation of the average"),
        )
        if metric in run.curves
    ]
    if not run.curves:
        return []
    unit = "squared error" if "val/pearson" in run.curves else "nats per token"
    look = Look(f"Training and validation loss, {unit}", marks=_marks(run), x_ends=_x_ends(run))
    parts = [card(in_both_widths(lines, look, 380), heading=unit.capitalize())]
    by_source = [m for m in run.curves if m.startswith("val/") and m.count("/") == 2 and m.endswith("/loss")]
    if by_source:
        lines = [Line(metric.split("/")[1], run.curves[metric], dots=True) for metric in by_source[:COLORS]]
        left_out = f" ({COLORS} of {len(by_source)})" if len(by_source) > COLORS else ""
        chart = in_both_widths(lines, replace(look, title="Validation loss by source"), 320)
        parts.append(card(chart, heading=f"Validation by source{left_out}"))
    return [grid(parts, "one")]


def in_both_widths(lines: Sequence[Line], look: Look, height: int) -> str:
    """Return a chart as wide as the page, of `height`, and the one that a narrow screen shows instead."""
    wide = line_chart(lines, replace(look, width=WIDE, height=height))
    return f'<div class="wide">{wide}</div><div class="narrow">{line_chart(lines, look)}</div>' if wide else ""


def _curves(run: RunFiles) -> Iterable[str]:
    """Yield a chart for every other metric that changes, those of `_TITLES` first."""
    shown = ("/loss", "/loss_ema", "/loss_bound", "val/perplexity", "val/perplexity_bound")  # by other charts
    others = [m for m in run.curves if m not in _TITLES and not m.endswith(shown)]
    others = [m for m in others if m.count("/") < 2]
    for metric in [*_TITLES, *others][:MAX_CURVES]:
        series = run.curves.get(metric)
        if series is None or (series.extremes()[0] == series.extremes()[1] and metric not in list(_TITLES)[:4]):
            continue
        title = _TITLES.get(metric, metric)
        if series.left_out:
            title += f" ({series.left_out:,} values are no numbers)"
        from_zero = metric.startswith(("speed/", "system/"))
        line = Line(title, series, dots=len(series.points()) <= 12)
        log_y = False if from_zero else None
        look = Look(title, marks=_marks(run), from_zero=from_zero, log_y=log_y, x_ends=_x_ends(run))
        yield f"<h3>{escaped(title)}</h3>{line_chart([line], look)}"


def _samples(samples: list[Sample]) -> str:
    """Return the samples of up to MAX_SAMPLES steps, the first and the last among them; the last is open."""
    by_step: dict[int, list[str]] = {}
    for each in samples:
        tag = "" if each.tag == "samples" else f"{each.tag}\n"
        by_step.setdefault(each.step, []).append(f"{tag}{each.text}")
    steps = sorted(by_step)
    if len(steps) > MAX_SAMPLES:
        steps = [steps[round(position * (len(steps) - 1) / (MAX_SAMPLES - 1))] for position in range(MAX_SAMPLES)]
    shown = [folded(f"step {step:,}", "\n\n".join(by_step[step]), is_open=step == steps[-1]) for step in steps]
    return card(*shown)


def _text(run: RunFiles, history: History) -> list[str]:
    """Return the sources with what was read of them, the lengths of documents, and the packing."""
    several = len(history.sources) > 1
    begin, read_before = _begin_of_text(history, run.end.step if run.end else 0)
    tokens = _tokens_read(run, history, run.end.step) - read_before if run.end else 0
    samples = tokens / history.row_length
    rows = []
    for source in history.sources:
        epochs = f"{samples * source.share / source.rows:.2f}" if source.rows and samples else "-"
        rows.append([
            source.name or "the text", number(f"{source.share:.1%}"), number(f"{source.tokens:,}"),
            number(f"{source.documents:,}" if source.documents else "-"),
            number(f"{source.text_bytes / source.tokens:.2f}" if source.text_bytes and source.tokens else "-"),
            number(epochs), number(f"{source.validation_tokens:,}" if source.validation_tokens else "-"),
        ])  # fmt: skip
    heads = [
        "source",
        "share of rows",
        "training tokens",
        "documents",
        "bytes a token",
        "times read",
        "validation tokens",
    ]
    since = f"What it has read since step {begin + 1:,}, when a stage changed the text." if begin else ""
    parts = [card(f'<p class="note">{since}</p>' if since else "", table(heads, rows))]
    charts = []
    if several:
        bars = [Bar(each.name, each.share, f"{each.share:.1%}") for each in history.sources[:30]]
        charts.append(card(bar_chart(bars, Look("Share of each source in the rows")), heading="Share of the rows"))
    whole = [each for each in history.sources if 4 <= len(each.length_edges) == len(each.length_counts) + 1]
    for source in whole[:6]:  # of a few documents there is nothing to see
        lengths = Histogram([float(edge) for edge in source.length_edges], source.length_counts, "documents")
        title = "Documents by length" + (f": {source.name}" if source.name else "")
        mark = (float(history.row_length), f"a row: {history.row_length:,} tokens")
        log_x = bool(lengths.edges) and lengths.edges[0] > 0
        charts.append(card(histogram(lengths, Look(title, x="tokens", log_x=log_x, marks=[mark])), heading=title))
    charts.append(card(_packing(history), heading="Packing"))
    return [grid([*parts, grid(charts)], "one")]


def _begin_of_text(history: History, steps: int) -> tuple[int, int]:
    """Return the steps and the tokens before the stage from which on the text is that of the record.

    It is the text of the stage that the run is in after `steps` steps.
    """
    begin, tokens, read, changed = 0, 0, 0, None
    for stage in _entered(history):
        if stage.begin and stage.begin >= steps:
            break
        of_text = {key: value for key, value in stage.changes.items() if key.startswith("data.")}
        if changed is not None and of_text != changed:
            begin, read = stage.begin, tokens
        changed, tokens = of_text, tokens + (stage.tokens or 0)
    return begin, read


def _packing(history: History) -> str:
    known = [source for source in history.sources if source.rows and source.filled is not None]
    rows = [
        [source.name or history.packing, number(f"{source.rows:,}"), number(f"{source.pieces / source.rows:.2f}"),
         number(f"{source.filled or 0.0:.1%}")]
        for source in known
    ]  # fmt: skip
    about = (
        f"<p>{escaped(f'Documents are packed into rows of {history.row_length:,} tokens by {history.packing}.')}</p>"
    )
    return about + table(["", "rows", "pieces a row", "filled"], rows)


def _time(starts: list[Start]) -> list[str]:
    """Return the time of all starts by activity."""
    ends = [start.end for start in starts if start.end]
    spent = {"steps": sum(end.training_s for end in ends)}
    for end in ends:
        for reason, seconds in end.waited_s.items():
            spent[reason] = spent.get(reason, 0.0) + seconds
    spent["start and end"] = max(0.0, sum(end.wall_s for end in ends) - sum(spent.values()))
    bars = [Bar(name, seconds, duration(seconds)) for name, seconds in spent.items()]
    wide, narrow = (stacked_bar(bars, Look("Time by activity", width=width)) for width in (560, 400))
    chart = card(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>' if wide else "")
    lost = sum(start.end is None and not _goes_on(start, starts) for start in starts)
    rows = [
        [_utc(start.time), number(f"{start.step:,}"), number(f"{start.end.step:,}" if start.end else "-"),
         start.end.outcome if start.end else ("rewound" if _goes_on(start, starts) else "no record of its end"),
         start.end.message if start.end else ""]
        for start in starts
    ]  # fmt: skip
    listed = card(table(["started", "from step", "to step", "", ""], rows), heading="Starts")
    note = f"{lost} of {len(starts)} starts left no record of its time: it was killed, or goes on." if lost else ""
    return [f'<p class="note">{escaped(note)}</p>' if note else "", grid([chart, listed], "two")]


def _goes_on(start: Start, starts: list[Start]) -> bool:
    """Whether the process of a start made a later one: it went back to a checkpoint."""
    return any(other.process == start.process and other.time > start.time for other in starts)


def _settings_table(settings: Settings) -> list[str]:
    chosen = verbatim(" ".join(settings.presets)) if settings.presets else ""
    note = "What differs from the presets that the run chose" if settings.compared else "What was typed"
    rows = [
        [code(each.key), code(each.value), code(each.preset if each.preset is not None else "-"), each.about]
        for each in settings.changed
    ]
    return [f'<p class="note">{note}{":" if chosen else "."}</p>', chosen,
            card(table(["setting", "value", "preset", "what it is"], rows, stacks=True))]  # fmt: skip


def _environment(starts: list[Start]) -> list[str]:
    if not starts:
        return []
    rows = [[name, value] for name, value in starts[-1].environment.items()]
    return [card(table(["", ""], rows))]


def _utc(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OSError, OverflowError, ValueError):
        return "-"
