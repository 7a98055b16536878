"""Measure tokens per second, MFU and peak memory of training on this GPU: `python benchmarks/gpu.py`.

Ours is `src/train.py` with all its defaults. All use bf16 autocast, are compiled, and take steps of several
micro-batches (`baselines.py` describes them, `shapes.py` their sizes). All start and compile at once, then take turns
of a few steps; shapes that the GPU's memory does not hold beside the earlier ones come after them. All train on tokens
of the whole vocabulary in documents of unequal length (`zipf_tokens.py`). Ours and nanoGPT's run at a larger
micro-batch too, and the best of each are compared. MFU is relative to the dense bf16 peak that the GPU's maker
documents, counted as for all our runs: skipped matmuls of masked blocks count as done. Memory is the peak of each
process's allocated tensors.
"""

import math
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from comparison import Result, gpu_parser, parsed_with_gpu, typed
from shapes import shape_of
from training_step import NEEDS
from turns import Baseline, ask, take_rounds

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.kernels.device import peak_flops_per_s
from pretrain.kernels.malloc import REUSE
from pretrain.models.size import training_flops_per_token

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/optim",
    "src/pretrain/kernels",
    "src/pretrain/training/lightning_module.py",
    "src/pretrain/parallel",
)

PEERS: dict[str, dict[str, float]] = {
    "gpt_124m_gpu": {"nanogpt": 1.0, "hugging_face": 1.1, "litgpt": 1.0},
    "gpt_124m_long_gpu": {"nanogpt": 1.0},
    "bert_110m_gpu": {"hugging_face": 1.25},
    "modernbert_150m_gpu": {"transformers": 1.0},
    "llama_1b_gpu": {"torchtitan": 1.0, "transformers": 1.0, "litgpt": 1.0},
}
BEST = {"gpt_124m_gpu": (32,)}  # larger micro-batches, in rows
TINY: dict[str, dict[str, float]] = {"gpt_tiny": {"nanogpt": 1.0}}
GIB = {"llama_1b_gpu": 38, "modernbert_150m_gpu": 13}  # of a process, about; others take
OTHERS_GIB = 11
MEMORY_SHARE = 0.95  # of the GPU's
WARM_UP = 3  # steps


def together(shapes: list[str], memory_gib: float) -> list[list[str]]:
    """Return the shapes in groups, in order, whose baselines fit a GPU's memory at once; a group has at least one."""
    groups: list[list[str]] = []
    left = 0.0
    for name in shapes:
        needed = sum(gib_of(name, each) for each in contenders(name))
        if not groups or needed > left:
            groups.append([])
            left = memory_gib
        groups[-1].append(name)
        left -= needed
    return groups


def gib_of(name: str, contender: str) -> float:
    """Return about how much memory a baseline of a shape takes, at larger micro-batches twice as much."""
    return float(GIB.get(name, OTHERS_GIB) * (2 if "@" in contender else 1))


def contenders(name: str) -> list[str]:
    """Return the baselines of a shape whose libraries are installed: ours first, larger ones as `ours@rows`."""
    there = [peer for peer in (PEERS | TINY)[name] if find_spec(NEEDS.get(peer, "torch"))]
    return ["ours", *there, *(f"{each}@{rows}" for rows in BEST.get(name, ()) for each in ("ours", "nanogpt"))]


def start(name: str, memory_gib: float, result: Result) -> list[Baseline]:
    """Start the baselines of a shape that fit the memory and return them; ours is the first."""
    names = contenders(name)
    result.missing |= {
        f"{peer}, {name}": f"{NEEDS[peer]} is not installed" for peer in (PEERS | TINY)[name] if peer not in names
    }
    here = str(Path(__file__).parent / "baselines.py")
    found: list[Baseline] = []
    for each in names:
        if found and sum(gib_of(name, one.name) for one in found) + gib_of(name, each) > memory_gib:
            result.missing[f"{each}, {name}"] = "the GPU's memory does not hold it beside the others"
            continue
        who, at, rows = each.partition("@")
        command = [sys.executable, here, who, f"{name}{at}{rows}"]
        found.append(Baseline(each, command, REUSE if who == "ours" else None))
    return found


