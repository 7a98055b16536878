"""Ask which settings of the architecture help experiment=novels_small: `python benchmarks/novels_settings.py`.

Each choice trains on english_novels (in PRETRAIN_ASSETS) for equal time with three seeds. Two of the training novels
are held out and score them all, so that nothing is chosen on the novels that benchmarks/novels.py reports. At the end
`src/compare.py` gives the verdict: what differs from the recipe by more than its seeds do.

Runs take turns, `--jobs` at once on a core each, so that other work slows all alike. Typed again, the script goes on
after the runs that are done.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comparison import Result
from corpora import assets
from novels import parts
from seed_runs import SeedRun, compared, train_all

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "configs/experiment/novels_small.yaml",
)

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


def runs(given: argparse.Namespace) -> Iterator[SeedRun]:
    """Yield the runs, seed by seed."""
    text = parts(assets() / "corpora" / "english_novels", choose=True)
    for seed in given.seeds:
        for name in given.only:
            words = [*SHARED, *text, *CHOICES[name], f"seed={seed}", f"trainer.max_time={given.minutes}"]
            yield SeedRun(given.folder / name / f"seed={seed}", words)


def verdict(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Print what `src/compare.py` says of all runs and return its figures for each choice."""
    groups = compared([given.folder / name for name in given.only], given.folder / "compare.html")
    return [
        {"choice": name, "losses": group.pop("finals"), **group} for name, group in zip(given.only, groups, strict=True)
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
    train_all(runs(given), given.jobs)
    result.figures["rows"] = verdict(given)
    result.finish(keep=given.only == list(CHOICES))


if __name__ == "__main__":
    main()
