"""Measure how fast a model learns Shakespeare's characters: `python benchmarks/time_to_loss.py`.

experiment=shakespeare_char has the settings that nanoGPT documents for a laptop's CPU; experiment=shakespeare is ours.
For each seed the baseline trains to its end; then ours trains for a quarter of the baseline's time, and for all of it.
Losses are nats per character over the whole validation part (the last tenth of the text) in non-overlapping windows of
each model's own context; times are of training with compilation, on the same machine.

`--choose` is for tuning: it leaves out the last tenth of the text and validates on the tenth before it, so that
settings are not tuned on the reported text.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from comparison import Result, typed

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "configs/experiment/shakespeare.yaml",
)

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
BASELINE = ["experiment=shakespeare_char"]
OURS = ["experiment=shakespeare", "trainer.max_steps=-1"]


def split(text: str, folder: Path, choose: bool) -> list[str]:
    """Write the training and validation parts to files; return the overrides with their paths."""
    tenth = len(text) // 10
    if choose:
        text = text[:-tenth]
    files = {"path": text[:-tenth], "validation_path": text[-tenth:]}
    for name, part in files.items():
        (folder / f"{name}.txt").write_text(part, encoding="utf8")
    return [f"data.{name}={folder / name}.txt" for name in files]


def train(words: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return a run's seconds of training and its loss in nats per character."""
    usual = [
        "data.max_validation_rows=0", "trainer.val_check_interval=1000000", "checkpoint.every_n_steps=1000000",
        "sample.every_n_steps=0", "logger=csv", "trainer.accelerator=cpu",
        f"paths.cache_dir={folder / 'cache'}", f"paths.run_dir={folder / 'run'}",
    ]  # fmt: skip
    command = [sys.executable, str(TRAIN), *usual, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{' '.join(command)} ended with exit code {done.returncode}")
    report = json.loads((folder / "run" / "report.json").read_text(encoding="utf8"))
    (folder / "run").rename(folder / f"run of {report['steps']} steps to {report['validation']['val/loss']}")
    return report["training_s"], report["validation"]["val/loss"]


def main() -> None:
    """Train with every seed, print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true", help="for tuning: score on the tenth before the last")
    parser.add_argument("--quick", action="store_true", help="one seed, nothing saved")
    parser.add_argument("--text", type=Path, help="tinyshakespeare; default: below PRETRAIN_ASSETS")
    given = parser.parse_args()
    assets = Path(os.environ.get("PRETRAIN_ASSETS", ""))
    path = given.text or assets / "corpora" / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        sys.exit(f"there is no text at {path}: name tinyshakespeare by --text, or its folder by PRETRAIN_ASSETS")
    text = path.read_text(encoding="utf8")
    seconds: dict[str, list[float]] = {"ours": [], "baseline": []}
    found: dict[str, list[float]] = {"baseline": [], "in a quarter of its time": [], "in its time": []}
    for seed in given.seeds[:1] if given.quick else given.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            words = [*split(text, folder, given.choose), f"seed={seed}"]
            whole, loss = train([*BASELINE, *words], folder)
            quarter, early = train([*OURS, f"trainer.max_time={whole / 250}", *words], folder)
            _, late = train([*OURS, f"trainer.max_time={whole / 60}", *words], folder)
        for name, value in zip(found, (loss, early, late), strict=True):
            found[name].append(round(value, 4))
        seconds["baseline"].append(whole)
        seconds["ours"].append(quarter)
        print(f"seed {seed}: baseline {loss:.4f} in {whole:.1f} s; ours {early:.4f} in {quarter:.1f} s, {late:.4f}")
    result = Result("time_to_loss", typed(), {"seeds": given.seeds})
    result.add("Shakespeare, to the baseline's loss", "s", seconds, more_is_better=False, targets={"baseline": 4.0})
    result.figures = {f"nats per character, {name}": values for name, values in found.items()}
    base, early = found["baseline"], found["in a quarter of its time"]
    result.figures["the baseline's loss was reached"] = all(a <= b for a, b in zip(early, base, strict=True))
    result.finish(keep=not (given.quick or given.choose))


if __name__ == "__main__":
    main()
