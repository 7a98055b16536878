"""Measure tokens per second and peak memory of training: `python benchmarks/training_step.py`.

Ours is `src/train.py` with all its defaults: progress bar, TensorBoard, csv, schedule, clipping, checkpoints, document
masks. Baselines are separate processes that take turns of a few steps (`baselines.py` describes them); all train in
float32. Peak memory is that of each process.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from comparison import Result, typed
from shapes import SHAPES
from turns import race

from pretrain.kernels.malloc import REUSE

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "src/pretrain/training/lightning_module.py",
)

PEERS = {
    "gpt_12m": {"nanogpt": 0.98, "hugging_face": 1.10, "litgpt": 1.0},
    "gpt_124m": {"nanogpt": 0.98, "hugging_face": 1.10, "litgpt": 1.0},
    "bert_12m": {"hugging_face": 1.25},
    "bert_110m": {"hugging_face": 1.25},
}
MEMORY = {"gpt_124m": {"hugging_face": 1 / 0.75}}
NEEDS = {"hugging_face": "accelerate", "litgpt": "litgpt", "transformers": "transformers"}


def compare(result: Result, name: str, rounds: int, steps: int) -> None:
    """Measure one shape and add its lines."""
    shape = SHAPES[name]
    peers = [peer for peer in PEERS[name] if find_spec(NEEDS.get(peer, "torch"))]
    result.missing |= {peer: f"{NEEDS[peer]} is not installed" for peer in PEERS[name] if peer not in peers}
    here = Path(__file__).parent / "baselines.py"
    commands = {each: [sys.executable, str(here), each, name] for each in ("ours", *peers)}
    as_train_py = {"ours": REUSE}  # as in src/train.py
    missing: dict[str, str] = {}
    seconds, peaks = race(commands, rounds=rounds, steps=steps, warm_up=2, missing=missing, environments=as_train_py)
    result.missing |= {f"{peer} at {name}": reason for peer, reason in missing.items()}
    speeds = {each: [shape.tokens / took for took in found] for each, found in seconds.items()}
    what = f"{name.replace('_', ' ')}, {shape.rows} x {shape.length} tokens"
    result.add(f"training, {what}", "tokens/s", speeds, more_is_better=True, targets=PEERS[name])
    memory = {each: [peak] for each, peak in peaks.items()}
    result.add(f"peak memory, {what}", "MiB", memory, more_is_better=False, targets=MEMORY.get(name))


def main() -> None:
    """Measure the given shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the small shapes, 3 rounds, nothing saved")
    parser.add_argument("--name", default="training_step", help="of the file in benchmarks/results")
    given = parser.parse_args()
    shapes = [name for name in given.shapes if name.endswith("12m")] if given.quick else given.shapes
    rounds = 3 if given.quick else given.rounds
    result = Result(given.name, typed(), {"rounds": rounds})
    for name in shapes:
        compare(result, name, rounds, steps=10 if name.endswith("12m") else 2)
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
