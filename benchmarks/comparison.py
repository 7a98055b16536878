"""Measure ours against baselines in turns within one run; each result is a ratio to ours.

A benchmark prints and saves a `Result`; `table.py` makes the README's table from the saved ones.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from machine import machine

RESULTS = Path(__file__).parent / "results"


@dataclass
class Line:
    """A comparison of ours with a peer, both measured in the same run; medians over its rounds."""

    what: str
    unit: str  # of `ours` and `theirs`; with `more_is_better`, the ratio is ours / theirs, else theirs / ours
    ours: float
    peer: str
    theirs: float
    ratio: float  # above 1: ours is better; median of the ratios of all rounds
    lowest: float  # of the ratios of all rounds
    highest: float
    target: float | None = None  # the ratio to reach


@dataclass
class Result:
    """The result of one script."""

    name: str  # of the file in benchmarks/results
    command: str  # repeats the measurement
    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)  # all other measurements
    missing: dict[str, str] = field(default_factory=dict)  # unavailable peers, and the reason

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
        """Add a line for each peer in `rounds`: by baseline, one value per round."""
        own = rounds[ours]
        for peer, theirs in rounds.items():
            if peer == ours:
                continue
            ratios = [a / b if more_is_better else b / a for a, b in zip(own, theirs, strict=True)]
            middle = statistics.median
            line = Line(what, unit, middle(own), peer, middle(theirs), middle(ratios), min(ratios), max(ratios))
            line.target = (targets or {}).get(peer)
            self.lines.append(line)

    def save(self, folder: Path | None = None) -> None:
        """Write what is measured so far to a folder; by default benchmarks/results."""
        folder = folder or RESULTS
        folder.mkdir(exist_ok=True, parents=True)
        text = json.dumps(asdict(self) | {"machine": machine()}, indent=1)
        draft = folder / f"{self.name}.json.draft"
        draft.write_text(text + "\n", encoding="utf8")
        draft.replace(folder / f"{self.name}.json")

    def finish(self, keep: bool = True, folder: Path | None = None) -> None:
        """Print the table and, with `keep`, write it to a folder; by default benchmarks/results."""
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
            self.save(folder)


def typed() -> str:
    """Return the command line that repeats this measurement, without the folder of its result."""
    words = sys.argv[1:]
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def gpu_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a script that measures a GPU, for `parsed_with_gpu`; a script adds options of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the result; by default benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="small, on a CPU")
    return parser


def parsed_with_gpu(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the given options; exit where there is no GPU, unless --tiny is given."""
    given = parser.parse_args()
    if not (given.tiny or torch.cuda.is_available()):
        script = Path(sys.argv[0]).name
        sys.exit(f"benchmarks/{script}: torch finds no GPU. Try --tiny --out FOLDER to see it work.")
    return given


def take_turns(
    baselines: Mapping[str, Callable[[], float | None]],
    rounds: int,
    warm_up: int = 1,
    missing: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Return one value per round by baseline; each round calls all baselines, starting with the next one.

    The value is what the baseline returns or, if that is None, the seconds that it took. With `missing`, a baseline
    that fails, unless it is the first, is recorded there with the reason and left out.
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
            except Exception as error:  # any failure of a peer is recorded; the others are still measured
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
    """Return the reason why a baseline is unavailable, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
