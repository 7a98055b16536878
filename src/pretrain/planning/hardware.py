"""Devices of a plan: GPUs by their data sheets, and this machine's CPU, measured."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from pretrain.kernels.device import DOCUMENTED_BF16, bf16_is_fast, matmul_flops_per_s
from pretrain.planning.config import Device, PlanConfig
from pretrain.training.config import Precision, Strategy

GIB = 2**30
LIBRARIES = int(0.7 * GIB)  # of a training process before its first tensor: torch, Lightning, memory-mapped data


@dataclass(frozen=True)
class Hardware:
    """One device."""

    name: str
    bf16_flops_per_s: float  # dense peak
    fp32_flops_per_s: float
    memory: int  # bytes; for a CPU those of the machine, shared by all processes
    gpu: bool
    bytes_per_s: float = 0.0  # between CPU and memory, measured; 0: time follows from the setting mfu
    exchanged_per_s: float = 0.0  # bytes that a process receives from the others, measured; 0: not counted
    reserved: int = 0  # bytes of each process for libraries and driver
    source: str = ""

    def flops_per_s(self, bf16: bool) -> float:
        """Return the peak in the dtype of the matmuls."""
        return self.bf16_flops_per_s if bf16 else self.fp32_flops_per_s


def _gpu(name: str, device: Device, fp32_tera: float, memory_gib: float, source: str) -> Hardware:
    peak, memory = DOCUMENTED_BF16[_model(device)] * 1e12, int(memory_gib * GIB)
    return Hardware(name, peak, fp32_tera * 1e12, memory, gpu=True, reserved=GIB, source=source)


def _model(device: Device) -> str:
    """Return the GPU's model as the driver spells it, such as RTX 4090."""
    return device.value.replace("_", " ").upper()


# dense bf16 tensor cores; fp32 without TF32, as torch computes it by default; memory as the driver reports it
DOCUMENTED = {
    Device.a100: _gpu("A100 SXM 80 GB", Device.a100, 19.5, 80.0, "NVIDIA A100 data sheet, 2021"),
    Device.h100: _gpu("H100 SXM 80 GB", Device.h100, 67.0, 79.6, "NVIDIA H100 data sheet, 2023"),
    Device.h200: _gpu("H200 SXM 141 GB", Device.h200, 67.0, 140.4, "NVIDIA H200 data sheet, 2024"),
    Device.b200: _gpu("B200 SXM 180 GB", Device.b200, 75.0, 179.0, "NVIDIA DGX B200 data sheet, 2024"),
    Device.rtx_4090: _gpu("RTX 4090", Device.rtx_4090, 82.6, 24.0, "NVIDIA Ada architecture paper, 2022, table 2"),
}


def hardware_of(config: PlanConfig) -> Hardware:
    """Return the device of a plan, with the memory of the setting `memory_gib`."""
    device = config.device if config.device is not Device.auto else _auto_device(config)
    hardware = measure_cpu(config) if device is Device.cpu else DOCUMENTED[device]
    return hardware if config.memory_gib is None else replace(hardware, memory=int(config.memory_gib * GIB))


def _auto_device(config: PlanConfig) -> Device:
    """Return the device that the run would train on here; an H100 if it needs GPUs and there are none."""
    trainer = config.trainer
    if trainer.accelerator != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((device for device in DOCUMENTED if _model(device) in name), Device.h100)
    wants_gpus = trainer.accelerator in ("gpu", "cuda") or trainer.strategy is not Strategy.single
    return Device.h100 if wants_gpus and trainer.accelerator != "cpu" else Device.cpu


def uses_bf16(config: PlanConfig, hardware: Hardware) -> bool:
    """Return whether the run computes in bf16 on this device, with trainer.precision=auto resolved."""
    if config.trainer.precision is not Precision.auto:
        return config.trainer.precision is Precision.bf16
    return True if hardware.gpu else bf16_is_fast(torch.device("cpu"))


def measure_cpu(config: PlanConfig) -> Hardware:
    """Measure this machine's CPU: all cores together, divided by the run's processes."""
    ranks, threads, cpu = config.trainer.ranks, torch.get_num_threads(), torch.device("cpu")
    cores = threads if ranks == 1 else (os.cpu_count() or 1)
    torch.set_num_threads(cores)
    try:
        return Hardware(
            name=f"this CPU ({platform.machine()}, {cores} threads)",
            bf16_flops_per_s=_best_matmul(cpu, torch.bfloat16) / ranks,
            fp32_flops_per_s=_best_matmul(cpu, torch.float32) / ranks,
            memory=psutil.virtual_memory().total,
            gpu=False,
            bytes_per_s=memory_bytes_per_s() / ranks,
            exchanged_per_s=exchanged_bytes_per_s() if ranks > 1 else 0.0,
            reserved=LIBRARIES,
            source="measured",
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
