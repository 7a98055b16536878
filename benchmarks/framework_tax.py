"""Measure the time of a step outside the model's own work: `python benchmarks/framework_tax.py`.

The same model of 1 M parameters, objective, batches, optimizer and clipping three times: in a plain loop; by
`src/train.py` with all its defaults; and under Lightning's Trainer with its progress bar, TensorBoard, schedule,
clipping, checkpoints, learning-rate and throughput monitors. A step is short: one row of 32 tokens, one thread. The tax
is the time per step beyond the plain loop's. The memory pages that a process got change its speed by up to a
millisecond here, so all three are restarted for every race, and the tax of a race is the median of its rounds.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from comparison import Line, Result, typed
from turns import race

from pretrain.kernels.malloc import REUSE

MEASURES = ("src/pretrain/training", "src/pretrain/objectives", "src/pretrain/optim")


def main() -> None:
    """Measure, and print the tax of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=7, help="restarts of all processes")
    parser.add_argument("--rounds", type=int, default=5, help="per race")
    parser.add_argument("--steps", type=int, default=100, help="per turn")
    parser.add_argument("--quick", action="store_true", help="one race of 5 rounds of 40 steps, nothing saved")
    given = parser.parse_args()
    races, rounds, steps = (1, 5, 40) if given.quick else (given.races, given.rounds, given.steps)
    here = Path(__file__).parent / "baselines.py"
    commands = {name: [sys.executable, str(here), name, "gpt_1m"] for name in ("ours", "plain_loop", "lightning")}
    one_thread = {name: {"OMP_NUM_THREADS": "1", **REUSE} for name in commands}
    tax: dict[str, list[float]] = {"ours": [], "lightning": []}
    plain = []
    missing: dict[str, str] = {}
    for _ in range(races):
        seconds, _ = race(commands, rounds=rounds, steps=steps, warm_up=50, missing=missing, environments=one_thread)
        if "plain_loop" not in seconds:
            sys.exit(f"there is no tax without the plain loop: {missing['plain_loop']}")
        bare = seconds["plain_loop"]
        plain.append(median(bare))
        for name, found in tax.items():
            if name not in seconds:
                continue
            found.append(1000 * median(own - step for own, step in zip(seconds[name], bare, strict=True)))
    result = Result("framework_tax", typed(), {"races": races, "rounds": rounds, "steps": steps})
    result.missing = missing
    if tax["lightning"]:
        ours, theirs = median(tax["ours"]), median(tax["lightning"])
        ratio = theirs / ours  # of the medians: the tax of one start is a small difference, and can be below 0
        what = "beyond the plain loop's step, 1 M parameters"
        result.lines = [Line(what, "ms", ours, "lightning", theirs, ratio, ratio, ratio, target=2.0)]
    result.figures = {
        "ms of a plain step": round(1000 * median(plain), 2),
        **{f"tax of {name} in ms, by race": [round(value, 2) for value in values] for name, values in tax.items()},
    }
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
