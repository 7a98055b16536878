"""Compare the losses of this code with those of an earlier commit after equal time.

    python benchmarks/against_commit.py <commit> shakespeare
    python benchmarks/against_commit.py <commit> novels --minutes 3

The commit is checked out below `--folder` and trains the same experiment with its own settings, in the same
environment. Each seed trains with both, in turns and `--jobs` at once, one core each. `src/compare.py` gives the
verdict. Of Shakespeare a third group reads characters with this code, as its recipe did until November 2026.

Typed again, the script goes on after the runs that are done.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from comparison import Result, typed
from corpora import assets
from novels import parts
from time_to_loss import CHARACTERS, split

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "configs/experiment/shakespeare.yaml",
    "configs/experiment/novels_small.yaml",
)

HERE = Path(__file__).parents[1]
BEFORE, NOW, CHARACTERS_NOW = "before", "now", "now_characters"
MINUTES = {"shakespeare": 0.85, "novels": 3.0}  # of training; the first is what nanoGPT's setting takes
SHARED = [
    "trainer.accelerator=cpu", "trainer.max_steps=-1", "trainer.val_check_interval=1000000",
    "data.max_validation_rows=0", "sample.every_n_steps=0", "logger=csv", "logging.report=false", "checkpoint.keep=1",
]  # fmt: skip


def checkout(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit, checked out unless it is there."""
    found = folder / "checkout"
    if not found.exists():
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", HERE, found], check=True)
        subprocess.run(["git", "-C", found, "checkout", "--quiet", "--detach", commit], check=True)
    return found


def text_of(what: str, folder: Path) -> list[str]:
    """Return the overrides that name the text to train on and the held-out text."""
    if what == "novels":
        return parts(assets() / "corpora" / "english_novels", choose=False)
    text = (assets() / "corpora" / "tinyshakespeare" / "input.txt").read_text(encoding="utf8")
    return split(text, folder.resolve(), choose=False)


def runs(given: argparse.Namespace, earlier: Path) -> Iterator[tuple[Path, Path, list[str]]]:
    """Yield the code, the folder and the overrides of each run, seed by seed."""
    experiment = "experiment=shakespeare" if given.what == "shakespeare" else "experiment=novels_small"
    shared = [experiment, *SHARED, *text_of(given.what, given.folder), f"trainer.max_time={given.minutes}"]
    for seed in given.seeds:
        for name, code in ((BEFORE, earlier), (NOW, HERE), (CHARACTERS_NOW, HERE)):
            if name == CHARACTERS_NOW and given.what != "shakespeare":
                continue
            folder: Path = given.folder / name / f"seed={seed}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            words = CHARACTERS[2:] if name == CHARACTERS_NOW else []
            cache = given.folder.resolve() / ("cache_before" if name == BEFORE else "cache")
            yield code, folder, [*shared, *words, f"seed={seed}", f"paths.cache_dir={cache}"]


def train(code: Path, folder: Path, words: list[str]) -> None:
    """Train one run with one thread, or go on with it, unless it is complete."""
    if (folder / "report.json").exists():
        return
    resume = ["resume=auto"] if folder.exists() else []
    script = code / "src" / "train.py"
    command = [sys.executable, str(script), *words, f"paths.run_dir={folder.resolve()}", *resume]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    print(f"{folder.parent.name} {folder.name}", flush=True)


def verdict(folder: Path) -> list[dict[str, Any]]:
    """Print what `src/compare.py` says of all runs and return its figures for each group."""
    page = folder / "compare.html"
    names = [name for name in (BEFORE, NOW, CHARACTERS_NOW) if (folder / name).exists()]
    command = [sys.executable, str(HERE / "src" / "compare.py"), *(str(folder / name) for name in names)]
    subprocess.run([*command, f"output={page}", "metric=val/bits_per_byte"], check=True)
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf8"))
    return [
        {
            "code": name,
            "bits_per_byte": [run["final"] for run in group["runs"]],
            "steps": [run["steps"] for run in group["runs"]],
            "difference": group["difference"],
            "p_holm": group["p_holm"],
        }
        for name, group in zip(names, found["groups"], strict=True)
    ]


def main() -> None:
    """Train what is missing, print the verdict and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="to compare with")
    parser.add_argument("what", choices=MINUTES, help="what is trained")
    parser.add_argument("--minutes", type=float, help="of training; default: 0.85 and 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--folder", type=Path, help="of the runs; default: below logs/against_commit")
    given = parser.parse_args()
    given.minutes = given.minutes or MINUTES[given.what]
    asked = ["git", "-C", HERE, "rev-parse", "--short", given.commit]
    commit = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    given.folder = given.folder or Path("logs/against_commit") / f"{given.what}-{commit}"
    given.folder.mkdir(parents=True, exist_ok=True)
    settings = {"commit": commit, "minutes": given.minutes, "seeds": given.seeds}
    result = Result(f"against_commit_{given.what}", typed(), settings)
    with ThreadPoolExecutor(given.jobs) as pool:
        for each in [pool.submit(train, *run) for run in runs(given, checkout(commit, given.folder))]:
            each.result()
    result.figures["rows"] = verdict(given.folder)
    result.finish()


if __name__ == "__main__":
    main()
