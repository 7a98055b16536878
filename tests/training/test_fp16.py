"""fp16 with a loss scale: as float32 within its rounding, overflows skipped, exact on resume."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from same_state import assert_same_state

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.near_misses import _VALUES
from pretrain.errors import ConfigError, DivergenceError, Interrupted
from pretrain.launch.run_folder import read_rows
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.precision import auto_precision
from pretrain.training import run_parts
from pretrain.training.config import Precision, TrainerConfig
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loss_scaler import HIGHEST, LOWEST, LossScaler, build_loss_scaler
from pretrain.training.report import check_outcome
from pretrain.training.step_outcomes import OVERFLOW
from pretrain.training.train import run

FP16 = ["model=gpt_nano", "model.d_model=32", "trainer.precision=fp16"]


def column(folder: Path, name: str) -> list[float]:
    """Return the logged values of a metric by step."""
    return [float(row["value"]) for row in read_rows(folder / "metrics.csv") if row["name"] == name]


def test_a_scale_halves_at_an_overflow_and_doubles_after_steps_without() -> None:
    scaler = LossScaler(8.0, growth_interval=3)
    for _ in range(2):
        scaler.count_step()
    assert scaler.lower()
    assert (scaler.scale, scaler.steps_since_change) == (4.0, 0)
    scales = []
    for _ in range(6):
        scaler.count_step()
        scales.append(scaler.scale)
    assert scales == [4, 4, 8, 8, 8, 16]
    scaler.scale = 2.0 * LOWEST
    assert [scaler.lower(), scaler.lower(), scaler.scale] == [True, False, LOWEST]
    scaler.scale, scaler.growth_interval = HIGHEST, 1
    scaler.count_step()
    assert scaler.scale == HIGHEST


def test_only_fp16_has_a_scale_and_it_is_a_power_of_two() -> None:
    assert build_loss_scaler(TrainerConfig(precision=Precision.bf16)) is None
    scaler = build_loss_scaler(TrainerConfig(precision=Precision.fp16, initial_loss_scale=1024.0))
    assert scaler is not None
    assert (scaler.scale, scaler.growth_interval) == (1024.0, 2000)
    with pytest.raises(ConfigError, match=r"trainer.initial_loss_scale=1000 is not a power of two.*=65536"):
        TrainerConfig(initial_loss_scale=1000.0)
    with pytest.raises(ConfigError, match=r"trainer.initial_loss_scale=0.5 is"):
        TrainerConfig(initial_loss_scale=0.5)
    assert "16-mixed" in _VALUES["fp16"].split()


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), Precision.fp32), ((7, 0), Precision.fp16), ((7, 5), Precision.fp16), ((8, 0), Precision.bf16)],
)
def test_auto_is_fp16_on_gpus_with_tensor_cores_for_it_alone(
    capability: tuple[int, int], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert auto_precision(torch.device("cuda")) is precision


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_scale_changes_no_bit_of_float32(tiny: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """Gradients are divided by the scale before norm, clipping and spikes."""
    words = ["model=gpt_nano", "model.d_model=32", f"optimizer={optimizer}", "micro_batch_size=2", "logging.norms=true"]
    words += ["trainer.gradient_clip_val=0.5", "divergence.on_spike=skip", "divergence.window=4"]
    plain = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'plain'}"))
    scaler = LossScaler(1024.0, growth_interval=5)
    monkeypatch.setattr(run_parts, "build_loss_scaler", lambda _: scaler)
    scaled = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'scaled'}"))
    assert scaler.scale == 4096.0
    one, other = (open_checkpoint(Path(report.folder)) for report in (plain, scaled))
    for part in ("model", "optimizer"):
        a, b = one.tensors(part), other.tensors(part)
        assert all(torch.equal(a[name], b[name]) for name in a), part
    for name in ("optim/grad_norm", "train/loss", "weights/grad_norm/block_00"):
        assert column(Path(plain.folder), name) == column(Path(scaled.folder), name)
    assert one.progress["losses"] == other.progress["losses"]


@pytest.mark.long
def test_fp16_trains_as_float32_overflows_and_resumes_exactly(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scale of 2^24 really overflows here; the run is cut while the scale has begun to grow again."""
    words = [
        *FP16,
        "trainer.initial_loss_scale=16777216",
        "trainer.loss_scale_growth_interval=3",
        "trainer.max_steps=14",
    ]
    whole = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'whole'}"))
    out = capsys.readouterr().out
    scales = column(Path(whole.folder), "optim/loss_scale")
    assert scales[0] == 2.0**23
    assert any(after > before for before, after in pairwise(scales)), [math.log2(scale) for scale in scales]
    assert f"step 1 is skipped, as {OVERFLOW}: loss scale 16,777,216 before, 8,388,608 from here on" in out
    assert 0 < whole.skipped_steps == out.count(OVERFLOW) < 10
    cut = f"paths.run_dir={tiny.folder / 'cut'}"
    with monkeypatch.context() as patch:
        original = TrainingModule.training_step

        def interrupted(module: TrainingModule, *arguments: Any) -> torch.Tensor:
            module.signal_received = 15 if module.global_step == 12 else 0
            return original(module, *arguments)

        patch.setattr(TrainingModule, "training_step", interrupted)
        with pytest.raises(Interrupted):
            run(tiny.plan(*words, cut))
    saved = open_checkpoint(tiny.folder / "cut")
    assert saved.step < 14
    assert saved.progress["loss_scale"]["steps_since_change"] > 0
    run(tiny.plan(*words, cut, "resume=auto"))
    assert_same_state(tiny.folder / "whole", tiny.folder / "cut")
    fp32, fp16 = (
        run(tiny.plan(*FP16[:2], f"trainer.precision={name}", f"paths.run_dir={tiny.folder / name}"))
        for name in ("fp32", "fp16")
    )
    assert fp16.skipped_steps == 0
    losses = [column(Path(report.folder), "train/loss") for report in (fp32, fp16)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_ten_overflows_in_a_row_end_a_run_at_the_lowest_scale_only(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.training_step
    monkeypatch.setattr(TrainingModule, "training_step", lambda *arguments: original(*arguments) * math.inf)
    words = [*FP16, "trainer.initial_loss_scale=8", "trainer.max_steps=50"]
    with pytest.raises(
        DivergenceError, match=r"10 steps in a row .* up to step 13: .*trainer.precision=fp32: fp16 has"
    ):
        run(tiny.plan(*words))


@pytest.mark.slow
@pytest.mark.fault("F08")
def test_a_loss_that_is_not_finite_lowers_no_scale(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ModelWithLoss.forward

    def not_finite(self: ModelWithLoss, batch: Any) -> Any:
        loss, count = original(self, batch)
        return loss * math.nan, count

    monkeypatch.setattr(ModelWithLoss, "forward", not_finite)
    with pytest.raises(DivergenceError, match=r"10 steps in a row were skipped, up to step 10: .* not finite"):
        run(tiny.plan(*FP16, f"paths.run_dir={tiny.folder / 'run'}"))
    assert set(column(tiny.folder / "run", "optim/loss_scale")) == {65536.0}


def test_a_run_of_overflows_alone_says_what_helps() -> None:
    with pytest.raises(DivergenceError, match=r"each of its 3 .* Try a lower trainer\.initial_loss_scale"):
        check_outcome(3, 3, OVERFLOW, {})
