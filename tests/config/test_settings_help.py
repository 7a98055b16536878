"""The output of --help, whole and filtered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.config.cli import main
from pretrain.config.run import RunConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_help_lists_presets_and_the_settings_that_overrides_make(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "optimizer=adamw", "--help"])
    main("train", RunConfig, lambda config, words: pytest.fail("help trains nothing"))
    shown = capsys.readouterr().out
    assert "\noptimizer: adamw, muon, stable_adamw\n" in shown
    assert "\noptimizer: AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).\n" in shown
    line = next(line for line in shown.splitlines() if line.startswith("  optimizer.learning_rate="))
    assert line.endswith(" Peak learning rate; the schedule scales it. (above 0)")
    assert "(one of single, ddp, fsdp)" in shown
    settings = [line for line in shown.splitlines() if line.startswith("  ") and "=" in line.split()[0]]
    assert len(settings) > 80
    assert "optimizer.momentum" not in shown  # of muon only
    assert ", classify, continue, " in shown
    assert "hydra" not in shown


@pytest.mark.slow
def test_help_may_be_read_in_part() -> None:
    read, write = os.pipe()
    os.close(read)  # as `--help | head` does once it has enough
    shown = subprocess.run([sys.executable, "src/train.py", "--help"], cwd=REPOSITORY, stdout=write, stderr=-1)
    os.close(write)
    assert (shown.returncode, shown.stderr) == (0, b"")
