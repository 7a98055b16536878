"""Measure start-up times of the command line: `python benchmarks/start_up.py`.

Seconds until `src/train.py` prints its help, rejects a misspelt preset, and finishes the first optimizer step of the
nano preset, with its corpus already prepared. The commands are those that a user types, each in a process of its own;
a step ends when its line is in the run's ledger. The time that Python needs to import torch and Lightning is measured
in the same rounds and subtracted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from comparison import Result, take_turns, typed

MEASURES = (
    "src/train.py",
    "src/pretrain/commands",
    "src/pretrain/config",
    "src/pretrain/launch",
    "src/pretrain/training",
)

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(REPOSITORY / "src" / "train.py")]
IMPORTS = "import lightning.pytorch, torch"
TARGETS = {"help": 1.0, "typo": 1.0, "first step after the imports": 2.0}


def quietly(command: list[str], exit_code: int = 0) -> None:
    """Run a command; SystemExit with its output if it does not end as expected."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}, cwd=REPOSITORY
    )
    if done.returncode != exit_code:
        raise SystemExit(f"{command} ended with {done.returncode}, not {exit_code}:\n{done.stdout}{done.stderr}")


def first_step(folder: Path) -> Callable[[], float]:
    """Return a function that trains one step in a new process and returns the seconds to the step's end."""

    def seconds() -> float:
        run = Path(tempfile.mkdtemp(dir=folder))
        words = ["model=gpt_nano", "trainer.max_steps=1", "logging.ledger=true", "sample.max_new_tokens=1"]
        words += [f"paths.run_dir={run}", f"paths.cache_dir={folder / 'cache'}", "data.max_validation_rows=8"]
        start = time.time()
        quietly(TRAIN + words)
        return (run / "ledger.jsonl").stat().st_mtime - start

    return seconds


def measure(rounds: int) -> Result:
    """Return the result."""
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float | None]] = {
            "help": lambda: quietly([*TRAIN, "--help"]),
            "typo": lambda: quietly([*TRAIN, "model=gpt_nanno"], exit_code=2),
            "imports": lambda: quietly([sys.executable, "-c", IMPORTS]),
            "first step": first_step(Path(folder)),
        }
        found = take_turns(ways, rounds)  # the warm-up round prepares the corpus
    result = Result("start_up", typed(), {"rounds": rounds, "imports": IMPORTS})
    own = [step - imports for step, imports in zip(found["first step"], found["imports"], strict=True)]
    for name, seconds in {**found, "first step after the imports": own}.items():
        figure = {"median_s": statistics.median(seconds), "lowest_s": min(seconds), "highest_s": max(seconds)}
        result.figures[name] = figure | ({"target_s": TARGETS[name]} if name in TARGETS else {})
    return result


def main() -> None:
    """Measure with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing saved")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    given = parser.parse_args()
    measure(2 if given.quick else given.rounds).finish(keep=not (given.quick or given.no_keep))


if __name__ == "__main__":
    main()
