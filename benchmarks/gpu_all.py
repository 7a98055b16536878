"""Measure training on a GPU in one command of less than nine minutes: `python benchmarks/gpu_all.py --out FOLDER`.

Five parts, each a process of its own with a deadline, in this order:

ceilings   what this GPU reaches: bandwidth and matmuls; whether the CPUs are free (`gpu_ceilings.py`)
kernels    attention and loss beside torch's, with their error and whether two runs are equal (`gpu_kernels.py`)
races      training beside its peers, at equal and at best micro-batch (`gpu.py`)
profile    where a micro-batch's time goes, and whether it waits for the host (`gpu_profile.py`)
truth      tests of `tests/gpu`: kernels equal plain code, a GPU trains what a CPU does, a resume is exact

Every part writes its JSON after each measurement, so that a part that is ended keeps what it has. What is not installed
is named, and the rest is measured: only torch is needed for a start. Without a GPU all parts run in a tiny form, which
shows that they work and measures nothing. In benchmarks/results the files make the tables of docs/results/gpu.md
(`python benchmarks/table.py`).
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
TRUTH = (  # node ids of pytest below tests/gpu
    "test_kernels.py::test_attention_in_blocks_is_attention_pair_by_pair[True-None-384-dtype1]",
    "test_kernels.py::test_the_loss_at_once_is_the_loss[0.0-dtype1-False]",
    "test_training.py::test_a_gpu_trains_what_a_processor_does[gpt-True]",
    "test_training.py::test_batches_copied_ahead_are_the_batches",
    "test_training.py::test_a_run_goes_on_exactly[true]",
)
MINUTES = 8.5


@dataclass(frozen=True)
class Part:
    """A part: its share of the time, and its command without options."""

    share: float
    command: tuple[str, ...]
    measures: bool = True  # takes --out and --tiny

    def words(self, out: Path, tiny: bool) -> list[str]:
        """Return the command to run."""
        options = ["--out", str(out), *(["--tiny"] if tiny else [])] if self.measures else []
        return [sys.executable, *self.command, *options]


PARTS = {
    "ceilings": Part(0.06, (str(BENCHMARKS / "gpu_ceilings.py"),)),
    "kernels": Part(0.14, (str(BENCHMARKS / "gpu_kernels.py"),)),
    "races": Part(0.54, (str(BENCHMARKS / "gpu.py"),)),
    "profile": Part(0.14, (str(BENCHMARKS / "gpu_profile.py"),)),
    "truth": Part(
        0.12,
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(ROOT / "tests/gpu" / each) for each in TRUTH)),
        False,
    ),
}


def environment() -> dict[str, str]:
    """Return the variables of a part: our sources on the path, and one folder of compiled kernels that is kept."""
    found = dict(os.environ)
    paths = [str(ROOT / "src"), str(BENCHMARKS), str(ROOT / "tests"), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    compiled = ROOT / ".cache" / "compiled"
    found.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled / "inductor"))
    found.setdefault("TRITON_CACHE_DIR", str(compiled / "triton"))
    return found


def run_part(command: list[str], deadline_s: float, log: Path) -> tuple[str, float]:
    """Run a part until it ends or its deadline; return how it ended, and its seconds.

    A part that is too late is ended with all processes that it has started. Its output is printed and kept in `log`.
    """
    start = time.monotonic()
    with log.open("w", encoding="utf8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(deadline_s)
            outcome = "done" if code == 0 else _failure(code, log)
        except subprocess.TimeoutExpired:
            outcome = f"ended at its deadline of {deadline_s:.0f} s; the files have what it measured by then"
        finally:
            _end_group(process)
    return outcome, time.monotonic() - start


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process, and those that it has left behind."""
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(code: int, log: Path) -> str:
    """Return why a part has ended: it lacks a library, which is no fault of its own, or it failed."""
    last = _last_line(log)
    lacking = re.match(r"ModuleNotFoundError: No module named '(\w+)", last)
    return f"left out: {lacking[1]} is not installed" if lacking else f"ended with exit code {code}: {last}"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def has_gpu() -> bool:
    """Return whether torch finds a GPU, asked in a process that ends: this one must hold no memory of it."""
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True
    )
    if asked.returncode:
        sys.exit(f"benchmarks/gpu_all.py: {sys.executable} cannot load torch: {asked.stderr.strip().splitlines()[-1]}")
    return asked.stdout.strip() == "True"


def main() -> None:
    """Run the parts that are asked for and write how each ended to `gpu_all.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files and logs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="as without a GPU")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    logs = ROOT / ".cache" / "gpu_logs" if out == BENCHMARKS / "results" else out / "logs"
    for folder in (out, logs):
        folder.mkdir(parents=True, exist_ok=True)
    tiny = given.tiny or not has_gpu()
    if tiny:
        print("tiny form on a CPU: shows that the parts work; its figures mean nothing", flush=True)
    total = sum(PARTS[name].share for name in given.parts)
    ended: dict[str, dict[str, object]] = {}
    for name in given.parts:
        part = PARTS[name]
        if tiny and not part.measures:
            ended[name] = {"ended": "left out: its tests need a GPU", "seconds": 0.0}
        else:
            deadline = 60 * given.minutes * part.share / total
            outcome, seconds = run_part(part.words(out, tiny), deadline, logs / f"{name}.txt")
            print((logs / f"{name}.txt").read_text(encoding="utf8", errors="replace"), flush=True)
            ended[name] = {"ended": outcome, "seconds": round(seconds, 1)}
        print(f"{name}: {ended[name]['ended']} ({ended[name]['seconds']} s)", flush=True)
        text = json.dumps({"tiny": tiny, "minutes": given.minutes, "parts": ended}, indent=1)
        (logs / "parts.json").write_text(text + "\n", encoding="utf8")
    failed = [name for name, how in ended.items() if str(how["ended"]).startswith("ended with")]
    if failed:
        sys.exit(f"these parts failed: {', '.join(failed)}. Their output is in {logs}.")


if __name__ == "__main__":
    main()
