"""Ask which settings of the architecture help experiment=novels_small: `python benchmarks/novels_settings.py`.

Each choice trains on english_novels (in PRETRAIN_ASSETS) for equal time with three seeds. Two of the training novels
are held out and score them all, so that nothing is chosen on the novels that benchmarks/novels.py reports. At the end
`src/compare.py` gives the verdict: what differs from the recipe by more than its seeds do.

Runs take turns, `--jobs` at once on a core each, so that other work slows all alike. Typed again, the script goes on
after the runs that are done.
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

from comparison import Result
from corpora import assets
from novels import parts

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "configs/experiment/novels_small.yaml",
)

SCRIPTS = Path(__file__).parents[1] / "src"
CHOICES = {
    "recipe": [],
    "residual_scalars": ["model.residual_scalars=true"],
    "attention_gate": ["model.attention_gate=head"],
    "both": ["model.residual_scalars=true", "model.attention_gate=head"],
}
SHARED = [
    "experiment=novels_small", "trainer.accelerator=cpu", "trainer.val_check_interval=1000000",
    "data.max_validation_rows=0", "sample.every_n_steps=0", "logger=csv", "logging.report=false",
    "checkpoint.keep=1",
]  # fmt: skip


def train(folder: Path, words: list[str]) -> None:
    """Train one run with one thread, or go on with it, unless it is complete."""
    if (folder / "report.json").exists():
        return
    resume = ["resume=auto"] if folder.exists() else []
    command = [sys.executable, str(SCRIPTS / "train.py"), *SHARED, *words, f"paths.run_dir={folder}", *resume]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environment)
    print(f"{folder.parent.name} {folder.name}", flush=True)


def runs(given: argparse.Namespace) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folder and the settings of each run, seed by seed."""
    text = parts(assets() / "corpora" / "english_novels", choose=True)
    for seed in given.seeds:
        for name in given.only:
            folder: Path = given.folder / name / f"seed={seed}"
            folder.parent.mkdir(parents=True, exist_ok=True)
            yield folder, [*text, *CHOICES[name], f"seed={seed}", f"trainer.max_time={given.minutes}"]


def verdict(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Print what `src/compare.py` says of all runs and return its figures for each choice."""
    page = given.folder / "compare.html"
    folders = [str(given.folder / name) for name in given.only]
    command = [sys.executable, str(SCRIPTS / "compare.py"), *folders, f"output={page}"]
    subprocess.run(command, check=True)
    found = json.loads(page.with_suffix(".json").read_text(encoding="utf8"))
    return [
        {
            "choice": name,
            "losses": [run["final"] for run in group["runs"]],
            "steps": [run["steps"] for run in group["runs"]],
            "difference": group["difference"],
            "p_holm": group["p_holm"],
        }
        for name, group in zip(given.only, found["groups"], strict=True)
    ]


def main() -> None:
    """Train what is missing, print the verdict and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CHOICES, nargs="+", default=list(CHOICES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--folder", type=Path, default=Path("logs/novels_settings"))
    given = parser.parse_args()
    command = f"python benchmarks/novels_settings.py --minutes {given.minutes:g} --jobs {given.jobs}"
    result = Result("novels_settings", command, {"minutes": given.minutes, "seeds": given.seeds})
    with ThreadPoolExecutor(given.jobs) as pool:
        for each in [pool.submit(train, *run) for run in runs(given)]:
            each.result()
    result.figures["rows"] = verdict(given)
    result.finish(keep=given.only == list(CHOICES))


if __name__ == "__main__":
    main()
