"""The loss before the first step is in the final report, even after a kill, and does not change the run."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.errors import ConfigError, Interrupted
from pretrain.launch.run_folder import read_rows
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.train import run, train
from pretrain.training.validation import changes

FIRST = "trainer.validate_first=true"
WORDS = ["model=gpt_nano", "trainer.max_steps=8"]


def rows_at_step_0(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in read_rows(folder / "metrics.csv"):
        if row["step"] == "0":
            found.setdefault(row["name"], []).append(float(row["value"]))
    return found


def validation_losses_of_tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "validation")).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


@pytest.mark.long
def test_first_validation_is_of_the_initial_weights_and_survives_a_kill(tiny, capsys):
    before = run(tiny.plan(*WORDS))
    start = ["model=gpt_nano", f"init_from={before.folder}", "seed=7", "trainer.max_steps=8"]
    plain = run(tiny.plan(*start, f"paths.run_dir={tiny.folder / 'plain'}"))
    assert plain.first_validation == {}
    assert "since the start" not in str(plain)
    capsys.readouterr()
    told = "trainer.enable_progress_bar=true"
    whole = run(tiny.plan(*start, FIRST, told, f"paths.run_dir={tiny.folder / 'whole'}"))
    assert whole.first_validation == before.validation
    assert rows_at_step_0(tiny.folder / "whole") == {name: [value] for name, value in before.validation.items()}
    first, last = whole.first_validation["val/loss"], whole.validation["val/loss"]
    assert min(validation_losses_of_tensorboard(tiny.folder / "whole")) == (0, pytest.approx(first))
    assert f"    all              {first:.4f} -> {last:.4f} ({last - first:+.4f})" in str(whole).splitlines()
    shown = [line for line in capsys.readouterr().out.splitlines() if ": validation loss " in line]
    assert [line.split(":")[0] for line in shown] == ["step 0", "step 5"]
    assert f"step 0: validation loss {first:.4f}" in shown[0]
    a, b = (open_checkpoint(tiny.folder / name).tensors("model") for name in ("plain", "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())

    shutil.copytree(tiny.folder / "whole", tiny.folder / "cut")
    shutil.rmtree(tiny.folder / "cut" / "checkpoints" / "step-00000008")
    resumed = run(tiny.plan(*start, f"paths.run_dir={tiny.folder / 'cut'}", "resume=auto"))
    assert resumed.first_validation == before.validation
    assert resumed.validation == whole.validation
    assert rows_at_step_0(tiny.folder / "cut") == rows_at_step_0(tiny.folder / "whole")
    assert json.loads((tiny.folder / "cut" / "report.json").read_text())["first_validation"] == before.validation


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_over_once(tiny, monkeypatch, capsys):
    words = [*WORDS, FIRST, f"paths.run_dir={tiny.folder / 'run'}", "resume=auto"]

    def killed(*arguments):
        raise KeyError("the power is gone")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "training_step", killed)
        with pytest.raises(KeyError):
            run(tiny.plan(*words))
    assert "val/loss" in rows_at_step_0(tiny.folder / "run")
    time.sleep(1.1)  # TensorBoard orders files by the second of their start
    report = run(tiny.plan(*words))
    first = report.first_validation["val/loss"]
    assert rows_at_step_0(tiny.folder / "run")["val/loss"] == [first]
    points = validation_losses_of_tensorboard(tiny.folder / "run")
    assert [step for step, _ in points].count(0) == 1
    assert "learning rate" not in capsys.readouterr().out
    longer = run(tiny.plan(*words, "trainer.max_steps=16"))
    told = re.search(
        r"warning: the learning rate goes from (\S+) at step 8 to (\S+) at step 9: (.*)", capsys.readouterr().out
    )
    assert told
    assert told[3] == "schedule=wsd ran over 8 steps before, and over 16 steps from here on."
    assert longer.first_validation["val/loss"] == first


@pytest.mark.slow
def test_a_signal_during_first_validation_ends_the_run_after_the_batch(tiny, monkeypatch):
    original, scored = TrainingModule.validation_step, []

    def signalled(self, *arguments):
        scored.append(self.trainer.sanity_checking)
        if self.trainer.sanity_checking:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *arguments)

    monkeypatch.setattr(TrainingModule, "validation_step", signalled)
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM at step 0: nothing was trained yet"):
        train(tiny.plan(*WORDS, FIRST, "batch_size=1", f"paths.run_dir={tiny.folder / 'run'}"))
    assert scored == [True]
    assert not step_folders(tiny.folder / "run" / "checkpoints")
    assert signal.getsignal(signal.SIGTERM) is previous


@pytest.mark.slow
def test_without_validation_documents_there_is_nothing_to_score_first(tiny):
    with pytest.raises(
        ConfigError,
        match=r"validate_first=true scores .*: data\.validation_fraction=0 holds nothing out\. Try .*n_fraction=0\.05",
    ):
        run(tiny.plan(*WORDS, FIRST, "data.validation_fraction=0"))


def test_changes_are_listed_for_all_and_for_each_earlier_source():
    before = {"val/loss": 2.0, "val/perplexity": 7.4, "val/domain/loss": 3.0, "val/replay/loss": 1.0}
    after = {"val/loss": 1.75, "val/domain/loss": 2.25, "val/new/loss": 9.0, "val/replay/loss": 1.125}
    assert changes(before, after) == [
        "  since the start    validation loss in nats",
        "    all              2.0000 -> 1.7500 (-0.2500)",
        "    domain           3.0000 -> 2.2500 (-0.7500)",
        "    replay           1.0000 -> 1.1250 (+0.1250)",
    ]
    assert changes({}, after) == changes(before, {}) == []
