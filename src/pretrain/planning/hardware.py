"""Devices of a plan: GPUs by their data sheets, and this machine's CPU, measured."""

from __future__ import annotations

import math
import os
import platform
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from pretrain.errors import ConfigError
from pretrain.kernels.device import DOCUMENTED_HALF, apple_chip, is_named, matmul_flops_per_s
from pretrain.parallel.device import choose_device
from pretrain.parallel.precision import auto_precision, half_dtype
from pretrain.planning.config import Device, PlanConfig
from pretrain.training.config import Precision, Strategy

GIB = 2**30
LIBRARIES = int(0.7 * GIB)  # of a training process before its first tensor: torch, Lightning, memory-mapped data


@dataclass(frozen=True)
class Hardware:
    """One device."""

    name: str
    half_flops_per_s: float  # dense peak in `auto`, or in bf16 or fp16 if that is fp32
    fp32_flops_per_s: float
    memory: int  # bytes; for a CPU those of the machine, shared by all processes
    gpu: bool
    bytes_per_s: float = 0.0  # between CPU and memory, measured; 0: time follows from the setting mfu
    exchanged_per_s: float = 0.0  # bytes that a process receives from the others, measured; 0: not counted
    reserved: int = 0  # bytes of each process for libraries and driver
    source: str = ""
    auto: Precision = Precision.bf16  # of trainer.precision=auto

    def flops_per_s(self, precision: Precision) -> float:
        """Return the peak of the matmuls in a precision; without tensor cores for bf16, that of fp32."""
        lacks_bf16 = precision is Precision.bf16 and self.auto is Precision.fp16
        return self.fp32_flops_per_s if precision is Precision.fp32 or lacks_bf16 else self.half_flops_per_s


def _gpu(name: str, device: Device, fp32_tera: float, memory_gib: float, source: str) -> Hardware:
    peak, memory = DOCUMENTED_HALF[_model(device)] * 1e12, int(memory_gib * GIB)
    return Hardware(name, peak, fp32_tera * 1e12, memory, gpu=True, reserved=GIB, source=source)


def _without_bf16(hardware: Hardware) -> Hardware:
    """Return a GPU whose tensor cores compute in fp16, not in bf16."""
    return replace(hardware, auto=Precision.fp16)


