"""What a step came to is known one step later, in order, and before anything is logged, validated or saved."""

import gc
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from pretrain.checkpoint.read import open_checkpoint
from pretrain.errors import DivergenceError
from pretrain.launch.run_folder import read_rows
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.host_copies import HostCopies
from pretrain.training.step_outcomes import NO_TARGET, NOT_FINITE, StepOutcome, StepOutcomes
from pretrain.training.train import run


def numbers(applied: bool, targets: int, loss: float) -> torch.Tensor:
    return torch.tensor([applied, targets, loss], dtype=torch.float64)


def test_an_outcome_is_handed_over_a_step_late_or_when_settled() -> None:
    found: list[StepOutcome] = []
    outcomes = StepOutcomes()
    outcomes.listeners.append(found.append)
    reused = numbers(True, 4, 8.0)
    outcomes.post(1, "", reused, torch.tensor([0, 1]))
    reused.zero_()  # the step's own tensors are free at once
    assert found == []
    outcomes.post(2, "", numbers(False, 4, math.nan), torch.tensor([2, 3]))
    assert [(each.step, each.skipped_because, each.loss) for each in found] == [(1, "", 2.0)]
    assert found[0].samples.tolist() == [0, 1]
    outcomes.post(3, "", numbers(False, 0, 0.0), torch.tensor([4, 5]))
    outcomes.post(4, "the loss jumped", numbers(True, 4, 40.0), torch.tensor([6, 7]))
    outcomes.settle()
    outcomes.settle()
    assert [each.skipped_because for each in found] == ["", NOT_FINITE, NO_TARGET, "the loss jumped"]
    assert math.isnan(found[1].loss)
    assert math.isnan(found[2].loss)
    assert found[3].loss == 10.0


def test_copies_reuse_their_memory_and_keep_what_was_copied() -> None:
    copies, source = HostCopies(), torch.ones(3)
    first = copies.copy("a", source)
    copies.wait()
    source.fill_(2.0)
    assert first.tolist() == [1.0] * 3
    assert copies.copy("a", source) is first
    assert copies.copy("b", source) is not first
    assert copies.copy("a", source.double()).dtype == torch.float64


class Watch(Callback):
    """Makes gradients of steps NaN; notes the collector's state at each step and all outcomes."""

    def __init__(self, bad: range) -> None:
        self.bad = bad
        self.collector: list[bool] = []
        self.steps = 0

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.collector.append(gc.isenabled())
        self.steps = trainer.global_step + 1
        if trainer.global_step in self.bad:
            gradient = next(p.grad for p in pl_module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = torch.nan


def words(folder: Path) -> list[str]:
    return [
        "model=gpt_nano", "logging.ledger=true", "trainer.log_every_n_steps=100", "trainer.val_check_interval=100",
        "checkpoint.every_n_steps=100", "sample.every_n_steps=0", f"paths.run_dir={folder}",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_ten_skipped_steps_end_a_run_at_most_two_steps_late(tiny: Any, tmp_path: Path) -> None:
    """Nothing is logged, validated or saved here that would have asked for the counts."""
    watch = Watch(range(3, 100))
    with pytest.raises(DivergenceError, match=r"10 steps in a row were skipped, up to step 13: .* read rows \d+"):
        run(tiny.plan(*words(tmp_path / "run"), "trainer.max_steps=40"), callbacks=[watch])
    assert 13 <= watch.steps <= 15
    lines = read_lines(tmp_path / "run" / "ledger.jsonl")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, *range(1, 11)]
    assert gc.isenabled()


@pytest.mark.slow
@pytest.mark.fault("F08")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_counts_are_exact_where_they_are_shown(tiny: Any, tmp_path: Path, optimizer: str) -> None:
    watch = Watch(range(6, 8))
    config = [*words(tmp_path / "run"), f"optimizer={optimizer}", "trainer.max_steps=8", "micro_batch_size=2"]
    report = run(tiny.plan(*config, "checkpoint.every_n_steps=4"), callbacks=[watch])
    assert report.skipped_steps == 2
    saved = open_checkpoint(tmp_path / "run")
    assert saved.progress["skipped_steps"] == 2
    assert all(tensor.isfinite().all() for part in ("model", "optimizer") for tensor in saved.tensors(part).values())
    lines = read_lines(tmp_path / "run" / "ledger.jsonl")
    assert [(line["step"], line["skipped_steps"]) for line in lines] == [*((n, 0) for n in range(1, 7)), (7, 1), (8, 2)]
    assert [sample for line in lines for sample in line["samples"]] == list(range(32))
    logged = {row["name"]: row["value"] for row in read_rows(tmp_path / "run" / "metrics.csv")}
    assert logged["optim/skipped_steps"] == "2.0"
    losses = [float.fromhex(line["loss"]) for line in lines[:6]]
    assert float(logged["train/loss"]) == pytest.approx(sum(losses) / 6, rel=0.02)  # of the steps that were taken
    assert watch.collector == [True, True, *[False] * 14]
    assert gc.isenabled()


class Own(torch.optim.SGD):
    """An optimizer that knows nothing of skipping."""


@pytest.mark.slow
def test_an_optimizer_that_cannot_skip_is_not_asked_to(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pretrain.optim.config.AdamWConfig.build", lambda self, model: Own(model.parameters(), lr=0.1))
    watch = Watch(range(1, 2))
    report = run(tiny.plan(*words(tmp_path / "run"), "optimizer=adamw", "trainer.max_steps=3"), callbacks=[watch])
    assert report.skipped_steps == 1
    weights = open_checkpoint(tmp_path / "run").tensors("model")
    assert all(weight.isfinite().all() for weight in weights.values())
