"""How a claim is measured: baselines take turns in one run, and each is a ratio to ours.

What a benchmark prints and keeps is a `Result`; the table of the README is made of the kept ones by `table.py`.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import machine

RESULTS = Path(__file__).parent / "results"


@dataclass
class Line:
    """One comparison: ours against a peer, both measured in the same run, as medians over its rounds."""

    what: str
    unit: str  # of `ours` and `theirs`; with `more_is_better`, the ratio is ours to theirs, else theirs to ours
    ours: float
    peer: str
    theirs: float
    ratio: float  # above 1: ours is better; the median of the rounds' own ratios
    lowest: float  # of the rounds' ratios
    highest: float
    target: float | None = None  # the ratio to reach


@dataclass
class Result:
    """What one script found."""

    name: str  # of the file that keeps it
    command: str  # that repeats the measurement
    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # everything else that was measured
    missing: dict[str, str] = field(default_factory=dict)  # peers that could not be had, and why

    def add(
        self,
        what: str,
        unit: str,
        rounds: Mapping[str, Sequence[float]],
        *,
        ours: str = "ours",
        more_is_better: bool,
        targets: Mapping[str, float] | None = None,
    ) -> None:
        """Add a line for each peer of `rounds`, which hold a figure a round by baseline."""
        own = rounds[ours]
        for peer, theirs in rounds.items():
            if peer == ours:
                continue
            ratios = [a / b if more_is_better else b / a for a, b in zip(own, theirs, strict=True)]
            middle = statistics.median
            line = Line(what, unit, middle(own), peer, middle(theirs), middle(ratios), min(ratios), max(ratios))
            line.target = (targets or {}).get(peer)
            self.lines.append(line)

    def finish(self, keep: bool = True) -> None:
        """Print the table and, with `keep`, write it to benchmarks/results."""
        here = machine()
        print(f"{self.name}: {self.settings}\n{here}")
        for name, why in self.missing.items():
            print(f"  missing: {name}: {why}")
        for line in self.lines:
            aim = "" if line.target is None else f", target {line.target:g}"
            print(
                f"  {line.what}: ours {line.ours:.4g} {line.unit}, {line.peer} {line.theirs:.4g}: "
                f"ratio {line.ratio:.3f} ({line.lowest:.3f} to {line.highest:.3f}{aim})"
            )
        for name, figure in self.figures.items():
            print(f"  {name}: {figure}")
        if keep:
            RESULTS.mkdir(exist_ok=True)
            text = json.dumps(asdict(self) | {"machine": here}, indent=1)
            (RESULTS / f"{self.name}.json").write_text(text + "\n", encoding="utf8")


def typed() -> str:
    """Return the command line that does this again."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def take_turns(
    baselines: Mapping[str, Callable[[], float | None]],
    rounds: int,
    warm_up: int = 1,
    missing: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Return a figure a round by baseline; each round calls every baseline once, starting with another one.

    A baseline's figure is what it returns, or, where it returns none, the seconds that it took. With `missing`, one
    that fails, unless it is the first, is entered there with the reason and left out, and the others go on.
    """
    names = list(baselines)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name not in found:
                continue
            start = time.perf_counter()
            try:
                figure = baselines[name]()
            except Exception as error:  # whatever a peer fails with, the others can still be measured
                if missing is None or name == names[0]:
                    raise
                missing[name] = why(error)
                del found[name]
                continue
            seconds = time.perf_counter() - start
            if number >= 0:
                found[name].append(seconds if figure is None else figure)
    return found


def why(error: BaseException) -> str:
    """Return on one line why a baseline cannot be had."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
