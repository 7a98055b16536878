"""What the run and its machine use: CPU, memory, and the GPUs by NVML, sampled beside the training in a thread."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import lightning as L
import psutil
import torch

from pretrain.training.callbacks import StepCallback
from pretrain.training.callbacks.metrics import write
from pretrain.training.lightning_module import TrainingModule

_GIB = 2**30
_END_S = 5.0  # a driver that does not answer keeps its thread


class SystemMetrics(StepCallback):
    """Logs `system/<name>` every n seconds, each the mean of the samples since the last time; on rank 0.

    A thread of its own takes the samples, so no step waits for them; the step after the n seconds logs them. A source
    that fails is left out from then on. Nothing of it is saved.
    """

    def __init__(self, every_n_seconds: float, devices: int) -> None:
        self.every_n_seconds = every_n_seconds
        self.devices = devices  # GPUs of this machine that the run uses
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._is_due = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the thread."""
        if trainer.is_global_zero:
            self._ended = threading.Event()
            sources = [cpu_source(), *gpu_sources(self.devices if pl_module.device.type == "cuda" else 0)]
            words = {"name": "system-metrics", "daemon": True, "args": (sources, self._ended)}
            self._thread = threading.Thread(target=self._sample, **words)  # type: ignore[arg-type]
            self._thread.start()

    def _sample(self, sources: list[Callable[[], dict[str, float]]], ended: threading.Event) -> None:
        """Take a sample of each source five times in n seconds, at most once a second, until the training ends."""
        pause_s = min(self.every_n_seconds, max(1.0, self.every_n_seconds / 5))
        waited_s = 0.0
        while sources and not ended.wait(pause_s):
            waited_s += pause_s
            for source in list(sources):
                try:
                    found = source()
                except Exception:  # of the system or a driver: a figure less, and never a run less
                    sources.remove(source)
                    continue
                with self._lock:
                    for name, value in found.items():
                        self._samples[name].append(value)
            if waited_s >= self.every_n_seconds * 0.999:
                waited_s, self._is_due = 0.0, True

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Log the mean of the samples if their time has come."""
        if self._is_due:
            with self._lock:
                found, self._samples = self._samples, defaultdict(list)
                self._is_due = False
            means = {f"system/{name}": sum(values) / len(values) for name, values in found.items()}
            write(trainer, means, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the thread."""
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the thread."""
        self._end()

    def _end(self) -> None:
        """End the thread, which refers to the run and would keep its model in memory."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END_S)
            self._thread = None


def cpu_source() -> Callable[[], dict[str, float]]:
    """Return what measures CPU (percent of one core for the process, of all for the machine) and memory (GiB)."""
    process = psutil.Process()
    process.cpu_percent(None)  # the first call begins the interval of the next one
    psutil.cpu_percent(None)

    def measure() -> dict[str, float]:
        return {
            "cpu_percent": psutil.cpu_percent(None),
            "process_cpu_percent": process.cpu_percent(None),
            "memory_gib": psutil.virtual_memory().used / _GIB,
            "process_memory_gib": process.memory_info().rss / _GIB,
        }

    return measure


def gpu_sources(devices: int, nvml: Any = None) -> list[Callable[[], dict[str, float]]]:
    """Return what measures the first GPUs that this process sees: utilization (percent), memory (GiB), power (W).

    Empty without GPUs, without the package nvidia-ml-py, and where the driver refuses. `nvml` is its module.
    """
    if not devices:
        return []
    try:
        if nvml is None:
            import pynvml as nvml  # type: ignore[import-not-found,no-redef,unused-ignore]
        nvml.nvmlInit()
        ids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(devices)]
        handles = [nvml.nvmlDeviceGetHandleByUUID(each) for each in ids]
    except Exception:  # of any version of NVML
        return []
    return [_gpu_source(nvml, index, handle) for index, handle in enumerate(handles)]


def _gpu_source(nvml: Any, index: int, handle: Any) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        return {
            f"gpu{index}_percent": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            f"gpu{index}_memory_gib": nvml.nvmlDeviceGetMemoryInfo(handle).used / _GIB,
            f"gpu{index}_power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # of milliwatts
        }

    return measure
