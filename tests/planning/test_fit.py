"""A run that does not fit gets settings that do, with the same training result."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.planning.answer import answer
from pretrain.planning.config import PlanConfig
from pretrain.planning.fit import candidates, fit, settings_that_fit
from pretrain.planning.forecast import Target, forecast, target_of

Plan = Callable[..., PlanConfig]


def on_a_device_of(mib: float, target: Target) -> Target:
    """Return a target whose tensors may take so many MiB."""
    return replace(target, hardware=replace(target.hardware, memory=int(mib * 2**20 / 0.92) + 1))


@pytest.mark.slow
def test_the_fastest_that_fits_is_taken(plan: Plan, target: Target) -> None:
    config = plan("model=gpt_nano", "dry_run=false")
    small = on_a_device_of(100, target)
    assert not forecast(config, small, simulate=False).fits
    found = fit(config, small)
    assert found is not None
    assert found.overrides() == "batch_size=8 micro_batch_size=4 parallel.activation_checkpointing=false"
    tried = candidates(config, small)
    assert len(tried) == 2 * 4  # with and without checkpointing, 1, 2, 4 or 8 rows
    faster = tried[: [c.config for c in tried].index(found.config)]
    assert faster
    assert not any(candidate.forecast.fits for candidate in faster)


@pytest.mark.slow
def test_a_batch_that_grows_has_fewer_micro_batches_and_tokens_of_its_own(plan: Plan, target: Target) -> None:
    growing = ["batch_size=16", "batch_warmup_rows=4", "batch_warmup_tokens=100000", "trainer.max_steps=50"]
    config = plan("model=gpt_nano", "dry_run=false", *growing)
    tried = {candidate.config.micro_batch_size for candidate in candidates(config, target)}
    assert tried == {4, 8, 16}  # a micro-batch holds a whole part of the first 4 rows
    found = forecast(config, target, simulate=False).cost
    assert found.tokens == config.batch_sizes().tokens(50)
    assert found.tokens < 50 * found.tokens_per_step
    assert found.seconds == pytest.approx(found.tokens / found.tokens_per_s)
    timed = replace(config, trainer=replace(config.trainer, max_steps=-1, max_time=1.0))
    by_clock = forecast(timed, target, simulate=False).cost  # small steps take less time, so there are more of them
    assert by_clock.seconds is not None
    assert 60 - by_clock.step_s < by_clock.seconds <= 60


@pytest.mark.slow
def test_what_fits_by_formula_is_tried_by_a_dry_run(plan: Plan, target: Target) -> None:
    found = fit(plan("model=gpt_nano"), on_a_device_of(100, target))
    assert found is not None
    assert found.forecast.simulated is not None
    assert found.forecast.fits


@pytest.mark.slow
def test_sharding_is_tried_where_there_are_devices(plan: Plan, target: Target) -> None:
    config = plan("model=gpt_nano", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "dry_run=false")
    kinds = {
        (c.forecast.work.strategy.name, c.config.parallel.reshard_after_forward) for c in candidates(config, target)
    }
    assert kinds == {("ddp", True), ("fsdp", True), ("fsdp", False)}
    assert all(c.config.batch_size == config.batch_size for c in candidates(config, target))
    found = fit(config, target)
    assert found is not None
    assert "trainer=ddp trainer.devices=2 trainer.accelerator=cpu" in found.overrides()
    sharded = fit(config, on_a_device_of(2 * 45, target))
    assert sharded is not None


@pytest.mark.slow
def test_where_nothing_fits_more_devices_are_advised(plan: Plan, target: Target) -> None:
    config = plan("model=gpt_nano", "dry_run=false", "batch_size=64")
    target = replace(target, hardware=replace(target.hardware, gpu=True))  # processes on processors share one memory
    lines = settings_that_fit(config, on_a_device_of(18, target))
    assert lines[0].startswith("No micro-batch, checkpointing or sharding fits")
    assert "parallel.activation_checkpointing=true" in lines[1]
    assert lines[-2:] == ["It would fit on more devices", "  trainer=fsdp trainer.devices=2"]
    lines = settings_that_fit(config, on_a_device_of(0.1, target))
    assert lines[-1] == "  model.context_length=128"
    growing = plan(
        "model=gpt_nano", "dry_run=false", "batch_size=64", "batch_warmup_rows=4", "batch_warmup_tokens=100000"
    )
    # a micro-batch holds a whole part of its first 4 rows, on any number of devices, so that none is small enough
    assert settings_that_fit(growing, on_a_device_of(18, target))[-1] == "  model.context_length=128"


@pytest.mark.slow
def test_dropout_makes_losses_alike_not_equal(plan: Plan, target: Target) -> None:
    config = plan("model=gpt_nano", "model.dropout=0.1", "dry_run=false")
    assert "dropout" in settings_that_fit(config, on_a_device_of(100, target))[-1]


def losses(tiny: Any, *words: str) -> list[float]:
    """Return the training loss of each step of a run."""
    from pretrain.training.train import run

    report = run(tiny.plan(*words))
    with (Path(report.folder) / "metrics.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "train/loss"]


@pytest.mark.long
def test_settings_that_fit_run_with_the_same_losses(plan: Plan, tiny: Any) -> None:
    """The default does not fit 0.71 GiB, of which the libraries take 0.7; what is advised does, and learns the same."""
    size = ["model.d_model=128", "model.context_length=128", "model.dropout=0", "batch_size=8"]
    given = [*tiny.words, *size, "device=cpu", "memory_gib=0.71", "fit=true"]
    text = answer(plan(*given))
    assert "does not fit" in text
    advised = text.splitlines()[-1].split()
    assert advised[0] == "batch_size=8"
    assert "does not fit" not in answer(plan(*given, *advised))
    usual, fitted = losses(tiny, *size), losses(tiny, *size, *advised)
    assert len(usual) == 12
    assert fitted == pytest.approx(usual, abs=1e-5)


@pytest.mark.long
def test_a_model_that_devices_split_is_fitted_as_it_is_split(plan: Plan) -> None:
    config = plan(
        "model=gpt_nano", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=4", "parallel.tensor_parallel=2",
        "batch_size=8", "dry_run=false", "vocab_size=512",
    )  # fmt: skip
    found = candidates(config, target_of(config))
    split = [candidate for candidate in found if candidate.forecast.work.sharded]
    assert {candidate.forecast.work.rows for candidate in split} == {1, 2, 4}
    assert all("parallel.tensor_parallel=2" in candidate.overrides() for candidate in split)
    whole = [candidate for candidate in found if not candidate.forecast.work.sharded]
    assert {candidate.forecast.work.rows for candidate in whole} == {1, 2}
    assert not any("tensor_parallel" in candidate.overrides() for candidate in whole)
