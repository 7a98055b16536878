"""Shapes and run lengths derived from the text are saved as numbers and kept on resume."""

from pathlib import Path

import pytest
import yaml
from tiny_run import TinyRun

from pretrain.training.launch import launch
from pretrain.training.train import run


@pytest.mark.long
def test_a_chosen_size_is_saved_as_numbers_that_count_on_resume(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.folder / "run"
    own = ["trainer.max_steps=null", "size=auto", f"paths.run_dir={folder}"]
    launch(tiny.config(*own, "time=0.02"), [*tiny.words, *own, "time=0.02"])
    told = capsys.readouterr().out
    assert "size=auto time=0.02: nano, " in told
    assert "the run ends at step " in told
    assert "or after 0.02 minutes (trainer.max_time)" in told
    saved = settings_of(folder)
    assert (saved["size"], saved["time"], saved["trainer"]["max_time"]) == (None, None, 0.02)
    assert saved["trainer"]["max_steps"] > 0
    assert (saved["model"]["d_model"], saved["batch_size"]) == (16, 4)  # typed, so they stayed
    again = [*own, "time=5", f"resume={folder}"]
    launch(tiny.config(*again), [*tiny.words, *again])
    assert "size=auto" not in capsys.readouterr().out
    assert settings_of(folder) == saved


@pytest.mark.slow
def test_epochs_read_every_row_and_resume_with_another_batch_size(
    tiny: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.folder / "run"
    tiny.words = [word for word in tiny.words if not word.startswith("schedule.")]
    words = ["trainer.max_steps=-1", "trainer.max_epochs=0.1", "schedule.warmup_fraction=0.25"]
    first = tiny.plan(*words, f"paths.run_dir={folder}")
    report = run(first)
    told = capsys.readouterr().out
    assert "of data, read 0.1" in told
    more = ["trainer.max_epochs=0.2", "batch_size=8", "allow_change=[batch_size]", f"resume={folder}"]
    longer = run(tiny.plan("trainer.max_steps=-1", "schedule.warmup_fraction=0.25", *more))
    told = capsys.readouterr().out
    assert "of data, read 0.2" in told
    assert longer.steps - report.steps == pytest.approx(report.steps / 2, abs=1)  # as many rows, twice as many a step
    assert "trainer.max_epochs=0.4" in longer.longer


@pytest.mark.slow
def test_typed_epochs_make_a_run_longer_that_had_steps(tiny: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.folder / "run"
    steps = [word for word in tiny.words if not word.startswith("trainer.max_steps=")]
    run(tiny.plan(f"paths.run_dir={folder}", "trainer.max_steps=2"))
    tiny.words = steps
    longer = tiny.plan(f"resume={folder}", "trainer.max_epochs=0.2")
    assert (longer.config.trainer.max_steps, longer.config.trainer.max_epochs) == (-1, 0.2)
    assert "trainer.max_steps: 2 before, -1 from here on" in capsys.readouterr().out
    assert run(longer).steps > 2
    again = tiny.plan(f"resume={folder}", "trainer.max_epochs=0.2", "trainer.max_steps=3")  # both: the shorter one
    assert again.config.trainer.max_steps == 3


def settings_of(folder: Path) -> dict:
    """Return the settings in a run folder's config.yaml."""
    found: dict = yaml.safe_load((folder / "config.yaml").read_text())
    return found
