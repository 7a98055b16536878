"""What a step costs beyond the model's own work: `python benchmarks/framework_tax.py`.

The same model of 1 M parameters, objective, batches, optimizer and clipping three times: in a plain loop; as
`src/train.py` runs it with everything switched on; and under Lightning's Trainer with its bar, TensorBoard, schedule,
clipping, checkpoints, learning-rate and throughput monitors. A step has one row of 32 tokens and one thread, so that it
is short. The tax is what a step takes beyond the plain loop's. A process keeps for its life what it got of the machine
(which pages its memory is made of), which comes to a millisecond here: so all three are started anew several times, and
a race's tax is the middle of its rounds.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

from comparison import Line, Result, typed
from turns import race

from pretrain.kernels.malloc import REUSE


def main() -> None:
    """Race, and print the tax of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=7, help="each with processes of its own")
    parser.add_argument("--rounds", type=int, default=5, help="of a race")
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--quick", action="store_true", help="one race of 5 rounds of 40 steps, nothing kept")
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
        ratio = theirs / ours  # of the medians: a single race's tax is a small difference, and may come out below 0
        what = "beyond the plain loop's step, 1 M parameters"
        result.lines = [Line(what, "ms", ours, "lightning", theirs, ratio, ratio, ratio, target=2.0)]
    result.figures = {
        "ms of a plain step": round(1000 * median(plain), 2),
        **{f"tax of {name} in ms, by race": [round(value, 2) for value in values] for name, values in tax.items()},
    }
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
