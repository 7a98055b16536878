"""Say where the time of a micro-batch goes, ours and nanoGPT's: `python benchmarks/gpu_profile.py`.

For each shape of `gpu.py`, forward and backward of one micro-batch on the GPU:

enqueue_ms  the host's time to start all its kernels, while the GPU is kept busy with something else
gpu_ms      the time between two events around it, mean of several
host-bound  enqueue_ms is the larger one: the GPU waits for the host
classes     milliseconds of its kernels by what they do, and those of other names with more than 1 %
idle        share of the time between the first and the last kernel in which none ran
gaps        the three longest such times, and the kernels before and after each

`half` is ours with the residual stream in bf16 and 16-bit copies of the matrices, settings that are off by default.

Also written: `trace_<shape>_<which>.json.gz`, for chrome://tracing.
"""

import gzip
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from baselines import our_learner, windows_of
from comparison import Result, gpu_parser, parsed_with_gpu, typed, why
from plain_gpt import PlainGPT
from shapes import Shape, shape_of
from torch.profiler import ProfilerActivity, profile

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/kernels",
    "src/pretrain/parallel",
)

SHAPES = {
    "gpt_124m_gpu": ("ours", "nanogpt", "half"),
    "bert_110m_gpu": ("ours", "half"),
    "modernbert_150m_gpu": ("ours", "half"),
    "llama_1b_gpu": ("ours", "half"),
    "gpt_124m_long_gpu": ("ours", "nanogpt"),
}
TINY = {"gpt_tiny": ("ours", "nanogpt", "half")}
# By the names of kernels, and for the tiny form by those of operators; the first that fits.
CLASSES = {
    "communication": "nccl|c10d",
    "attention": "fmha|flash|sdpa|scaled_dot_product|flex|cudnn_generated",
    "gemm": "nvjet|cutlass|xmma|gemm|splitK|aten::(addmm|mm|bmm|baddbmm)$",
    "loss": "grad_logits|log_softmax|nll_loss|logsumexp",
    "optimizer": "FusedAdam|multi_tensor",
    "embedding": "embedding|RadixSort|index|gather|scatter",
    "copy": "Memcpy|Memset|aten::(copy_|fill_|zero_)$",
    "norm and elementwise": "triton_|elementwise|layer_norm|reduce_kernel|vectorized|aten::(add|mul|gelu|native_)",
}
MICRO_BATCHES = 5  # timed
HOLD_CYCLES = 2_000_000_000  # about a second, in which the host starts kernels that wait


@dataclass(frozen=True)
class Kernel:
    """A kernel that ran, in microseconds."""

    name: str
    start: float
    end: float


def kernel_class(name: str) -> str:
    """Return what a kernel does, by its name."""
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, name, re.I)), "other")


def summary(kernels: Sequence[Kernel], micro_batches: int) -> dict[str, Any]:
    """Return milliseconds by class for one micro-batch, idle share, number of launches, and the longest gaps."""
    by_class: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    for kernel in kernels:
        took = (kernel.end - kernel.start) / 1e3 / micro_batches
        by_class[kernel_class(kernel.name)] += took
        if kernel_class(kernel.name) == "other":
            by_name[kernel.name[:80]] += took
    busy, gaps = 0.0, []
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    last = ordered[0]
    busy_until = ordered[0].start
    for kernel in ordered:
        if kernel.start > busy_until:
            gaps.append((kernel.start - busy_until, last.name[:60], kernel.name[:60]))
        busy += max(0.0, kernel.end - max(kernel.start, busy_until))
        if kernel.end >= busy_until:
            busy_until, last = kernel.end, kernel
    span, total = busy_until - ordered[0].start, sum(by_class.values())
    return {
        "classes_ms": {kind: round(ms, 3) for kind, ms in by_class.most_common()},
        "other_ms": {name: round(ms, 3) for name, ms in by_name.most_common() if ms > 0.01 * total},
        "launches": len(kernels) // micro_batches,
        "idle": round(1 - busy / span, 3) if span else 0.0,
        "gaps_ms": [(round(gap / 1e3, 3), before, after) for gap, before, after in sorted(gaps, reverse=True)[:3]],
    }


def half(shape: Shape, folder: Path) -> Callable[[], None]:
    """Return what `ours` does, with the settings that keep more in 16 bits."""
    return ours(shape, folder, half=True)


