"""Measure the peak memory of training, each baseline alone in its own process: `python benchmarks/memory.py`.

The peak is over the process from its start to the end of its fourth step: libraries, weights, gradients, AdamW's state
and activations. The baselines are those of `training_step.py`, ours with all its defaults, restarted in every round.
Shapes: a GPT and a BERT of usual size; a small GPT with a long context, where attention dominates, and one with a large
vocabulary, where logits do.
"""

import argparse
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from comparison import Result, typed
from shapes import SHAPES
from training_step import MEMORY, NEEDS, PEERS
from turns import Baseline, BaselineEnded

from pretrain.kernels.malloc import REUSE

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "src/pretrain/training/lightning_module.py",
    "src/pretrain/training/train.py",
)

SAME_PEERS = {"gpt_12m_long": "gpt_12m", "gpt_12m_wide": "gpt_12m"}  # shapes derived from another, with the same peers
STEPS = 4


def peak_mib(baseline: str, shape: str) -> float:
    """Return the peak memory of a baseline in a run of a few steps."""
    command = [sys.executable, str(Path(__file__).parent / "baselines.py"), baseline, shape]
    process = Baseline(baseline, command, REUSE if baseline == "ours" else None)
    try:
        process.answer()  # the baseline is ready
        return process.take(STEPS)["peak_mib"]
    finally:
        process.end()


def main() -> None:
    """Measure the given shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ("gpt_12m_long", "gpt_12m_wide", "gpt_124m", "bert_110m")
    parser.add_argument("--shapes", nargs="+", choices=every, default=every)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the small shapes, one round, nothing saved")
    given = parser.parse_args()
    result = Result("memory", typed(), {"rounds": 1 if given.quick else given.rounds, "steps": STEPS})
    for name in every[:2] if given.quick else given.shapes:
        shape, peers = SHAPES[name], PEERS[SAME_PEERS.get(name, name)]
        there = [peer for peer in peers if find_spec(NEEDS.get(peer, "torch"))]
        result.missing |= {peer: f"{NEEDS[peer]} is not installed" for peer in peers if peer not in there}
        peaks = defaultdict[str, list[float]](list)
        for _ in range(result.settings["rounds"]):
            for baseline in ["ours", *there]:
                try:
                    peaks[baseline].append(peak_mib(baseline, name))
                except BaselineEnded as ended:
                    if baseline == "ours":
                        raise SystemExit(f"ours at {name} {ended}") from ended
                    result.missing[f"{baseline} at {name}"] = str(ended)
                    there.remove(baseline)
                    peaks.pop(baseline, None)
        what = f"peak memory alone, {name.replace('_', ' ')}, {shape.rows} x {shape.length} tokens"
        result.add(what, "MiB", peaks, more_is_better=False, targets=MEMORY.get(name))
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
