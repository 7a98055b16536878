"""Checks of resumed runs pass on a sound build and fail if a resume skips or repeats a batch."""

import pytest

from pretrain.doctor import resume
from pretrain.doctor.resume import ResumedRuns
from pretrain.training.datamodule import BatchLoader


@pytest.mark.long
@pytest.mark.parametrize("words", [["model=llama_nano"], ["model=bert_nano", "optimizer=adamw"]])
def test_sound_runs_go_on_exactly(context, words):
    runs = ResumedRuns(context(*words))
    for check in (runs.goes_on_exactly, runs.prefetch_changes_nothing, runs.damage_is_noticed):
        finding = check()
        assert finding.passed, finding


@pytest.mark.slow
def test_a_batch_skipped_on_resume_is_found(context, monkeypatch):
    runs = ResumedRuns(context())
    assert runs.uninterrupted.is_dir()
    original = BatchLoader.__init__

    def skipping(self, batches, start, *args):
        original(self, batches, start + (start > 0), *args)

    monkeypatch.setattr(BatchLoader, "__init__", skipping)
    finding = runs.goes_on_exactly()
    assert not finding.passed
    assert "losses by 0.0e+00" not in finding.figures


@pytest.mark.slow
def test_damage_that_nobody_notices_is_found(context, monkeypatch):
    runs = ResumedRuns(context())
    good = resume.open_checkpoint(runs.uninterrupted)
    monkeypatch.setattr(resume, "open_checkpoint", lambda path: good)
    finding = runs.damage_is_noticed()
    assert not finding.passed
    assert "not detected in model.safetensors" in finding.figures
