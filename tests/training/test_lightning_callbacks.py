"""Lightning's own callbacks work when added to a run, and do not change its training."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from same_state import assert_same_state

from pretrain.checkpoint.read import newest
from pretrain.launch.run_folder import read_rows
from pretrain.training.report import Report
from pretrain.training.train import run

GPT = ("model=gpt_nano", "schedule=cosine", "optimizer=adamw", "optimizer.learning_rate=0.01")


class Hooks(Callback):
    """Notes the step and the gradient norm at each optimizer step, and where each batch ends."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}
        self.ended: list[int] = []
        self.monitored: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms[trainer.global_step] = float(torch.stack(gradients).norm())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.ended.append(trainer.global_step)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.monitored.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def figures_of(report: Report, name: str) -> list[float]:
    return [float(row["value"]) for row in read_rows(Path(report.folder) / "metrics.csv") if row["name"] == name]


@pytest.mark.slow
def test_callbacks_of_lightning_work_and_change_nothing(tiny, tmp_path: Path):
    plain = run(tiny.plan(*GPT, f"paths.run_dir={tmp_path}/plain"))
    hooks, rates = Hooks(), LearningRateMonitor(logging_interval="step")
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val/loss", save_top_k=1)
    run_plan = tiny.plan(*GPT, f"paths.run_dir={tmp_path}/more")
    report = run(run_plan, callbacks=[hooks, rates, DeviceStatsMonitor(), best])
    assert_same_state(*(Path(each.folder) / "checkpoints" / "step-00000012" for each in (plain, report)))
    assert list(hooks.norms) == list(range(12))
    assert max(hooks.norms.values()) <= run_plan.config.trainer.gradient_clip_val * 1.001
    assert hooks.ended == list(range(1, 13))
    assert [found["val/loss"] for found in hooks.monitored] == pytest.approx(figures_of(report, "val/loss"), abs=1e-5)
    assert hooks.monitored[0]["optim/grad_norm"] > 0
    assert len(list((tmp_path / "best").glob("*.ckpt"))) == 1
    lowest = min(found["val/loss"] for found in hooks.monitored[:-1])  # the last is of the end, after the fit
    assert float(best.best_model_score) == pytest.approx(lowest, abs=1e-6)
    logged = {row["name"] for row in read_rows(Path(report.folder) / "metrics.csv")}
    assert "lr-AdamW/pg1" in logged
    assert any(name.startswith("DeviceStatsMonitor") for name in logged)


@pytest.mark.slow
def test_early_stopping_ends_a_run(tiny, tmp_path: Path):
    stop = EarlyStopping("val/loss", mode="max", patience=1)
    report = run(tiny.plan(*GPT, "trainer.max_steps=100", "trainer.val_check_interval=3"), callbacks=[stop])
    assert 4 <= report.steps < 20
    assert stop.stopped_epoch == 0
    assert newest(Path(report.folder))[0].step == report.steps  # saved, though it is no multiple of every_n_steps


class NotFinite(Callback):
    """Makes the gradient of one step not finite."""

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 5:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(torch.nan)


@pytest.mark.slow
def test_a_skipped_step_advances_the_step_the_schedule_and_the_hooks(tiny):
    hooks = Hooks()
    report = run(tiny.plan(*GPT), callbacks=[NotFinite(), hooks])
    assert (report.steps, report.skipped_steps) == (12, 1)
    assert list(hooks.norms) == list(range(12))
    assert [step for step, norm in hooks.norms.items() if not math.isfinite(norm)] == [5]
    assert hooks.ended == list(range(1, 13))
    rates = [
        float(r["value"]) for r in read_rows(Path(report.folder) / "metrics.csv") if r["name"] == "optim/learning_rate"
    ]
    assert len(set(rates[2:])) == len(rates[2:])
