"""Peak speed and number formats of a device: documented for GPUs, measured for CPUs."""

import os
import platform
import re
import subprocess
import time
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from pretrain.kernels.onednn_linear import amd_with_avx512, linear

# dense tensor-core TFLOP/s in bf16 (V100, T4: fp16, as they lack bf16) of the SXM or desktop form, without sparsity and
# with sums in float32, from NVIDIA's data sheets
DOCUMENTED_HALF = {
    "B200": 2250.0, "H200 NVL": 835.0, "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "RTX 5090": 209.5, "RTX 4090": 165.2,
    "RTX 3090": 71.0, "V100": 125.0, "T4": 65.0,
}  # fmt: skip
_OTHER_FORMS = "Ti|SUPER|Laptop|Max-Q|D|NVL|PCIe"  # after the name of a GPU: of another one, with a peak of its own

CPUINFO = Path("/proc/cpuinfo")  # of Linux


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, seconds: float = 0.15) -> float:
    """Return measured floating-point operations per second of square matmuls; runs at least one.

    On a GPU they are large, so that starting one and waiting for it takes no part of the time.
    """
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))

    multiply = linear if amd_with_avx512() else F.linear
    multiply(a, b)
    synchronize(device)
    runs, start = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - start < seconds:
        multiply(a, b)
        synchronize(device)
        runs += 1
    return 2.0 * size**3 * runs / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it; a CPU has."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def device_name(device: torch.device) -> str:
    """Return the model of a device, such as NVIDIA L4 or Apple M3 Max; of a CPU, what Python knows of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (device.type == "mps" and apple_chip()) or platform.processor() or platform.machine()


def apple_chip() -> str:
    """Return the name of a Mac's chip, such as Apple M3 Max; empty where macOS does not tell."""
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def memory_in_use(device: torch.device) -> int:
    """Return the bytes that this process uses of a device.

    Of an NVIDIA GPU the most so far, of an Apple GPU what Metal holds now, of a CPU the process's memory now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return int(psutil.Process().memory_info().rss)


def is_named(model: str, name: str) -> bool:
    """Return whether a GPU's name, as its driver spells it, is that of a model: a T400 is no T4, a 3090 Ti no 3090."""
    return re.search(rf"\b{re.escape(model)}\b(?! (?:{_OTHER_FORMS})\b)", name) is not None


def peak_flops_per_s(device: torch.device, half: torch.dtype | None) -> tuple[float, str]:
    """Return the peak speed for utilization (MFU) and its origin, "documented for ..." or "measured".

    `half` is the 16-bit dtype of the matmuls; None: float32.
    """
    if device.type == "cuda" and half is not None:
        name = torch.cuda.get_device_name(device)
        for model, teraflops in DOCUMENTED_HALF.items():
            if is_named(model, name) and (half is torch.float16 or bf16_is_fast(device)):
                return teraflops * 1e12, f"documented for {model}"
    return matmul_flops_per_s(device, half or torch.float32), "measured"


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device has bf16 matmul instructions, which are up to twice as fast as float32.

    A CPU's instructions decide, not a measurement: the same command must train in the same format whatever else runs
    on the machine. On an AMD EPYC with avx512_bf16, six measurements gave 1.4 to 1.9 times float32's speed.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT")  # of the instructions that oneDNN may use
    if device.type != "cpu" or not re.search("DEFAULT|ALL|BF16|FP16|AMX|AVX10", limit) or not CPUINFO.exists():
        return False
    if platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return re.search(r"\b(amx_bf16|avx512_bf16|bf16)\b", CPUINFO.read_text(encoding="utf8")) is not None


def fp16_is_fast(device: torch.device) -> bool:
    """Return whether the device is a GPU with tensor cores for fp16 and none for bf16, such as V100 and T4."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums over many targets: float64 if the device has it, else float32."""
    return torch.float32 if device.type == "mps" else torch.float64
