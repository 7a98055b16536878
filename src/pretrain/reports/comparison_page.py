"""The comparison of groups of runs, for the terminal, as a page and as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import write_atomically
from pretrain.planning.units import count, duration, percent
from pretrain.reports.chart import COLORS, Line, Look
from pretrain.reports.compare import CompareOptions, Comparison, GroupOutcome, compare
from pretrain.reports.groups import Curves, Group, as_json, read_groups
from pretrain.reports.page import Cell, Page, card, code, escaped, number, table
from pretrain.reports.run import in_both_widths
from pretrain.reports.series import Series

_UNITS = {
    "val/loss": "nats per token",
    "val/loss_bound": "nats per token, an upper bound",
    "val/bits_per_byte": "bits per byte",
    "val/bits_per_byte_bound": "bits per byte, an upper bound",
    "train/loss": "nats per token of the training text",
}
MAX_SETTINGS = 60  # rows of the table of settings that differ


def write_comparison(paths: Sequence[str], options: CompareOptions, output: Path) -> tuple[Comparison, Path]:
    """Compare runs and folders of runs; write `output` (HTML) and a JSON file beside it, and return the second's path.

    Raises CheckpointError for a folder without runs, ConfigError for a metric that they lack.
    """
    groups, left_out = read_groups(paths)
    comparison = compare(groups, options, left_out)
    beside = output.with_suffix(".json")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, comparison_page(comparison, groups).encode())
        write_atomically(beside, as_json(asdict(comparison)).encode())
    except OSError as error:
        raise CheckpointError(
            f"output={output} cannot be written: {error.strerror}. Try output=compare.html."
        ) from error
    return comparison, beside


def verdict(comparison: Comparison, group: GroupOutcome) -> str:
    """Return the difference of a group from the first in one sentence."""
    baseline, difference = comparison.groups[0], group.difference
    assert difference is not None
    better = (difference.value < 0) is comparison.falls
    seeds = f"{len(group.runs)} and {len(baseline.runs)} runs"
    if difference.interval is None or difference.p is None:
        word = "equal" if difference.value == 0.0 else "better" if better else "worse"
        return f"{group.name}: {difference.value:+.4f} against {baseline.name}, {word} in {seeds}; not tested"
    low, high = difference.interval
    interval = f"{percent(comparison.confidence)} interval {low:+.4f} to {high:+.4f}"
    shown = f"{difference.value:+.4f} ({interval}, {_p(difference.p)}"
    is_one_of_several = len(comparison.groups) > 2 and group.p_holm is not None
    several = f", {_p(group.p_holm)} of all comparisons" if is_one_of_several else ""
    p = difference.p if group.p_holm is None else group.p_holm
    word = ("better" if better else "worse") if p < 1 - comparison.confidence else "no difference shown"
    return f"{group.name}: {word}, {shown}{several}, {seeds}) against {baseline.name}"


def _p(value: float | None, name: str = "p") -> str:
    if value is None:
        return f"{name} unknown"
    equals = f"{name} = " if name else ""
    return f"{equals}{value:.2g}" if value >= 1e-4 else f"{name} < 0.0001".strip()


def in_words(comparison: Comparison) -> str:
    """Return what the command prints."""
    rows = [_heads(comparison), *_rows(comparison)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    lines = [f"WARNING: {line}" for line in comparison.warnings] + [f"note: {line}" for line in comparison.notes]
    better = "lower" if comparison.falls else "higher"
    lines += ["", f"{comparison.metric} in {_unit(comparison)}; {better} is better", "", *aligned, ""]
    lines += [verdict(comparison, group) for group in comparison.groups[1:]]
    keys = list(comparison.settings.items())[:12]
    lines += ["", "Settings that differ" if keys else "No setting differs"]
    lines += [f"  {key}: {' | '.join(values)}" for key, values in [*keys, *comparison.environment.items()]]
    return "\n".join(lines)


def _heads(comparison: Comparison) -> list[str]:
    target = f"{comparison.target:.4g}"
    return [
        "group", "runs", "mean", f"{percent(comparison.confidence)} interval", "difference", "p",
        f"steps to {target}", "tokens", "seconds",
    ]  # fmt: skip


def _rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of every group."""
    rows = []
    for group in comparison.groups:
        steps, tokens, seconds = (group.mean_to_target(name) for name in ("step", "tokens", "seconds"))
        difference = group.difference
        rows.append([
            group.name, str(len(group.runs)), f"{group.mean:.4f}",
            f"{group.interval[0]:.4f} to {group.interval[1]:.4f}" if group.interval else "-",
            f"{difference.value:+.4f}" if difference else "baseline",
            _p(difference.p, "") if difference and difference.p is not None else "-",
            "-" if steps is None else f"{steps:,.0f}", "-" if tokens is None else count(tokens),
            "-" if seconds is None else duration(seconds),
        ])  # fmt: skip
    return rows