def _apple(name: str, fp32_tera: float | None, memory_gib: int, source: str) -> Hardware:
    """Return an Apple chip with the least memory that it is sold with; without a published peak it is NaN.

    Its GPU computes in fp16 as fast as in fp32 and shares the memory with macOS and other programs; Metal advises to
    use about three quarters of it (recommendedMaxWorkingSetSize).
    """
    peak, memory = math.nan if fp32_tera is None else fp32_tera * 1e12, memory_gib * GIB
    auto = auto_precision(torch.device("mps"))
    return Hardware(name, peak, peak, memory, gpu=True, reserved=memory // 4, source=source, auto=auto)


def _model(device: Device) -> str:
    """Return the GPU's model as the driver spells it, such as RTX 4090."""
    return device.value.replace("_", " ").upper()


# dense tensor cores in bf16, or in fp16 for lack of it; fp32 without TF32, as torch computes it by default; memory as
# the driver reports it
DOCUMENTED = {
    Device.a100: _gpu("A100 SXM 80 GB", Device.a100, 19.5, 80.0, "NVIDIA A100 data sheet, 2021"),
    Device.h100: _gpu("H100 SXM 80 GB", Device.h100, 67.0, 79.6, "NVIDIA H100 data sheet, 2023"),
    Device.h200: _gpu("H200 SXM 141 GB", Device.h200, 67.0, 140.4, "NVIDIA H200 data sheet, 2024"),
    Device.b200: _gpu("B200 SXM 180 GB", Device.b200, 75.0, 179.0, "NVIDIA DGX B200 data sheet, 2024"),
    Device.v100: _without_bf16(_gpu("V100 SXM 16 GB", Device.v100, 15.7, 15.8, "NVIDIA V100 data sheet, 2020")),
    Device.t4: _without_bf16(_gpu("T4", Device.t4, 8.1, 14.7, "NVIDIA T4 data sheet, 2019")),
    Device.l4: _gpu("L4", Device.l4, 30.3, 22.5, "NVIDIA L4 data sheet, 2023"),
    Device.a10g: _gpu("A10G", Device.a10g, 35.0, 22.5, "NVIDIA A10G data sheet, 2022"),
    Device.rtx_3090: _gpu("RTX 3090", Device.rtx_3090, 35.6, 24.0, "NVIDIA Ampere GA102 paper, 2020, table 9"),
    Device.rtx_4090: _gpu("RTX 4090", Device.rtx_4090, 82.6, 24.0, "NVIDIA Ada architecture paper, 2022, table 2"),
    Device.rtx_5090: _gpu("RTX 5090", Device.rtx_5090, 104.8, 31.8, "NVIDIA RTX Blackwell paper, 2025"),
    Device.m1: _apple("Apple M1", 2.6, 8, "Apple's announcement of M1, November 2020"),
    Device.m2: _apple("Apple M2", 3.5, 8, "1.35 x M1 by Apple's announcement, June 2022"),
    Device.m3: _apple("Apple M3", None, 8, "Apple's announcement of M3, October 2023"),
    Device.m3_max: _apple("Apple M3 Max", None, 36, "Apple's announcement of M3 Max, October 2023"),
    Device.m4: _apple("Apple M4", None, 16, "Apple's announcement of M4 for Mac, October 2024"),
    Device.m4_max: _apple("Apple M4 Max", None, 36, "Apple's announcement of M4 Max, October 2024"),
}


def hardware_of(config: PlanConfig) -> Hardware:
    """Return the device of a plan, with the peak and memory of the settings `peak_tflops` and `memory_gib`.

    Raises ConfigError for a device without a known peak or memory.
    """
    device = config.device if config.device is not Device.auto else _auto_device(config)
    if device is Device.auto:
        hardware = this_gpu(config) if torch.cuda.is_available() else measure_apple(config)
    elif device is Device.cpu:
        hardware = measure_cpu(config)
    elif device is Device.other:
        hardware = Hardware("a GPU by its numbers", math.nan, math.nan, 0, gpu=True, reserved=GIB)
    else:
        hardware = DOCUMENTED[device]
    return _with_numbers(hardware, device, config)


def _with_numbers(hardware: Hardware, device: Device, config: PlanConfig) -> Hardware:
    """Return the device with the peak and memory of the settings, if there are any."""
    peak, memory = config.peak_tflops, config.memory_gib
    if peak is not None and device is Device.cpu:
        raise ConfigError(
            f"peak_tflops={peak:g} is the peak of a GPU, and device=cpu is measured. Leave it out, or try device=other."
        )
    if peak is not None:
        flops = peak * 1e12
        hardware = replace(hardware, half_flops_per_s=flops, fp32_flops_per_s=flops, source="peak_tflops")
    if memory is not None:
        reserved = int(memory * GIB) // 4 if hardware.reserved > GIB else hardware.reserved  # of Apple's chips, a share
        hardware = replace(hardware, memory=int(memory * GIB), reserved=reserved)
    if not hardware.memory or math.isnan(hardware.fp32_flops_per_s):
        raise ConfigError(_without_numbers(hardware, device))
    return hardware


def _without_numbers(hardware: Hardware, device: Device) -> str:
    """Return what to type for a device without a known peak or memory."""
    if device is not Device.other:
        return (
            f"device={device.value} needs peak_tflops, which Apple does not publish. On such a Mac device=auto "
            f"measures it; elsewhere give a measured speed in fp32: device={device.value} peak_tflops=4."
        )
    lacks = "peak_tflops" if math.isnan(hardware.fp32_flops_per_s) else "memory_gib"
    return (
        f"device=other needs {lacks}, which no source gives. "
        "Try device=other peak_tflops=65 memory_gib=16, with the numbers of its data sheet."
    )


def _auto_device(config: PlanConfig) -> Device:
    """Return the device that the run would train on here; an H100 if it needs GPUs and there are none.

    A GPU of this machine stays `auto`: it has its own memory, and is measured where no data sheet is known.
    """
    trainer = config.trainer
    if trainer.accelerator != "cpu" and torch.cuda.is_available():
        return Device.auto
    if trainer.accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return Device.auto if choose_device(trainer).type == "mps" else Device.cpu
    wants_gpus = trainer.accelerator in ("gpu", "cuda") or trainer.strategy is not Strategy.single
    return Device.h100 if wants_gpus and trainer.accelerator != "cpu" else Device.cpu


def this_gpu(config: PlanConfig) -> Hardware:
    """Return this machine's NVIDIA GPU with its memory; its speed is measured where it is none of `DOCUMENTED`."""
    gpu = torch.device("cuda")
    name, memory = torch.cuda.get_device_name(gpu), int(torch.cuda.get_device_properties(gpu).total_memory)
    known = next((DOCUMENTED[device] for device in DOCUMENTED if is_named(_model(device), name)), None)
    if known is not None:
        return replace(known, name=name, memory=memory)  # an A100 has 40 or 80 GB
    auto = auto_precision(gpu)
    half = half_dtype(config.trainer.precision) or half_dtype(auto) or torch.float16
    return Hardware(
        name=name,
        half_flops_per_s=_best_matmul(gpu, half),
        fp32_flops_per_s=_best_matmul(gpu, torch.float32),
        memory=memory,
        gpu=True,
        reserved=GIB,
        source="measured",
        auto=auto,
    )


def measure_apple(config: PlanConfig) -> Hardware:
    """Measure this Mac's GPU; Metal says how much of the memory, which it shares, it may use."""
    gpu = torch.device("mps")
    usable, memory = torch.mps.recommended_max_memory(), psutil.virtual_memory().total
    return Hardware(
        name=f"this Mac's GPU ({apple_chip() or platform.machine()})",
        half_flops_per_s=_best_matmul(gpu, half_dtype(config.trainer.precision) or torch.float16),
        fp32_flops_per_s=_best_matmul(gpu, torch.float32),
        memory=memory,
        gpu=True,
        reserved=max(0, memory - usable),
        source="measured",
        auto=auto_precision(gpu),
    )


def precision_of(config: PlanConfig, hardware: Hardware) -> Precision:
    """Return the precision of the run on this device."""
    precision = config.trainer.precision
    return hardware.auto if precision is Precision.auto else precision


def measure_cpu(config: PlanConfig) -> Hardware:
    """Measure this machine's CPU: all cores together, divided by the run's processes."""
    ranks, threads, cpu = config.trainer.ranks, torch.get_num_threads(), torch.device("cpu")
    cores = threads if ranks == 1 else (os.cpu_count() or 1)
    torch.set_num_threads(cores)
    try:
        return Hardware(
            name=f"this CPU ({platform.machine()}, {cores} threads)",
            half_flops_per_s=_best_matmul(cpu, half_dtype(config.trainer.precision) or torch.bfloat16) / ranks,
            fp32_flops_per_s=_best_matmul(cpu, torch.float32) / ranks,
            memory=psutil.virtual_memory().total,
            gpu=False,
            bytes_per_s=memory_bytes_per_s() / ranks,
            exchanged_per_s=exchanged_bytes_per_s() if ranks > 1 else 0.0,
            reserved=LIBRARIES,
            source="measured",
            auto=auto_precision(cpu),
        )
    finally:
        torch.set_num_threads(threads)


def _best_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of several short measurements, which other processes disturb least."""
    return max(matmul_flops_per_s(device, dtype, 0.1) for _ in range(6))


def memory_bytes_per_s(seconds: float = 0.5) -> float:
    """Measure the peak bytes per second, read and written, of adding two arrays far larger than any cache.

    The sum is a new array each time, as in a training step: its allocation takes as long as filling it, or longer.
    """
    a, b = (torch.ones(1 << 24) for _ in range(2))
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        c = torch.add(a, b)
        shortest = min(shortest, time.perf_counter() - start)
        del c
    return 3.0 * a.nbytes / shortest


def exchanged_bytes_per_s(times: int = 4) -> float:
    """Measure the bytes per second that each of two processes receives in an all-gather.

    Two threads take the part of processes: gloo sends between them in the same way.
    """
    store, size, shortest = dist.HashStore(), 1 << 22, [float("inf"), float("inf")]  # type: ignore[attr-defined]

    def gather(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        shard, gathered = torch.ones(size), torch.empty(2 * size)
        for _ in range(times):
            start = time.perf_counter()
            group._allgather_base(gathered, shard).wait()  # type: ignore[attr-defined]  # FSDP2's collective
            shortest[rank] = min(shortest[rank], time.perf_counter() - start)

    threads = [threading.Thread(target=gather, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 4.0 * size / max(shortest)
