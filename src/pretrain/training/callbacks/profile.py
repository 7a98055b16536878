"""A profile of a few training steps, by torch's profiler."""

from pathlib import Path

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pretrain.training.callbacks import StepCallback
from pretrain.training.lightning_module import TrainingModule

_WAIT, _WARM_UP = 3, 1  # steps not profiled: the first ones allocate, compile, and start the profiler itself
_ROWS = 30  # of the table


class Profile(StepCallback):
    """Profiles `steps` steps and writes a trace and a table per process into `folder`.

    The trace, `*.pt.trace.json`, opens in https://ui.perfetto.dev, and in TensorBoard with its profiler plugin.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.steps = steps
        self._profiler: profile | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the profiler, which waits for the first steps to pass."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        stem = f"rank-{trainer.global_rank}"

        def write(finished: profile) -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self.folder / f"{stem}.pt.trace.json"))
            by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = finished.key_averages().table(sort_by=by, row_limit=_ROWS)
            (self.folder / f"{stem}.txt").write_text(table, encoding="utf8")

        plan = schedule(wait=_WAIT, warmup=_WARM_UP, active=self.steps, repeat=1)
        self._profiler = profile(activities=activities, schedule=plan, on_trace_ready=write)
        self._profiler.start()

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Advance the profiler by a step."""
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the profiler; a run shorter than planned writes the steps it has profiled."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
