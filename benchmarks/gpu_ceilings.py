"""Measure what this GPU reaches at most, and whether its host is free: `python benchmarks/gpu_ceilings.py`.

A copy in memory, and bf16 matmuls of random numbers: 8192 x 8192 x 8192, and those of GPT-2 small's and of a 1.2 B
model's feed-forward. The host's score is Python additions per second on one core. A run is clean if the load average
was at most a quarter of the cores before and after.
"""

import os
import time
from collections.abc import Callable

import torch
from comparison import Result, gpu_parser, parsed_with_gpu, typed

MEASURES = ("benchmarks/gpu_ceilings.py",)  # nothing of ours
MATMULS = ((8192, 8192, 8192), (16384, 3072, 768), (8192, 8192, 2048))  # rows, columns, inner
SECONDS = 1.0  # of each measurement


def per_call(work: Callable[[], object], device: str, seconds: float) -> float:
    """Return the seconds of one call, from as many as fit `seconds`."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        work()
    wait()
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            work()
        calls += 10
        wait()
    return (time.perf_counter() - start) / calls


def copy_gb_per_s(device: str, mib: int, seconds: float) -> float:
    """Return the bytes read and written by a copy, in GB/s."""
    source = torch.empty(mib << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / per_call(lambda: target.copy_(source), device, seconds) / 1e9


def matmul_tflops(shape: tuple[int, int, int], device: str, seconds: float) -> float:
    """Return TFLOP/s of a bf16 matmul of random matrices."""
    rows, columns, inner = shape
    a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    b = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    return 2.0 * rows * columns * inner / per_call(lambda: a @ b, device, seconds) / 1e12


def python_score() -> float:
    """Return millions of Python additions per second."""
    start, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number
    return 1.0 / (time.perf_counter() - start)


def main() -> None:
    """Measure, print and save after each figure."""
    given = parsed_with_gpu(gpu_parser(__doc__))
    device, seconds = ("cpu", 0.02) if given.tiny else ("cuda", SECONDS)
    matmuls = ((64, 64, 64),) if given.tiny else MATMULS
    result = Result("gpu_ceilings", typed(), {"seconds": seconds})
    before = os.getloadavg()[0]
    result.figures["copy, GB/s"] = round(copy_gb_per_s(device, 1 if given.tiny else 1024, seconds))
    result.save(given.out)
    for shape in matmuls:
        figure = matmul_tflops(shape, device, seconds)
        result.figures[f"matmul {' x '.join(map(str, shape))}, TFLOP/s"] = float(f"{figure:.4g}")
        result.save(given.out)
    result.figures["host, million Python additions per second"] = round(python_score(), 1)
    loads = [round(load, 1) for load in (before, os.getloadavg()[0])]
    result.figures["load average before and after"] = loads
    result.figures["clean"] = max(loads) <= (os.cpu_count() or 1) / 4
    result.finish(folder=given.out)


if __name__ == "__main__":
    main()