def warm_up(started: dict[str, list[Baseline]], result: Result) -> None:
    """Wait until all have started, then have them compile and take their first steps at once.

    A shape at which ours ends is removed from `started` and recorded as missing.
    """
    answer_all(started, result)
    for baselines in started.values():
        for each in baselines:
            each.begin(WARM_UP)
    answer_all(started, result)


def answer_all(started: dict[str, list[Baseline]], result: Result) -> None:
    """Wait for the next reply of every baseline."""
    for name, baselines in list(started.items()):
        try:
            for each in baselines.copy():
                ask(baselines, each, None, result.missing)
        except SystemExit as ended:
            result.missing[f"ours, {name}"] = str(ended)
            del started[name]


def compare(result: Result, name: str, baselines: list[Baseline], rounds: int, steps: int) -> None:
    """Add the lines and metrics of one shape."""
    shape = shape_of(name)
    seconds, peaks = take_rounds(baselines, rounds, steps, result.missing)
    speeds = {each: [shape.tokens / took for took in found] for each, found in seconds.items()}
    what = f"{name.replace('_', ' ')}, {shape.accumulation} x {shape.rows} x {shape.length} tokens"
    equal = {each: found for each, found in speeds.items() if "@" not in each}
    targets = (PEERS | TINY)[name]
    result.add(f"training, {what}", "tokens/s", equal, more_is_better=True, targets=targets)
    best = {who: best_of(speeds, who) for who in ("ours", "nanogpt") if who in speeds}
    if BEST.get(name) and len(best) > 1:
        result.add(f"training at the best micro-batch, {what}", "tokens/s", best, more_is_better=True, targets=targets)
    memory = {each: [peak] for each, peak in peaks.items() if "@" not in each}
    result.add(f"peak memory, {what}", "MiB", memory, more_is_better=False)
    tokens_per_s = sorted(speeds["ours"])[rounds // 2]
    peak = peak_flops_per_s(torch.device(shape.device), torch.bfloat16 if shape.gpu else None)[0]
    result.figures[what] = {
        "tokens_per_s": round(tokens_per_s),
        "mfu": round(tokens_per_s * flops_per_token(name) / peak, 3),
        "peak_mib": round(peaks["ours"]),
    }
    print(f"{what}: {speeds}, {result.figures[what]}", flush=True)


def best_of(speeds: dict[str, list[float]], who: str) -> list[float]:
    """Return the rounds of a baseline at the micro-batch with its highest median."""
    found = [rounds for name, rounds in speeds.items() if name.partition("@")[0] == who]
    return max(found, key=lambda rounds: sorted(rounds)[len(rounds) // 2])


def flops_per_token(name: str) -> float:
    """Return our FLOPs per token, forward and backward."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", shape_of(name).settings(Path()))
    share = getattr(config.objective, "mask_probability", 1.0)
    return training_flops_per_token(config.model, shape_of(name).vocab_size, share)  # type: ignore[arg-type]


def main() -> None:
    """Measure the given shapes, print the table and save it."""
    parser = gpu_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    given = parsed_with_gpu(parser)
    shapes, rounds, steps = (list(TINY), 1, 1) if given.tiny else (given.shapes, given.rounds, given.steps)
    result = Result("gpu", typed(), {"rounds": rounds, "steps": steps})
    memory_gib = 0 if given.tiny else torch.cuda.get_device_properties(0).total_memory >> 30
    for names in together(shapes, MEMORY_SHARE * memory_gib):
        started = {name: start(name, MEMORY_SHARE * memory_gib or math.inf, result) for name in names}
        warm_up(started, result)
        for name, baselines in started.items():
            compare(result, name, baselines, rounds, steps)
            result.save(given.out)
    result.finish(folder=given.out)


if __name__ == "__main__":
    main()
