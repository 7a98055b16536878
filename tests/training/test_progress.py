"""Progress lines of a run without a terminal."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from pretrain.training.callbacks.progress import PacedLog, Progress, first_step_line
from pretrain.training.lightning_module import TrainingModule


def test_after_a_hundred_lines_a_log_prints_one_in_thirty_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    log = PacedLog(clock=lambda: now)
    for step in range(1, 111):
        log.write(f"step {step}")
    assert capsys.readouterr().out.splitlines() == [f"step {step}" for step in range(1, 101)]
    now += 29.9
    log.write("step 111")
    log.write("step 111: validation loss 3.1", keep=True)
    log.write("step 112: validation loss 3.0", keep=True)
    assert capsys.readouterr().out == ""
    now += 0.2
    log.write("step 113")
    log.write("step 114")
    assert capsys.readouterr().out == "step 113  (step 112: validation loss 3.0)\n"
    now += 31.0
    log.write("step 115: validation loss 2.9", keep=True)
    log.write("step 116")
    log.write("step 117", last=True)
    assert capsys.readouterr().out == "step 115: validation loss 2.9\nstep 117\n"


def test_a_slow_first_step_says_when_the_next_line_comes() -> None:
    assert first_step_line(2.0, 9, "  1:00 left") == ""
    assert first_step_line(40.0, 0, "") == ""
    expected = "the first step took 40 s; the next line comes in about 6:00  66:40 left"
    assert first_step_line(40.0, 9, "  66:40 left") == expected


def test_the_first_slow_step_of_a_start_is_told_before_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    throughput = SimpleNamespace(training_s=500.0)  # of a stage before
    metrics = SimpleNamespace(newest={}, every_n_steps=10, throughput=throughput)
    length = SimpleNamespace(stage=None, planned_steps=lambda step: 120, ends_stage=lambda step: False)
    trainer, module = SimpleNamespace(global_step=20, max_steps=120, is_global_zero=True), Mock(TrainingModule)
    trainer.lightning_module, module.length = module, length
    progress: Any = Progress(metrics)  # type: ignore[arg-type]
    progress.on_train_start(trainer, module)
    for step in (21, 22):
        trainer.global_step, throughput.training_s = step, 500.0 + 40 * (step - 20)
        progress.on_step_end(trainer, module)
    line = "the first step took 40 s; the next line comes in about 6:00  66:00 left\n"
    assert capsys.readouterr().out == line
