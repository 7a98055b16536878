"""Tables of pages in Markdown, and how figures are written in them."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

NAMES = {
    "nanogpt": "nanoGPT", "hugging_face": "Hugging Face Trainer", "lightning": "Lightning's defaults",
    "baseline": "nanoGPT's setting",
}  # fmt: skip


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(_row, rows)])


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def shown(value: float | None) -> str:
    """Return a figure with three decimals; nothing for None."""
    return "" if value is None else f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{value:.1%}"


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Return the mean and how far the lowest and highest are from the middle between them; nothing for none."""
    if len(values) < 2:
        return "".join(map(show, values))
    return f"{show(fmean(values))} ± {show((max(values) - min(values)) / 2)}"


def readable(value: float) -> str:
    """Return a figure with three significant digits or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def comparisons(result: dict[str, Any]) -> str:
    """Return a row for each comparison with a baseline."""
    rows = []
    for line in result["lines"]:
        theirs = f"{NAMES.get(line['peer'], line['peer'].replace('_', ' '))}: {readable(line['theirs'])}"
        ratio = f"{line['ratio']:.2f} ({line['lowest']:.2f} to {line['highest']:.2f})"
        target = "" if line["target"] is None else f"{line['target']:.2f}"
        rows.append((line["what"], f"{readable(line['ours'])} {line['unit']}", theirs, ratio, target))
    rows += [(f"{baseline}: missing", "", why, "", "") for baseline, why in result["missing"].items()]
    return markdown(("what", "ours", "baseline", "ratio (lowest to highest)", "target"), rows)
