"""Devices that a run can be planned for: documented GPUs, and this machine's CPU, measured."""

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
LIBRARIES = int(0.7 * GIB)  # that a training process holds before its first tensor: torch, Lightning, the data's maps


@dataclass(frozen=True)
class Hardware:
    """One device."""

    name: str
    bf16_flops_per_s: float  # dense, the peak that utilization is measured against
    fp32_flops_per_s: float
    memory: int  # bytes; of a processor: of the machine, which all its processes share
    gpu: bool
    bytes_per_s: float = 0.0  # between CPU and memory, measured; 0: utilization is a setting instead
    exchanged_per_s: float = 0.0  # bytes that a process receives from the others, measured; 0: not counted
    reserved: int = 0  # bytes of each process that libraries and the driver take before any tensor
    source: str = ""

    def flops_per_s(self, bf16: bool) -> float:
        """Return the peak in the number format of the matmuls."""
        return self.bf16_flops_per_s if bf16 else self.fp32_flops_per_s


def _gpu(name: str, device: Device, fp32_tera: float, memory_gib: float, source: str) -> Hardware:
    peak, memory = DOCUMENTED_BF16[_model(device)] * 1e12, int(memory_gib * GIB)
    return Hardware(name, peak, fp32_tera * 1e12, memory, gpu=True, reserved=GIB, source=source)


def _model(device: Device) -> str:
    """Return the GPU's model as the driver and the table of peaks spell it, such as RTX 4090."""
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
    """Return the device that a run is planned for; the setting `memory_gib` replaces its own memory."""
    device = config.device if config.device is not Device.auto else _usual(config)
    found = this_processor(config) if device is Device.cpu else DOCUMENTED[device]
    if config.memory_gib is None:
        return found
    return replace(found, memory=int(config.memory_gib * GIB))


def _usual(config: PlanConfig) -> Device:
    trainer = config.trainer
    if trainer.accelerator != "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((device for device in DOCUMENTED if _model(device) in name), Device.h100)
    wants_gpus = trainer.accelerator in ("gpu", "cuda") or trainer.strategy is not Strategy.single
    return Device.h100 if wants_gpus and trainer.accelerator != "cpu" else Device.cpu


def uses_bf16(config: PlanConfig, hardware: Hardware) -> bool:
    """Return whether the run would compute in bf16 on this device, also with trainer.precision=auto."""
    if config.trainer.precision is not Precision.auto:
        return config.trainer.precision is Precision.bf16
    return True if hardware.gpu else bf16_is_fast(torch.device("cpu"))


def this_processor(config: PlanConfig) -> Hardware:
    """Measure this machine's CPU: the speed of all cores together, shared by the run's processes."""
    ranks, threads, cpu = config.trainer.ranks, torch.get_num_threads(), torch.device("cpu")
    cores = _cores(config)
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


def _cores(config: PlanConfig) -> int:
    """Return the threads of all processes of the run together."""
    return torch.get_num_threads() if config.trainer.ranks == 1 else (os.cpu_count() or 1)


def _best_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best of several short measurements, so that other processes do not lower it."""
    return max(matmul_flops_per_s(device, dtype, 0.1) for _ in range(6))


def memory_bytes_per_s(seconds: float = 0.5) -> float:
    """Measure the most bytes per second, read and written, of adding two arrays far larger than any cache.

    The sum is a new array each time, as results in a step are: getting its memory from the system takes as long as
    filling it, or longer.
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
    """Measure the bytes per second that each of two processes receives while they gather an array.

    Two threads stand in for the processes: gloo sends between them as it does between processes.
    """
    store, size, shortest = dist.HashStore(), 1 << 22, [float("inf"), float("inf")]  # type: ignore[attr-defined]

    def gather(rank: int) -> None:
        group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        own, all_of_it = torch.ones(size), torch.empty(2 * size)
        for _ in range(times):
            start = time.perf_counter()
            group._allgather_base(all_of_it, own).wait()  # type: ignore[attr-defined]  # as FSDP2 does
            shortest[rank] = min(shortest[rank], time.perf_counter() - start)

    threads = [threading.Thread(target=gather, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 4.0 * size / max(shortest)