def comparison_page(comparison: Comparison, groups: Sequence[Group]) -> str:
    """Return the comparison as HTML."""
    values = [group.mean for group in comparison.groups]
    best = values.index(min(values) if comparison.falls else max(values))
    page = Page(f"{len(values)} experiments compared", f"By {comparison.metric}, {_unit(comparison)}")
    page.tiles = [(f"{values[best]:.4f}", f"best mean: {comparison.groups[best].name}")]
    page.tiles.append((str(sum(len(group.runs) for group in comparison.groups)), "runs"))
    if comparison.warnings:
        page.state = ("read the warning", False)
    rows = [[*row[:1], *map(number, row[1:])] for row in _rows(comparison)]
    page.add("Before you read on", *(f'<p class="bad"><b>{escaped(line)}</b></p>' for line in comparison.warnings))
    verdicts = (f"<p>{escaped(verdict(comparison, group))}</p>" for group in comparison.groups[1:])
    page.add(
        "Result",
        card(table(_heads(comparison), rows, best, stacks=True)),
        *verdicts,
        *(f'<p class="note">{escaped(line)}</p>' for line in comparison.notes),
        note="Differences are against the first group, by Welch's t-test. Steps, tokens and seconds are those to the "
        f"target {comparison.target:.4g}, at the first validation that meets it; a dash: not every run did.",
    )
    if curves := _curves(groups, comparison.metric):
        page.add("Curves", card(curves))
    heads = ["setting", *(group.name for group in comparison.groups)]
    page.add("Settings that differ", card(_settings(heads, comparison.settings)))
    page.add("Code and machine", card(_settings(["", *heads[1:]], comparison.environment)))
    page.add("Runs", card(_runs(comparison)))
    return page.render()


def _settings(heads: list[str], settings: dict[str, list[str]]) -> str:
    rows: list[list[Cell]] = [[code(key), *map(code, values)] for key, values in settings.items()]
    rest = f'<p class="note">and {len(rows) - MAX_SETTINGS} more</p>' if len(rows) > MAX_SETTINGS else ""
    return table(heads, rows[:MAX_SETTINGS], stacks=len(heads) < 5, names_last=True) + rest


def _curves(groups: Sequence[Group], metric: str) -> str:
    """Return one chart: a line of each group, the mean of its runs, in the band from their lowest to their highest.

    A line has the steps at which all runs of its group were validated: means of other runs at each step are no curve.
    Empty if no group has such a step.
    """
    lines, names = [], _short_names([group.name for group in groups])
    for position, group in enumerate(groups):
        curves = [Curves.read(member.run.folder, [metric]).values.get(metric, {}) for member in group.members]
        steps = sorted(set[int].intersection(*map(set, curves)))
        points = [(float(step), curve[step]) for step in steps for curve in curves]
        series = Series.of(points)
        if series:
            series.last = (points[-1][0], series.points()[-1].mean)  # of all runs, as the curve
        lines.append(Line(names[position], series, dots=len(series.points()) <= 40, quiet=position >= COLORS))
    if not any(line.series for line in lines):
        return ""
    title = f"{metric} of every group: mean, lowest and highest of its runs"
    return in_both_widths(lines, Look(title), 420)


def _short_names(names: list[str]) -> list[str]:
    """Return names without the beginning that all of them share, up to a sign that ends a word."""
    alike = (len(set(letters)) == 1 for letters in zip(*names, strict=False))
    shared = names[0][: sum(itertools.takewhile(bool, alike))]
    cut = max(shared.rfind(sign) for sign in "=/ ") + 1
    return [name[cut:] for name in names]


def _runs(comparison: Comparison) -> str:
    rows: list[list[str | Cell]] = [
        [
            group.name, code(run.folder), number(run.seed), number(f"{run.final:.4f}"), number(f"{run.steps:,}"),
            number("-" if run.tokens is None else count(run.tokens)),
            number("-" if run.seconds is None else duration(run.seconds)),
            number(f"{run.reached.step:,}" if run.reached else "-"),
        ]
        for group in comparison.groups
        for run in group.runs
    ]  # fmt: skip
    heads = ["group", "run", "seed", "final", "steps", "tokens", "in steps", f"steps to {comparison.target:.4g}"]
    return table(heads, rows, stacks=True)


def _unit(comparison: Comparison) -> str:
    return _UNITS.get(comparison.metric, comparison.metric)
