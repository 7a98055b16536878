"""Runs with 16-bit copies of the matrices and a residual stream in bf16: exact, also where weights are swapped."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from same_state import assert_same_state

from pretrain.errors import ConfigError, Interrupted
from pretrain.launch.run_folder import read_rows
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.train import run

BOTH = ["parallel.half_weight_copies=true", "parallel.cuda_graphs=true"]


class Meddler(Callback):
    """Plants a gradient that is not finite, validates with other weights, and interrupts where it is asked to."""

    def __init__(self, interrupts: bool = False) -> None:
        self.interrupts = interrupts

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Plant it at step 3; set the flag that a signal's handler would set at step 5."""
        if trainer.global_step == 2:
            weight = next(pl_module.parameters())
            weight.grad = torch.full_like(weight, float("nan"))
        if trainer.global_step == 4 and self.interrupts:
            pl_module.signal_received = 15

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Double the weights, as a callback that averages weights puts others in their place."""
        for weight in pl_module.model_with_loss.parameters():
            weight.data.mul_(2.0)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Halve them again, which is exact."""
        for weight in pl_module.model_with_loss.parameters():
            weight.data.div_(2.0)


def words(folder: Path, *more: str) -> list[str]:
    return [
        "model=gpt_nano", "trainer.precision=bf16", "trainer.half_residual_stream=true", "optimizer=adamw",
        "ema.decay=0.9", "logging.ledger=true", "trainer.max_steps=8", "trainer.val_check_interval=3",
        "micro_batch_size=2", "sample.every_n_steps=0", "logger=csv", f"paths.run_dir={folder}", *more,
    ]  # fmt: skip


def figures(folder: Path) -> dict[tuple[str, str], str]:
    names = ("train/loss", "val/loss", "val/loss_ema", "optim/skipped_steps")
    return {
        (row["step"], row["name"]): row["value"] for row in read_rows(folder / "metrics.csv") if row["name"] in names
    }


@pytest.mark.long
def test_copies_and_a_resume_change_no_bit(tiny: Any, tmp_path: Path) -> None:
    """Accumulation, dropout, a skipped step, an average, weights swapped for validations, emulated graphs."""
    whole = run(tiny.plan(*words(tmp_path / "whole")), callbacks=[Meddler()])
    with pytest.raises(Interrupted):
        run(tiny.plan(*words(tmp_path / "cut", *BOTH)), callbacks=[Meddler(interrupts=True)])
    cut = run(tiny.plan(*words(tmp_path / "cut", *BOTH, "resume=auto")), callbacks=[Meddler()])
    assert whole.skipped_steps == cut.skipped_steps == 1
    assert read_lines(tmp_path / "cut" / "ledger.jsonl") == read_lines(tmp_path / "whole" / "ledger.jsonl")
    assert_same_state(tmp_path / "cut", tmp_path / "whole", parts=("ema",))
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert len({value for (_, name), value in figures(tmp_path / "cut").items() if name.startswith("val/")}) == 6
    assert whole.validation == cut.validation
    assert whole.sample == cut.sample


@pytest.mark.slow
def test_a_resume_keeps_the_residual_stream_of_the_run(tiny: Any, tmp_path: Path) -> None:
    run(tiny.plan(*words(tmp_path / "a", "trainer.max_steps=1")))
    with pytest.raises(ConfigError, match=r"trainer\.half_residual_stream: true in the run, false now"):
        tiny.plan(*words(tmp_path / "a", "trainer.half_residual_stream=false", "resume=auto"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer=fsdp", "trainer.devices=2"], r"trainer\.strategy=fsdp gathers the weights in 16 bits"),
        (["trainer.precision=fp32"], r"trainer\.precision=fp32 multiplies by float32"),
    ],
)
def test_runs_without_a_use_for_copies_are_refused(tiny: Any, settings: list[str], message: str) -> None:
    expected = rf"parallel\.half_weight_copies=true .*{message}.* Try parallel\.half_weight_copies=false"
    with pytest.raises(ConfigError, match=expected):
        tiny.config("model=gpt_nano", "parallel.half_weight_copies=true", *settings)
