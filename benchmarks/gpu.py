"""Measure tokens per second, MFU and peak memory of training on this GPU: `python benchmarks/gpu.py`.

Ours is `src/train.py` with all its defaults. All use bf16 autocast, are compiled, and take steps of several
micro-batches (`baselines.py` describes them, `shapes.py` their sizes). All start and compile at once, then take turns
of a few steps; where the GPU's memory does not hold them all, shape after shape. Ours and nanoGPT's run at a larger
micro-batch too, and the best of each are compared. MFU is relative to the dense bf16 peak that the GPU's maker
documents, counted as for all our runs: skipped matmuls of masked blocks count as done. Memory is the peak of each
process's allocated tensors.
"""

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
    "modernbert_150m_gpu": {},
    "llama_1b_gpu": {},
}
BEST = {"gpt_124m_gpu": (32,)}  # larger micro-batches, in rows
TINY: dict[str, dict[str, float]] = {"gpt_tiny": {"nanogpt": 1.0}}
ALL_AT_ONCE_GIB = 130  # of GPU memory
WARM_UP = 3  # steps


def start(name: str, result: Result) -> list[Baseline]:
    """Start the baselines of a shape and return them: ours first, at larger micro-batches as `ours@rows`."""
    peers = (PEERS | TINY)[name]
    there = [peer for peer in peers if find_spec(NEEDS.get(peer, "torch"))]
    result.missing |= {peer: f"{NEEDS[peer]} is not installed" for peer in peers if peer not in there}
    here = str(Path(__file__).parent / "baselines.py")
    larger = [f"{each}@{rows}" for rows in BEST.get(name, ()) for each in ("ours", "nanogpt")]
    found = []
    for each in ("ours", *there, *larger):
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
    groups = [shapes] if memory_gib >= ALL_AT_ONCE_GIB else [[name] for name in shapes]
    for names in groups:
        started = {name: start(name, result) for name in names}
        warm_up(started, result)
        for name, baselines in started.items():
            compare(result, name, baselines, rounds, steps)
            result.save(given.out)
    result.finish(folder=given.out)


if __name__ == "__main__":
    main()
