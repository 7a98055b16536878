"""The scores of tasks in a run's report: a curve and a table for each file of examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pretrain.reports.chart import Line, Look, line_chart
from pretrain.reports.page import card, grid, number, table
from pretrain.reports.series import Series

_MAIN = ("accuracy", "stereotype_percent", "spearman", "loss")  # the metric that is drawn, the first that a file has
_PHENOMENON = "phenomenon/"


def score_cards(curves: Mapping[str, Series], look: Look) -> str:
    """Return a box for each scored file, from the curves `eval/<file>/<metric>`; empty where a run scored none."""
    files: dict[str, dict[str, Series]] = {}
    for name, series in curves.items():
        kind, _, rest = name.partition("/")
        file, _, metric = rest.partition("/")
        if kind == "eval" and metric and series.last:
            files.setdefault(file, {})[metric] = series
    return grid((_of_file(file, metrics, look) for file, metrics in sorted(files.items())), "two")


def _of_file(file: str, metrics: Mapping[str, Series], look: Look) -> str:
    main = next((name for name in _MAIN if name in metrics), next(iter(metrics)))
    line = Line(main.replace("_", " "), metrics[main], dots=len(metrics[main].points()) <= 12)
    chart = line_chart([line], replace(look, title=f"{file}: {line.name}"))
    phenomena = {name: each for name, each in metrics.items() if name.startswith(_PHENOMENON)}
    others = [name for name in metrics if name not in phenomena]
    ranked = sorted(phenomena, key=lambda name: -_last(phenomena[name]))
    tables = [
        table(["metric", "first", "last"], _rows(metrics, others)),
        table(["phenomenon", "first", "last"], _rows(metrics, ranked)),
    ]
    return card(chart, *tables, heading=file)


def _rows(metrics: Mapping[str, Series], names: Sequence[str]) -> list[list[object]]:
    return [
        [name.removeprefix(_PHENOMENON).replace("_", " "), number(f"{metrics[name].first_value():.4g}"),
         number(f"{_last(metrics[name]):.4g}")]
        for name in names
    ]  # fmt: skip


def _last(series: Series) -> float:
    assert series.last is not None
    return series.last[1]
