"""Compare our GPU attention and loss with torch's: `python benchmarks/gpu_kernels.py`.

Forward and backward in bf16, on rows of documents of unequal length (about 400 tokens each). `pair by pair` is SDPA
with a dense mask; `one document` is SDPA without a mask, on rows of one document each, which have more pairs to
compute. For the loss, `chunks` is ours without compilation, `whole logits` is compiled cross-entropy over all logits.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from comparison import Result, take_turns, typed
from torch import Tensor

from pretrain.models.attention import attend
from pretrain.models.masks import AttentionMask, build_block_mask, build_mask
from pretrain.objectives.loss import LossSettings, cross_entropy_sum

MEASURES = (
    "src/pretrain/models/attention.py",
    "src/pretrain/models/masks.py",
    "src/pretrain/objectives/loss.py",
    "src/pretrain/kernels",
)

REPEATS = 20


def documents(rows: int, length: int, mean: int = 400) -> Tensor:
    """Return document numbers, int32 (rows, length), of documents with geometrically distributed lengths."""
    draw = torch.Generator().manual_seed(0)
    starts = torch.rand(rows, length, generator=draw) < 1 / mean
    return starts.cumsum(1).int().cuda()


def seconds(work: Callable[[], Tensor], grad_output: Tensor) -> Callable[[], float]:
    """Return a function that times one forward and backward pass with GPU events, in seconds."""

    def measure() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            work().backward(grad_output)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / REPEATS

    return measure


def race(
    result: Result, what: str, baselines: Mapping[str, Callable[[], Tensor]], grad_output: Tensor, rounds: int
) -> None:
    """Measure one comparison and add it to `result`."""
    timed = {name: seconds(work, grad_output) for name, work in baselines.items()}
    milliseconds = {
        name: [1000 * each for each in found] for name, found in take_turns(timed, rounds, 2, result.missing).items()
    }
    result.add(what, "ms", milliseconds, more_is_better=False)


def attention(result: Result, causal: bool, window: int | None, length: int, rounds: int) -> None:
    """Compare attention with GPT-2 small's heads over 32,768 tokens."""
    rows = 32_768 // length
    numbers = documents(rows, length)
    q, k, v = (torch.randn(rows, 12, length, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in "qkv")
    compiled = torch.compile(attend, dynamic=False)
    block_sparse = AttentionMask(causal, blocks=build_block_mask(causal, window, numbers))
    dense = build_mask(causal, window, numbers, length, numbers.device)
    baselines: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: compiled(q, k, v, block_sparse, 0.0),
        "pair by pair": lambda: attend(q, k, v, dense, 0.0),
    }
    if window is None:
        baselines["one document"] = lambda: attend(q, k, v, AttentionMask(causal), 0.0)
    kind = f"{'causal' if causal else 'both ways'}{f', window {window}' if window else ''}"
    race(result, f"attention, {kind}, {rows} x {length} tokens", baselines, torch.randn_like(q), rounds)


def losses(result: Result, targets: int, rounds: int) -> None:
    """Compare the loss over GPT-2's vocabulary."""
    features = torch.randn(targets, 768, device="cuda").requires_grad_()
    weight = (torch.randn(50_304, 768, device="cuda") * 0.02).requires_grad_()
    head = SimpleNamespace(weight=weight, bias=None)
    target_ids = torch.randint(50_304, (targets,), device="cuda")

    def whole() -> Tensor:
        return F.cross_entropy(F.linear(features, weight), target_ids, reduction="sum")

    def in_bf16(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.autocast("cuda", torch.bfloat16)(loss)

    baselines = {
        "ours": in_bf16(lambda: cross_entropy_sum(features, head, target_ids, settings=LossSettings(compiled=True))),
        "chunks": in_bf16(lambda: cross_entropy_sum(features, head, target_ids)),
        "whole logits": torch.compile(in_bf16(whole), dynamic=False),
    }
    race(result, f"loss of {targets:,} targets", baselines, torch.ones((), device="cuda"), rounds)
    for name, loss in baselines.items():
        features.grad = weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss().backward()
        result.figures[f"peak MiB, {name}"] = (torch.cuda.max_memory_allocated() - before) >> 20


def main() -> None:
    """Compare everything, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/gpu_kernels.py: this machine has no GPU that torch can use, so there is nothing to measure."
        )
    result = Result("gpu_kernels", typed(), {"rounds": given.rounds})
    attention(result, True, None, 1024, given.rounds)
    attention(result, True, None, 4096, given.rounds)
    attention(result, False, 128, 1024, given.rounds)
    losses(result, 32_768, given.rounds)
    result.finish()


if __name__ == "__main__":
    main()
