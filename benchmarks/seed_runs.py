"""Runs of several seeds on a core each, and what `src/compare.py` says of them, for benchmarks that compare losses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "src"


@dataclass(frozen=True)
class SeedRun:
    """One training run: its folder, below that of its group, and its overrides."""

    folder: Path
    words: list[str]
    scripts: Path = SCRIPTS  # of the code that trains it


def train_all(runs: Iterable[SeedRun], jobs: int) -> None:
    """Train the runs in turns, `jobs` at once; raises CalledProcessError for one that fails."""
    with ThreadPoolExecutor(jobs) as pool:
        for each in [pool.submit(_train, run) for run in runs]:
            each.result()


def _train(run: SeedRun) -> None:
    """Train one run with one thread, or go on with it, unless it is complete."""
    folder = run.folder
    if (folder / "report.json").exists():
        return
    resume = ["resume=auto"] if folder.exists() else []
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(run.scripts / "train.py"), *run.words, f"paths.run_dir={folder}", *resume]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(run.scripts)}
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    print(f"{folder.parent.name} {folder.name}", flush=True)


def compared(folders: Sequence[Path], page: Path, words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Print what `src/compare.py` says of the groups of runs in these folders; return the figures of each group.

    `page` is the report that it writes, `words` are more overrides. "finals" and "steps" have a value for each run.
    """
    command = [sys.executable, str(SCRIPTS / "compare.py"), *map(str, folders), f"output={page}", *words]
    subprocess.run(command, check=True)
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf8"))
    return [
        {
            "finals": [run["final"] for run in group["runs"]],
            "steps": [run["steps"] for run in group["runs"]],
            "difference": group["difference"],
            "p_holm": group["p_holm"],
        }
        for group in found["groups"]
    ]
