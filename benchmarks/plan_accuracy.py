"""Compare the estimates of `src/plan.py` with runs on this machine: `python benchmarks/plan_accuracy.py`.

`src/train.py` trains GPT-2 small (124 M parameters, 50,257 tokens of vocabulary) for a few steps of 4 rows of 256
tokens, on one process and sharded over two. Compared with the estimate made before:

memory  peak memory of a process (VmHWM of Linux), minus that of the same run with a model of almost no size; glibc is
        set to return freed memory at once, because it would keep much of it
time    median of the logged steps of another run without the first third, in which glibc still requests memory that it
        then keeps; the machine's speed is measured just before, so it should be idle
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from machine import machine

from pretrain.config.compose import compose, register_schemas
from pretrain.kernels.malloc import REUSE, keep_freed_memory
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import forecast, target_of

MEASURES = ("src/pretrain/planning", "src/pretrain/models", "src/pretrain/kernels")

ROOT = Path(__file__).parents[1]
CASES = {"single": [], "fsdp x 2": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]}
NEXT_TO_NOTHING = ["model.n_layers=1", "model.d_model=16", "model.n_heads=1", "model.vocab_multiple=1"]


def words(folder: Path) -> list[str]:
    """Return the overrides of the run: a generated text, byte tokens, and a vocabulary of GPT-2's size."""
    text = folder / "text.txt"
    text.write_text("".join(f"Line {number} says that {number * number} is a square.\n" for number in range(4000)))
    return [
        "model=gpt_small",
        "model.context_length=256",
        "model.vocab_multiple=50257",
        "tokenizer=bytes",
        "data=text_files",
        f"data.path={text}",
        "data.validation_fraction=0",
        "batch_size=4",
        "micro_batch_size=null",
        "trainer.log_every_n_steps=1",
        "trainer.precision=fp32",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "schedule.warmup_steps=1",
        "checkpoint.every_n_steps=1000",
        "sample.max_new_tokens=1",
        "logger=csv",
        f"paths.cache_dir={folder / 'cache'}",
    ]


def highest_rss(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and return the peak memory of it or of one of its children, in bytes."""
    highest: dict[int, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *children(process.pid)]:
            for line in status(pid):
                if line.startswith("VmHWM:"):
                    highest[pid] = int(line.split()[1]) * 1024
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return max(highest.values())


def children(pid: int) -> list[int]:
    """Return all descendants of a process."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def status(pid: int) -> Iterator[str]:
    """Yield the lines of a process's /proc status; nothing if it has ended."""
    try:
        yield from Path(f"/proc/{pid}/status").read_text(encoding="utf8").splitlines()
    except OSError:
        return


def train(settings: list[str], folder: Path, frees: bool) -> tuple[int, float]:
    """Return the peak memory of a run's processes in bytes, and the median seconds of its later steps.

    `frees`: what is no longer needed goes back to the system at once.
    """
    command = [sys.executable, str(ROOT / "src" / "train.py"), *settings, f"paths.run_dir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name not in REUSE}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1000000"} if frees else {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        memory = highest_rss(process)
    with (folder / "metrics.csv").open(newline="") as file:
        speeds = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "speed/tokens_per_s"]
    return memory, 4 * 256 / median(speeds[len(speeds) // 3 :])


def compare(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Return estimate and measurement of one case; `steps` are those of the timed run."""
    settings = [*words(folder), *CASES[name]]
    config: PlanConfig = compose("plan", settings)
    found = forecast(config, target_of(config), simulate=True)
    _, step_s = train([*settings, f"trainer.max_steps={steps}"], folder / f"{name} timed", frees=False)
    settings += ["trainer.max_steps=6"]
    baseline, _ = train([*settings, *NEXT_TO_NOTHING], folder / f"{name} nothing", frees=True)
    memory, _ = train(settings, folder / name, frees=True)
    return {
        "case": name,
        "forecast_mib": round(found.peak / 2**20),
        "measured_mib": round((memory - baseline) / 2**20),
        "baseline_mib": round(baseline / 2**20),
        "memory_error": round(found.peak / (memory - baseline) - 1, 3),
        "forecast_step_s": round(found.cost.step_s, 3),
        "measured_step_s": round(step_s, 3),
        "time_error": round(found.cost.step_s / step_s - 1, 3),
    }


def main() -> None:
    """Compare both cases, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=18, help="of each timed run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "plan_accuracy.json")
    arguments = parser.parse_args()
    register_schemas("plan", PlanConfig)
    keep_freed_memory()  # as plan.py does: memory speed depends on it
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = []
        for name in CASES:
            rows.append(compare(name, folder, arguments.steps))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    result = {"machine": machine(), "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
