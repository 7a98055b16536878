"""Compare averages of the weights with a decay of the rate: `PRETRAIN_ASSETS=... python benchmarks/averages.py`.

`src/train.py` trains a causal model of 1 M parameters on english_novels at a constant rate, with `ema.decay`. Its
weights after 2,000 steps are compared with their moving average, with the average of the last five checkpoints, 100
steps apart, and with a branch from step 1,600 whose rate decays until step 2,000. All four have read the same tokens.
`src/eval.py` scores them on unseen novels. Typed again, the script goes on after the runs that are done.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from comparison import Result
from corpora import assets, novels_file

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/training/weight_average.py",
    "configs/recipe/gpt_nano.yaml",
)

SCRIPTS = Path(__file__).parents[1] / "src"
END, DECAY, APART = 2000, 400, 100
SHARED = [
    "model=gpt_nano", "data=text_files", "tokenizer=bpe", "tokenizer.vocab_size=4096", "data.max_validation_rows=256",
    "sample.every_n_steps=0", "logger=csv", "logging.report=false", "trainer.accelerator=cpu",
]  # fmt: skip
CONSTANT = [
    "schedule=wsd", f"trainer.max_steps={END + APART}", f"schedule.decay_fraction={APART / (END + APART):.4f}",
    "ema.decay=0.995", f"checkpoint.every_n_steps={APART}", "checkpoint.keep=0", "trainer.val_check_interval=500",
]  # fmt: skip
KINDS = ("constant rate", "moving average", "average of five checkpoints", "decayed branch")


def script(name: str, *words: str) -> None:
    """Run a script of `src/`; SystemExit if it fails."""
    if subprocess.run([sys.executable, str(SCRIPTS / f"{name}.py"), *words], stdout=sys.stderr).returncode:
        sys.exit(f"{name}.py {' '.join(words)} ended with an error")


def train(folder: Path, *words: str) -> None:
    """Train a run, or go on with it, unless it is complete."""
    if not (folder / "report.json").exists():
        resume = ["resume=auto"] if folder.exists() else []
        script("train", *words, f"paths.run_dir={folder}", *resume)


def losses(folder: Path, words: list[str]) -> list[float]:
    """Return the loss on unseen novels of each of KINDS in nats per token, trained unless it has been."""
    run, branch, average = folder / "run", folder / "branch", folder / "average"
    step = [run / "checkpoints" / f"step-{at:08d}" for at in range(END - DECAY, END + 1, APART)]
    train(run, *SHARED, *CONSTANT, *words)
    train(branch, f"branch={step[0]}", f"cooldown={DECAY}", "ema.decay=0", "logging.report=false")
    if not average.exists():
        script("average", f"checkpoints=[{','.join(map(str, step))}]", f"output={average}")
    weights = ((step[-1], "trained"), (step[-1], "ema"), (average, "trained"), (branch, "trained"))
    found = []
    for number, (checkpoint, kind) in enumerate(weights):
        output = folder / f"score-{number}.json"
        if not output.exists():
            script("eval", f"checkpoint={checkpoint}", f"weights={kind}", "max_rows=1024", f"output={output}")
        scores: dict[str, Any] = json.loads(output.read_text(encoding="utf8"))
        found.append(float(scores["loss"]))
    return found


def main() -> None:
    """Train what is missing, print the losses and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("logs/averages"))
    given = parser.parse_args()
    result = Result("averages", "python benchmarks/averages.py", {"seeds": given.seeds, "run": " ".join(CONSTANT)})
    validation = assets() / "corpora" / "english_novels" / "valid.jsonl.xz"
    text = [f"data.path={novels_file(given.folder, 10)}", f"data.validation_path={validation}"]
    cache = f"paths.cache_dir={given.folder / 'cache'}"
    each = [losses(given.folder / f"seed={seed}", [*text, cache, f"seed={seed}"]) for seed in given.seeds]
    result.figures["rows"] = [
        {"weights": kind, "losses": list(values)} for kind, values in zip(KINDS, zip(*each, strict=True), strict=True)
    ]
    for row in result.figures["rows"]:
        print(f"{row['weights']:<28} {fmean(row['losses']):.3f}  {row['losses']}")
    result.finish(keep=len(given.seeds) == 3)


if __name__ == "__main__":
    main()
