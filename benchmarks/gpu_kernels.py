"""Compare our GPU attention and loss with torch's: `python benchmarks/gpu_kernels.py`.

Forward and backward in bf16, on rows of documents of unequal length (about 400 tokens each). `dense` is SDPA with a
dense mask; `one document` is SDPA without a mask, and `cudnn` that of cuDNN alone, both on rows of one document each,
which have more pairs to compute. For the loss, `chunks` is ours without compilation, `whole logits` is compiled
cross-entropy over all logits.

The error is that of output and gradients against float64, relative to their norm: of attention's first row, and of a
loss of few targets. A kernel is deterministic if two runs give equal gradients.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from comparison import Result, gpu_parser, parsed_with_gpu, take_turns, typed
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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
Work = Callable[..., Tensor]  # of inputs that have gradients


@dataclass(frozen=True)
class Case:
    """Attention of one shape; `causal` or to both sides."""

    causal: bool
    window: int | None
    rows: int
    length: int
    heads: int
    width: int  # of a head

    def __str__(self) -> str:
        kind = f"{'causal' if self.causal else 'both ways'}{f', window {self.window}' if self.window else ''}"
        return f"attention, {kind}, {self.rows} x {self.length} tokens, {self.heads} heads of {self.width}"


CASES = (
    Case(True, None, 32, 1024, 12, 64),
    Case(True, None, 8, 4096, 12, 64),
    Case(True, None, 4, 2048, 32, 64),
    Case(False, None, 128, 128, 12, 64),
    Case(False, 128, 32, 1024, 12, 64),
)
LOSSES = ((32_768, 50_304, 768), (8_192, 128_256, 2048))  # targets, vocabulary, width
TINY_CASES, TINY_LOSSES = (Case(True, None, 2, 64, 2, 16),), ((64, 200, 32),)


class Bench:
    """Measures kernels on a GPU, or with `tiny` on a CPU, where nothing is compiled."""

    def __init__(self, result: Result, out: Path | None, rounds: int, tiny: bool) -> None:
        self.result, self.out, self.rounds = result, out, rounds
        self.device = "cpu" if tiny else "cuda"
        self.repeats = 1 if tiny else REPEATS
        self.compile: Callable[[Any], Any] = (
            (lambda function: function) if tiny else (lambda function: torch.compile(function, dynamic=False))
        )

    def race(
        self, what: str, candidates: Mapping[str, Work], inputs: Sequence[Tensor], errors: Mapping[str, float]
    ) -> None:
        """Measure one comparison and add it to the result, with errors and determinism, and save it."""
        timed = {name: self.seconds(work, inputs) for name, work in candidates.items()}
        turns = take_turns(timed, self.rounds, 2, self.result.missing)
        self.result.add(
            what, "ms", {name: [1e3 * s for s in took] for name, took in turns.items()}, more_is_better=False
        )
        for name in turns:
            first, second = (gradients(candidates[name], inputs) for _ in range(2))
            self.result.figures[f"{what}: {name}"] = {
                "ms": float(f"{1e3 * sorted(turns[name])[self.rounds // 2]:.3g}"),
                "error": float(f"{errors[name]:.2g}") if name in errors else None,
                "deterministic": all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
            }
        self.result.save(self.out)

    def seconds(self, work: Work, inputs: Sequence[Tensor]) -> Callable[[], float]:
        """Return a function that times one forward and backward pass, in seconds."""

        def run() -> None:
            for _ in range(self.repeats):
                out = work(*inputs)
                out.backward(torch.ones_like(out))

        def measure() -> float:
            if self.device == "cpu":
                began = time.perf_counter()
                run()
                return (time.perf_counter() - began) / self.repeats
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000 / self.repeats

        return measure

    def attention(self, case: Case) -> None:
        """Compare attention."""
        shape = (case.rows, case.heads, case.length, case.width)
        q, k, v = (torch.randn(shape, device=self.device, dtype=torch.bfloat16).requires_grad_() for _ in "qkv")
        numbers = documents(case.rows, case.length).to(self.device)
        dense = build_mask(case.causal, case.window, numbers, case.length, numbers.device)
        first = build_mask(case.causal, case.window, numbers[:1], case.length, numbers.device)
        sparse, first_sparse = dense, first
        if self.device == "cuda":
            sparse = AttentionMask(case.causal, blocks=build_block_mask(case.causal, case.window, numbers))
            first_sparse = AttentionMask(case.causal, blocks=build_block_mask(case.causal, case.window, numbers[:1]))
        compiled = self.compile(attend)
        candidates: dict[str, Work] = {
            "ours": lambda q, k, v: compiled(q, k, v, sparse, 0.0),
            "dense": lambda q, k, v: attend(q, k, v, dense, 0.0),
        }
        rows = [each.detach()[:1].requires_grad_() for each in (q, k, v)]
        of_first: dict[str, Work] = {
            "ours": lambda q, k, v: compiled(q, k, v, first_sparse, 0.0),
            "dense": lambda q, k, v: attend(q, k, v, first, 0.0),
        }
        errors = errors_of(of_first, lambda q, k, v: attend(q, k, v, first, 0.0), rows)
        if case.window is None:
            plain = AttentionMask(case.causal)
            whole: dict[str, Work] = {"one document": lambda q, k, v: attend(q, k, v, plain, 0.0)}
            if self.device == "cuda":
                whole["cudnn"] = lambda q, k, v: by_cudnn(q, k, v, case.causal)
            candidates |= whole
            with_error = {name: work for name, work in whole.items() if self.works(name, work, rows)}
            errors |= errors_of(with_error, lambda q, k, v: attend(q, k, v, plain, 0.0), rows)
        self.race(str(case), candidates, (q, k, v), errors)

    def works(self, name: str, work: Work, inputs: Sequence[Tensor]) -> bool:
        """Return whether a candidate runs here; record in the result why it does not."""
        try:
            work(*inputs)
        except Exception as error:  # any failure of a peer is recorded
            self.result.missing[name] = f"{type(error).__name__}: {error}"[:300]
            return False
        return True

    def loss(self, targets: int, vocabulary: int, width: int) -> None:
        """Compare the loss, and the memory that it takes."""
        features = torch.randn(targets, width, device=self.device).requires_grad_()
        weight = (torch.randn(vocabulary, width, device=self.device) * 0.02).requires_grad_()
        ids = torch.randint(vocabulary, (targets,), device=self.device)

        def summed(settings: LossSettings, ids: Tensor) -> Work:
            def loss(features: Tensor, weight: Tensor) -> Tensor:
                with torch.autocast(self.device, torch.bfloat16):
                    return cross_entropy_sum(
                        features, SimpleNamespace(weight=weight, bias=None), ids, settings=settings
                    )

            return loss

        def whole(features: Tensor, weight: Tensor, ids: Tensor = ids) -> Tensor:
            return F.cross_entropy(F.linear(features, weight), ids, reduction="sum")

        def in_bf16(*inputs: Tensor) -> Tensor:
            with torch.autocast(self.device, torch.bfloat16):
                return whole(*inputs)

        ours = LossSettings(compiled=self.device == "cuda")
        candidates: dict[str, Work] = {
            "ours": summed(ours, ids), "chunks": summed(LossSettings(), ids), "whole logits": self.compile(in_bf16)
        }  # fmt: skip
        some = ids[:512]
        few = {"ours": summed(ours, some), "chunks": summed(LossSettings(), some)}
        part = [features.detach()[:512].requires_grad_(), weight.detach().clone().requires_grad_()]
        errors = errors_of(few, lambda x, weight: whole(x, weight, some), part)
        what = f"loss of {targets:,} targets, vocabulary of {vocabulary:,}"
        self.race(what, candidates, (features, weight), errors)
        for name, work in candidates.items() if self.device == "cuda" else ():
            features.grad = weight.grad = None
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work(features, weight).backward()
            self.result.figures[f"{what}: {name}"]["peak_mib"] = (torch.cuda.max_memory_allocated() - before) >> 20
        self.result.save(self.out)


def documents(rows: int, length: int, mean: int = 400) -> Tensor:
    """Return document numbers, int32 (rows, length), of documents with geometrically distributed lengths."""
    draw = torch.Generator().manual_seed(0)
    return (torch.rand(rows, length, generator=draw) < 1 / mean).cumsum(1).int()


def by_cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Return attention over whole rows by cuDNN; raises RuntimeError where it has no kernel."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def gradients(work: Work, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return output and gradients of one pass."""
    out = work(*inputs)
    return [out.detach(), *torch.autograd.grad(out, list(inputs), torch.ones_like(out))]


def errors_of(candidates: Mapping[str, Work], exact: Work, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Return the largest relative error of output and gradients against float64, by candidate."""
    right = gradients(exact, [each.detach().double().requires_grad_() for each in inputs])
    return {
        name: max(
            float((found.double() - each).norm() / each.norm())
            for found, each in zip(gradients(work, inputs), right, strict=True)
        )
        for name, work in candidates.items()
    }


def main() -> None:
    """Compare everything, print the table and keep it."""
    parser = gpu_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parsed_with_gpu(parser)
    rounds = 1 if given.tiny else given.rounds
    torch.manual_seed(0)
    result = Result("gpu_kernels", typed(), {"rounds": rounds})
    bench = Bench(result, given.out, rounds, given.tiny)
    for case in TINY_CASES if given.tiny else CASES:
        bench.attention(case)
        torch.compiler.reset()
    for sizes in TINY_LOSSES if given.tiny else LOSSES:
        bench.loss(*sizes)
    result.finish(folder=given.out)


if __name__ == "__main__":
    main()