def ours(shape: Shape, folder: Path, half: bool = False) -> Callable[[], None]:
    """Return forward and backward of our model on one of our batches."""
    from pretrain.kernels.half_copies import HalfCopies
    from pretrain.models.layers import use_half_stream
    from pretrain.parallel.config import ParallelConfig
    from pretrain.parallel.parallelize import parallelize

    model_with_loss, batches = our_learner(shape, folder)
    model_with_loss.to(shape.device)
    parallelize(model_with_loss, None, ParallelConfig(compile=shape.gpu), torch.bfloat16 if shape.gpu else None)
    batch = next(batches).to(shape.device)
    if half:
        use_half_stream(model_with_loss.model)
        HalfCopies(model_with_loss.model, torch.bfloat16)

    def micro_batch() -> None:
        with torch.autocast(shape.device, torch.bfloat16, enabled=shape.gpu):
            loss_sum, count = model_with_loss(batch)
        (loss_sum / count).backward()

    return micro_batch


def nanogpt(shape: Shape, folder: Path) -> Callable[[], None]:
    """Return the same of a plain GPT-2, model and loss compiled together."""
    model = PlainGPT(shape.vocab_size, shape.length, shape.n_layers, shape.n_heads, shape.d_model).to(shape.device)
    x, y = (each.to(shape.device) for each in next(windows_of(shape)))

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    loss_of = torch.compile(forward) if shape.gpu else forward

    def micro_batch() -> None:
        with torch.autocast(shape.device, torch.bfloat16, enabled=shape.gpu):
            loss = loss_of(x, y)
        loss.backward()

    return micro_batch


WAYS: dict[str, Callable[[Shape, Path], Callable[[], None]]] = {"ours": ours, "nanogpt": nanogpt, "half": half}


def measure(micro_batch: Callable[[], None], gpu: bool, trace: Path | None) -> dict[str, Any]:
    """Return the figures of one micro-batch; on a CPU those of its operators, which nothing enqueues."""
    for _ in range(3):
        micro_batch()
    figures: dict[str, Any] = {}
    if gpu:
        figures |= host_and_gpu_ms(micro_batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiled:
        for _ in range(2):
            micro_batch()
        if gpu:
            torch.cuda.synchronize()
    if trace is not None:
        write_trace(profiled, trace)
    kernels = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if (is_kernel(event) if gpu else is_operator(event))
    ]
    return figures | summary(kernels, 2)


def is_kernel(event: Any) -> bool:
    """Return whether an event is a kernel or copy of a GPU, and not the name of a range of them."""
    named = getattr(event, "is_user_annotation", False) or event.name.startswith(("## ", "Torch-Compiled", "Compiled"))
    return event.device_type == torch.autograd.DeviceType.CUDA and not named


def is_operator(event: Any) -> bool:
    """Return whether an event is an operator of a CPU of a known class, and not a part of another one."""

    def known(event: Any) -> bool:
        return event.name.startswith("aten::") and kernel_class(event.name) != "other"

    parent = event.cpu_parent
    while parent is not None and not known(parent):
        parent = parent.cpu_parent
    return parent is None and known(event)


def host_and_gpu_ms(micro_batch: Callable[[], None]) -> dict[str, Any]:
    """Return the milliseconds of host and GPU for one micro-batch, and which one waits for the other."""
    torch.cuda.synchronize()
    torch.cuda._sleep(HOLD_CYCLES)
    began = time.perf_counter()
    micro_batch()
    enqueue_ms = 1e3 * (time.perf_counter() - began)
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(MICRO_BATCHES):
        micro_batch()
    end.record()
    torch.cuda.synchronize()
    gpu_ms = start.elapsed_time(end) / MICRO_BATCHES
    return {
        "enqueue_ms": round(enqueue_ms, 2), "gpu_ms": round(gpu_ms, 2), "host_bound": enqueue_ms > 0.95 * gpu_ms
    }  # fmt: skip


def write_trace(profiled: Any, path: Path) -> None:
    """Write the trace of a profile, compressed."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(plain))
        with plain.open("rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)


def main() -> None:
    """Profile every shape, print and save after each."""
    given = parsed_with_gpu(gpu_parser(__doc__))
    result = Result("gpu_profile", typed(), {})
    for name, ways in (TINY if given.tiny else SHAPES).items():
        for way in ways:
            trace = given.out / f"trace_{name}_{way}.json.gz" if given.out else None
            try:
                with tempfile.TemporaryDirectory() as folder:
                    micro_batch = WAYS[way](shape_of(name), Path(folder))
                    found = measure(micro_batch, shape_of(name).gpu, trace)
            except Exception as error:  # what is not installed or does not fit: the others are still measured
                result.missing[f"{way}, {name}"] = why(error)
            else:
                result.figures[f"{name.replace('_', ' ')}, {way}"] = found
            result.save(given.out)
            torch.compiler.reset()
    result.finish(folder=given.out)


if __name__ == "__main__":
    main()
