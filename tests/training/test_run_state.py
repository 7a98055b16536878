"""`RunState.load` restores all state of a checkpoint."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.checkpoint.read import Checkpoint, newest
from pretrain.objectives.objective import ModelWithLoss
from pretrain.training.callbacks.checkpoints import Checkpoints
from pretrain.training.run_state import RunState
from pretrain.training.train import run


@pytest.mark.slow
def test_every_key_of_a_checkpoint_is_restored(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ModelWithLoss.forward

    def once_not_finite(self: ModelWithLoss, batch: Any) -> Any:
        loss, count = original(self, batch)
        return loss * (float("nan") if 8 in batch.sample_indices.tolist() else 1.0), count

    monkeypatch.setattr(ModelWithLoss, "forward", once_not_finite)
    words = ["model=gpt_nano", "trainer.validate_first=true", "divergence.on_spike=skip", "divergence.window=4"]
    words += ["divergence.deviations=1000", "trainer.max_steps=6", f"paths.run_dir={tiny.folder / 'run'}"]
    run(replace(tiny.plan(*words), excluded=frozenset({":1000000"})))
    saved, _ = newest(tiny.folder / "run")
    assert saved is not None
    states: list[dict[str, Any]] = []
    load = RunState.load

    def recorded(state: RunState, checkpoint: Checkpoint | None) -> None:
        load(state, checkpoint)
        states.append(state.counters() | {"step": state.trainer.global_step})

    monkeypatch.setattr(RunState, "load", recorded)
    run(tiny.plan(*words, "resume=auto"))
    assert states == [saved.progress | {"step": 6}]
    counted = ("tokens_seen", "skipped_steps", "seconds", "losses", "left_out", "batch_sizes", "first_validation")
    assert all(saved.progress[name] for name in counted)  # none of them is what a fresh run begins with


def test_a_save_begun_before_an_early_end_is_waited_for() -> None:
    waited: list[str] = []
    checkpoints = Checkpoints.__new__(Checkpoints)
    saver: Any = SimpleNamespace(
        save=lambda step: waited.append(f"save {step}"), finish=lambda: waited.append("finish")
    )
    checkpoints.saver = saver
    checkpoints._saved_at = 5
    checkpoints.on_train_end(SimpleNamespace(global_step=5), None)  # type: ignore[arg-type]
    checkpoints.on_train_end(SimpleNamespace(global_step=7), None)  # type: ignore[arg-type]
    assert waited == ["finish", "save 7", "finish"]


@pytest.mark.slow
def test_what_is_named_like_a_checkpoint_and_never_deleted_is_named_once(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"paths.run_dir={tiny.folder / 'run'}", "checkpoint.every_n_steps=1", "checkpoint.keep=1"]
    run(tiny.plan(*words, "trainer.max_steps=1"))
    parent = tiny.folder / "run" / "checkpoints"
    (parent / "step-00000007.tmp").mkdir()
    for name in ("step-00000001", "step-00000007.tmp"):
        (parent / name / "notes.txt").write_text("mine")
    capsys.readouterr()
    run(tiny.plan(*words, "resume=auto", "trainer.max_steps=3"))
    out = capsys.readouterr().out
    for name in ("step-00000001", "step-00000007.tmp"):
        reason = "it holds 'notes.txt', which is not a file of a checkpoint"
        assert out.count(f"warning: {parent / name} is never deleted: {reason}\n") == 1
        assert (parent / name / "notes.txt").read_text() == "mine"
    assert (parent / "step-00000003").exists()
