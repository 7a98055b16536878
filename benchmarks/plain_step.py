"""Time our step and nanoGPT's, both without a framework: `OMP_NUM_THREADS=1 python benchmarks/plain_step.py`.

Models of the same shape train in turns in one process: forward, backward, clipping and AdamW in float32. The time is
the CPU time of the process, which other processes hardly change. `ATEN_CPU_CAPABILITY=avx2` limits torch to AVX2; then
ours uses torch's matmul, as on any CPU other than AMD's with AVX-512.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from baselines import our_learner
from comparison import Result, take_turns, typed
from plain_gpt import PlainGPT
from shapes import SHAPES, Shape
from torch import Tensor, nn

from pretrain.kernels.onednn_linear import amd_with_avx512

MEASURES = ("src/pretrain/models", "src/pretrain/objectives", "src/pretrain/optim", "src/pretrain/kernels")


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a function that takes a step and returns its seconds of CPU time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> float:
        start = time.process_time()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    return step


def baselines(shape: Shape, folder: Path) -> dict[str, Callable[[], float]]:
    """Return our step, on the batches of our runs, and nanoGPT's step on as many tokens."""
    model_with_loss, batches = our_learner(shape, folder)
    plain = PlainGPT(shape.vocab_size, shape.length, shape.n_layers, shape.n_heads, shape.d_model)

    def ours() -> Tensor:
        total, count = model_with_loss(next(batches))
        mean: Tensor = total / count
        return mean

    def theirs() -> Tensor:
        tokens = torch.randint(shape.vocab_size, (shape.rows, shape.length + 1))
        return F.cross_entropy(plain(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return {"ours": step_of(model_with_loss, ours), "nanogpt": step_of(plain, theirs)}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="gpt_12m", choices=[name for name in SHAPES if name.startswith("gpt_1")])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="3 rounds, nothing saved")
    given = parser.parse_args()
    shape, rounds = SHAPES[given.shape], 3 if given.quick else given.rounds
    settings = {"rounds": rounds, "instructions": torch.backends.cpu.get_cpu_capability(), "oneDNN": amd_with_avx512()}
    held = [f"{name}={os.environ[name]}" for name in ("ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS") if name in os.environ]
    result = Result("plain_step", " ".join([*held, typed()]), settings)
    with tempfile.TemporaryDirectory() as folder:
        seconds = take_turns(baselines(shape, Path(folder)), rounds, missing=result.missing)
    speeds = {name: [shape.tokens / took for took in found] for name, found in seconds.items()}
    what = f"a step alone, {given.shape.replace('_', ' ')}, {settings['instructions']}"
    result.add(what, "tokens/s", speeds, more_is_better=True, targets={"nanogpt": 1.0})
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
