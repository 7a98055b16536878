"""Time a matmul of a linear layer in float32, forward and backward, ours and torch's: `python benchmarks/matmul.py`.

4 x 512 tokens through the matrices of GPT-2 small and of a model of 12 M parameters. Ours differs from torch on AMD
CPUs with AVX-512 only; elsewhere it calls torch.
"""

import argparse

import torch
from comparison import Result, take_turns, typed
from torch import nn

from pretrain.kernels.onednn_linear import OneDnnLinear, amd_with_avx512

MEASURES = ("src/pretrain/kernels",)

ROWS = 2048
MATRICES = {"12 M: 384 to 1536": (384, 1536), "124 M: 768 to 768": (768, 768), "124 M: 768 to 3072": (768, 3072)}
REPEATS = 4  # per turn


def main() -> None:
    """Measure every matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="5 rounds, nothing saved")
    given = parser.parse_args()
    rounds = 5 if given.quick else given.rounds
    result = Result("matmul", typed(), {"rows": ROWS, "rounds": rounds, "by oneDNN": amd_with_avx512()})
    for name, (wide, out) in MATRICES.items():
        x = torch.randn(ROWS, wide, requires_grad=True)
        layers = {"ours": OneDnnLinear(wide, out, bias=False), "torch": nn.Linear(wide, out, bias=False)}

        def turn(layer: nn.Module, x: torch.Tensor = x) -> None:
            for _ in range(REPEATS):
                layer(x).sum().backward()

        seconds = take_turns({each: lambda layer=layer: turn(layer) for each, layer in layers.items()}, rounds)  # type: ignore[misc]
        work = REPEATS * 3 * 2 * ROWS * wide * out / 1e9  # forward, and two matmuls backward
        speeds = {each: [work / took for took in found] for each, found in seconds.items()}
        result.add(f"matmul, {name}", "GFLOP/s", speeds, more_is_better=True)
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
