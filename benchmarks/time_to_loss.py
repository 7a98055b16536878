"""Measure how fast a model learns Shakespeare's characters: `python benchmarks/time_to_loss.py`.

experiment=shakespeare_char has the settings that nanoGPT documents for a laptop's CPU; experiment=shakespeare is ours.
For each seed the baseline trains to its end; then ours trains for a quarter of the baseline's time, and for all of it.
A third model reads subwords instead of characters, learned from the training part: 1,024 for a sixth of the
baseline's time, and 512 for all of it. Losses are nats per character, also of subwords, over the whole validation part
(the last tenth of the text) in non-overlapping windows of each model's own context; times are of training with
compilation, on the same machine.

`--choose` is for tuning: it leaves out the last tenth of the text and validates on the tenth before it, so that
settings are not tuned on the reported text.
"""

import argparse
import json
import math
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
SUBWORDS = ["experiment=shakespeare", "trainer.max_steps=-1"]
READS_CHARACTERS = ["tokenizer=bytes", "optimizer.learning_rate=3e-3"]  # instead of the subwords of the experiment
CHARACTERS = [*SUBWORDS, *READS_CHARACTERS]
EARLY = [
    "tokenizer.vocab_size=1024", "optimizer.learning_rate=8e-3", "model.context_length=128", "schedule.warmup_steps=10",
]  # fmt: skip
QUARTER, SIXTH = "in a quarter of its time", "subwords, in a sixth of its time"
RUNS = ("baseline", QUARTER, "in its time", SIXTH, "subwords, in its time")


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
    return report["training_s"], report["validation"]["val/bits_per_byte"] * math.log(2)  # a character is a byte


def runs_of(words: Sequence[str], folder: Path) -> list[tuple[float, float]]:
    """Return seconds of training and loss of each of RUNS; `words` are the text and the seed."""
    whole = train([*BASELINE, *words], folder)
    minutes = whole[0] / 60
    timed = (
        (CHARACTERS, minutes / 4.17), (CHARACTERS, minutes),
        ([*SUBWORDS, *EARLY], minutes / 6.1), (SUBWORDS, minutes),
    )  # fmt: skip
    return [whole, *(train([*settings, f"trainer.max_time={limit}", *words], folder) for settings, limit in timed)]


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
    found = list[list[tuple[float, float]]]()
    for seed in given.seeds[:1] if given.quick else given.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            found.append(runs_of([*split(text, Path(temporary), given.choose), f"seed={seed}"], Path(temporary)))
        shown = (f"{name} {loss:.4f} in {s:.1f} s" for name, (s, loss) in zip(RUNS, found[-1], strict=True))
        print(f"seed {seed}: {'; '.join(shown)}")
    seconds, losses = (
        {name: [run[place][part] for run in found] for place, name in enumerate(RUNS)} for part in (0, 1)
    )
    result = Result("time_to_loss", typed(), {"seeds": given.seeds})
    base = seconds["baseline"]
    for what, name, target in (("Shakespeare", QUARTER, 4.0), ("Shakespeare in subwords", SIXTH, 6.0)):
        rounds = {"ours": seconds[name], "baseline": base}
        result.add(f"{what}, to the baseline's loss", "s", rounds, more_is_better=False, targets={"baseline": target})
    result.figures = {f"nats per character, {name}": [round(x, 4) for x in values] for name, values in losses.items()}
    for name in (QUARTER, SIXTH):
        met = all(a <= b for a, b in zip(losses[name], losses["baseline"], strict=True))
        result.figures[f"the baseline's loss was reached, {name}"] = met
    result.finish(keep=not (given.quick or given.choose))


if __name__ == "__main__":
    main()
