"""Measure tokens per second, MFU and peak memory of training on this GPU: `python benchmarks/gpu.py`.

Ours is `src/train.py` with all its defaults. All use bf16 autocast, are compiled, and take steps of several
micro-batches (`baselines.py` describes them, `shapes.py` their sizes). All start and compile at once, then take turns
of a few steps. MFU is relative to the dense bf16 peak that the GPU's maker documents, counted as for all our runs:
skipped matmuls of masked blocks count as done. Memory is the peak of each process's allocated tensors.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from comparison import Result, typed
from shapes import SHAPES
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
WARM_UP = 3  # steps


def start(name: str, result: Result) -> list[Baseline]:
    """Start the baselines of a shape and return them."""
    there = [peer for peer in PEERS[name] if find_spec(NEEDS.get(peer, "torch"))]
    result.missing |= {peer: f"{NEEDS[peer]} is not installed" for peer in PEERS[name] if peer not in there}
    here = str(Path(__file__).parent / "baselines.py")
    return [
        Baseline(each, [sys.executable, here, each, name], REUSE if each == "ours" else None)
        for each in ("ours", *there)
    ]


def compare(result: Result, name: str, baselines: list[Baseline], rounds: int, steps: int) -> None:
    """Add the lines and metrics of one shape."""
    shape = SHAPES[name]
    seconds, peaks = take_rounds(baselines, rounds, steps, result.missing)
    speeds = {each: [shape.tokens / took for took in found] for each, found in seconds.items()}
    what = f"{name.replace('_', ' ')}, {shape.accumulation} x {shape.rows} x {shape.length} tokens"
    result.add(f"training, {what}", "tokens/s", speeds, more_is_better=True, targets=PEERS[name])
    memory = {each: [peak] for each, peak in peaks.items()}
    result.add(f"peak memory, {what}", "MiB", memory, more_is_better=False)
    tokens_per_s = sorted(speeds["ours"])[rounds // 2]
    result.figures[what] = {
        "tokens_per_s": round(tokens_per_s),
        "mfu": round(
            tokens_per_s * flops_per_token(name) / peak_flops_per_s(torch.device("cuda"), torch.bfloat16)[0], 3
        ),
        "peak_mib": round(peaks["ours"]),
    }
    print(f"{what}: {speeds}, {result.figures[what]}", flush=True)


def flops_per_token(name: str) -> float:
    """Return our FLOPs per token, forward and backward."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", SHAPES[name].settings(Path()))
    share = getattr(config.objective, "mask_probability", 1.0)
    return training_flops_per_token(config.model, SHAPES[name].vocab_size, share)  # type: ignore[arg-type]


def main() -> None:
    """Measure the given shapes, print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: this machine has no GPU that torch can use, so there is nothing to measure.")
    result = Result("gpu", typed(), {"rounds": given.rounds, "steps": given.steps})
    started = {name: start(name, result) for name in given.shapes}
    for baselines in started.values():
        for each in baselines.copy():
            ask(baselines, each, None, result.missing)
    for baselines in started.values():
        for each in baselines:
            each.begin(WARM_UP)
    for baselines in started.values():
        for each in baselines.copy():
            ask(baselines, each, None, result.missing)
    for name, baselines in started.items():
        compare(result, name, baselines, given.rounds, given.steps)
    result.finish()


if __name__ == "__main__":
    main()
