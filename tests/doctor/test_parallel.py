"""Checks of parallel runs pass on a sound build and fail on wrongly scaled gradients."""

import signal

import planted
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.doctor.check import NotApplicableError
from pretrain.doctor.parallel import SharedRuns
from pretrain.planning.config import PlanConfig
from pretrain.planning.dry_run import dry_run
from pretrain.planning.workload import workload_of
from pretrain.training import elastic
from pretrain.training.config import Precision
from pretrain.training.lightning_module import TrainingModule

WORDS = ["model=gpt_nano", "trainer.gradient_clip_val=1"]


@pytest.mark.slow
def test_micro_batches_are_one_batch(context):
    finding = SharedRuns(context(*WORDS)).accumulation()
    assert finding.passed, finding


@pytest.mark.slow
def test_micro_batches_that_are_not_averaged_are_found(context, monkeypatch):
    original = TrainingModule.training_step

    def undivided(self, batch, index):
        return original(self, batch, index) * self.trainer.accumulate_grad_batches

    runs = SharedRuns(context(*WORDS))
    monkeypatch.setattr(TrainingModule, "training_step", undivided)
    finding = runs.accumulation()
    assert not finding.passed


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.long
def test_two_processes_are_one(context):
    before = signal.getsignal(signal.SIGINT)
    runs = SharedRuns(context(*WORDS))
    finding = runs.ddp()
    assert finding.passed, finding
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.long
def test_gradients_not_divided_between_two_processes_are_found(context, monkeypatch):
    """Clipping and the optimizer hide the scale from the weights, but not from the norm."""
    runs = SharedRuns(context(*WORDS))
    monkeypatch.setattr(elastic, "work", planted.work_with_undivided_gradients)
    finding = runs.ddp()
    assert not finding.passed, finding


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
@pytest.mark.long
def test_two_processes_that_split_matrices_are_one(context):
    """Also after a plan in the process that they are forked from: torch remembers how operations are split."""
    subject = context(*WORDS)
    shape = subject.shape
    words = [f"model.{name}={getattr(shape, name)}" for name in ("n_layers", "d_model", "n_heads", "context_length")]
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "parallel.tensor_parallel=2"]
    register_schemas("plan", PlanConfig)
    config = compose("plan", ["model=gpt_nano", *words, *two, "batch_size=4", "micro_batch_size=4"])
    dry_run(config.run_config(), workload_of(config, subject.prepared.tokenizer.vocab_size, Precision.fp32))
    finding = SharedRuns(subject).tensor()
    assert finding.passed, finding


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
@pytest.mark.long
def test_two_processes_that_split_rows_are_one(context):
    finding = SharedRuns(context(*WORDS)).context_parallel()
    assert finding.passed, finding


@pytest.mark.slow
def test_a_row_that_two_devices_cannot_split_is_passed_over(context):
    with pytest.raises(NotApplicableError, match=r"two devices cannot split a row: .* model\.context_length=62"):
        SharedRuns(context(*WORDS, "model.context_length=62")).context_parallel()


@pytest.mark.slow
def test_a_model_that_two_devices_cannot_split_is_passed_over(context):
    with pytest.raises(NotApplicableError, match=r"two devices cannot split this model: .* model\.n_heads=1"):
        SharedRuns(context(*WORDS, "model.n_heads=1")).tensor()
