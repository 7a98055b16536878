"""Compare the losses of this code with those of an earlier commit after equal time.

    python benchmarks/against_commit.py <commit> shakespeare
    python benchmarks/against_commit.py <commit> novels --minutes 3

The commit is checked out below `--folder` and trains the same experiment with its own settings, in the same
environment. Each seed trains with both, in turns and `--jobs` at once, one core each. `src/compare.py` gives the
verdict. Of Shakespeare a third group reads characters with this code, as its recipe did until November 2026.

Typed again, the script goes on after the runs that are done.
"""

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import Result, typed
from corpora import assets
from novels import parts
from seed_runs import SCRIPTS, SeedRun, compared, train_all
from time_to_loss import READS_CHARACTERS, split

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "configs/experiment/shakespeare.yaml",
    "configs/experiment/novels_small.yaml",
)

BEFORE, NOW, CHARACTERS_NOW = "before", "now", "now_characters"
EXPERIMENTS = {"shakespeare": "experiment=shakespeare", "novels": "experiment=novels_small"}
MINUTES = {"shakespeare": 0.85, "novels": 3.0}  # of training; the first is what nanoGPT's setting takes
SHARED = [
    "trainer.accelerator=cpu", "trainer.max_steps=-1", "trainer.val_check_interval=1000000",
    "data.max_validation_rows=0", "sample.every_n_steps=0", "logger=csv", "logging.report=false", "checkpoint.keep=1",
]  # fmt: skip


def checkout(commit: str, folder: Path) -> Path:
    """Return a folder with the files of a commit, checked out unless it is there."""
    found = folder / "checkout"
    if not found.exists():
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", SCRIPTS.parent, found], check=True)
        subprocess.run(["git", "-C", found, "checkout", "--quiet", "--detach", commit], check=True)
    return found


def text_of(what: str, folder: Path) -> list[str]:
    """Return the overrides that name the text to train on and the held-out text."""
    if what == "novels":
        return parts(assets() / "corpora" / "english_novels", choose=False)
    text = (assets() / "corpora" / "tinyshakespeare" / "input.txt").read_text(encoding="utf8")
    return split(text, folder, choose=False)


def runs(given: argparse.Namespace, earlier: Path) -> Iterator[SeedRun]:
    """Yield the runs, seed by seed."""
    shared = [EXPERIMENTS[given.what], *SHARED, *text_of(given.what, given.folder), f"trainer.max_time={given.minutes}"]
    groups = {BEFORE: (earlier / "src", []), NOW: (SCRIPTS, [])}
    if given.what == "shakespeare":
        groups[CHARACTERS_NOW] = (SCRIPTS, READS_CHARACTERS)
    for seed in given.seeds:
        for name, (scripts, words) in groups.items():
            cache = given.folder / ("cache_before" if name == BEFORE else "cache")
            folder = given.folder / name / f"seed={seed}"
            yield SeedRun(folder, [*shared, *words, f"seed={seed}", f"paths.cache_dir={cache}"], scripts)


def verdict(folder: Path) -> list[dict[str, Any]]:
    """Print what `src/compare.py` says of all runs and return its figures for each group."""
    names = [name for name in (BEFORE, NOW, CHARACTERS_NOW) if (folder / name).exists()]
    groups = compared([folder / name for name in names], folder / "compare.html", ["metric=val/bits_per_byte"])
    return [
        {"code": name, "bits_per_byte": group.pop("finals"), **group} for name, group in zip(names, groups, strict=True)
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
    asked = ["git", "-C", SCRIPTS, "rev-parse", "--short", given.commit]
    commit = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    given.folder = given.folder or Path("logs/against_commit") / f"{given.what}-{commit}"
    given.folder = given.folder.resolve()  # of two codes, of which each has a working folder of its own
    given.folder.mkdir(parents=True, exist_ok=True)
    settings = {"commit": commit, "minutes": given.minutes, "seeds": given.seeds}
    result = Result(f"against_commit_{given.what}", typed(), settings)
    train_all(runs(given, checkout(commit, given.folder)), given.jobs)
    result.figures["rows"] = verdict(given.folder)
    result.finish()


if __name__ == "__main__":
    main()
