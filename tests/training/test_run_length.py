"""A run and its schedule end at its steps, tokens or time."""

import math
from dataclasses import replace
from typing import Any

import pytest

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.config.stages import course_of
from pretrain.errors import ConfigError
from pretrain.optim.schedules import CosineConfig, LinearConfig, WSDConfig
from pretrain.training.run_length import RunLength
from pretrain.training.run_length import run_length as length_in


def config(*words: str) -> RunConfig:
    composed: RunConfig = compose("train", [*words, "model.context_length=32", "batch_size=4"])
    return composed


def run_length(run: RunConfig, *more: Any, **others: Any) -> RunLength:
    """Return the length of a run without stages."""
    return length_in(course_of(run).stages[0], *more, **others)


@pytest.mark.slow
def test_steps_and_tokens_and_time_are_limits_side_by_side() -> None:
    assert run_length(config("trainer.max_steps=7")).max_steps == 7
    assert run_length(config("trainer.max_steps=7", "trainer.max_tokens=512")).max_steps == 4
    assert run_length(config("trainer.max_steps=7", "trainer.max_tokens=5120")).max_steps == 7
    assert run_length(config("trainer.max_steps=-1", "trainer.max_tokens=639")).max_steps == 4  # never more than given
    timed = run_length(config("trainer.max_steps=-1", "trainer.max_time=1.5"), seconds=60.0)
    assert (timed.max_steps, timed.max_seconds, timed.seconds) == (None, 90.0, 60.0)
    assert str(timed) == "1.5 minutes"
    assert str(RunLength(1000, 60.0)) == "1,000 steps or 1 minutes"
    assert [RunLength(160, None).share_done(step) for step in (0, 40, 160)] == [0.0, 0.25, 1.0]
    assert timed.share_done(7) == pytest.approx(60 / 90)  # of the clock, at any number of steps
    assert config("schedule.warmup_tokens=1000").warmup_steps() == 8
    with pytest.raises(ConfigError, match=r"trainer\.max_tokens=127 is less than one step reads .* Try .*=128000"):
        config("trainer.max_tokens=127")


@pytest.mark.parametrize("schedule", [CosineConfig(min_lr_ratio=0.0), LinearConfig(), WSDConfig()])
@pytest.mark.parametrize("pace", [0.05, 0.3, 7.0])
def test_by_the_clock_a_run_ends_on_time_and_decayed(schedule: CosineConfig, pace: float) -> None:
    schedule.warmup_steps = 3
    length = RunLength(None, 60.0)
    shares = []
    for step in range(100_000):
        pause = 2.0 if step and step % 50 == 0 else 0.0  # a validation
        length.record_step(length.seconds + pace + pause)
        shares.append(schedule.lr_multiplier(step, length.planned_steps(step)))
        if length.is_last_step(step):
            break
    assert abs(length.seconds - 60.0) <= max(pace / 2, 2.0)
    assert max(shares) == pytest.approx(1.0, abs=0.35)
    assert shares[-1] < (0.6 if pace > 1 else 0.1)  # a handful of steps has a coarse last one
    assert shares[-1] == min(shares[3:])
    assert length.is_done(step + 1)


def test_the_clock_resumes_and_runs_only_during_training() -> None:
    length = RunLength(10, 60.0, seconds=30.0)
    assert length.clock() == 30.0
    length.start()
    assert 30.0 <= length.clock() < 31.0
    assert not length.is_done(9)
    assert length.is_done(10)
    assert RunLength(None, 60.0, seconds=60.0).is_done(1)
    assert length.doubled(10) == "trainer.max_steps=20 trainer.max_time=2"
    both = run_length(config("trainer.max_steps=7", "trainer.max_tokens=512"))  # each of them would end it
    assert both.doubled(4) == "trainer.max_tokens=1024 trainer.max_steps=8"


@pytest.mark.slow
def test_epochs_end_a_run_with_the_step_that_completes_them() -> None:
    two = config("trainer.max_steps=-1", "trainer.max_epochs=2")
    assert two.max_steps() is None  # before the rows are known
    assert run_length(two, rows_per_epoch=10).max_steps == 5
    assert run_length(two, rows_per_epoch=11).max_steps == 6  # 22 rows, 4 a step
    assert run_length(config("trainer.max_steps=3", "trainer.max_epochs=2"), rows_per_epoch=10).max_steps == 3
    tenth = config("trainer.max_steps=-1", "trainer.max_epochs=0.1")
    assert run_length(tenth, rows_per_epoch=40 * 30).max_steps == 30  # exact, although 0.1 is not
    assert run_length(two, rows_per_epoch=10).doubled(5) == "trainer.max_epochs=4"


def test_epochs_stay_epochs_where_the_batch_size_changes() -> None:
    wider = config("trainer.max_steps=-1", "trainer.max_epochs=2")
    sizes = wider.batch_sizes().changed(10, replace(wider.step_size(), batch_size=8, tokens_per_step=256))
    assert run_length(wider, 0.0, sizes, rows_per_epoch=40).max_steps == 15  # 10 steps of 4 rows, 5 of 8
    assert sizes.samples(15) == 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=text_files", "data.path=x", "data.mode=stream"],
         r"trainer\.max_epochs=2 counts passes .* Try data\.mode=prepare, or trainer\.max_tokens="),
        (["data=mixture", "data.sources={a: {kind: python_docs, weight: 1}, b: {kind: python_docs, weight: 1}}"],
         r"trainer\.max_epochs=2 counts .* mixture .* Try trainer\.max_steps="),
    ],
)  # fmt: skip
def test_epochs_are_refused_where_a_pass_is_not_defined(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("trainer.max_epochs=2", *words)


@pytest.mark.parametrize("schedule", [CosineConfig(warmup_fraction=0.25), WSDConfig(warmup_fraction=0.25)])
def test_a_warmup_fraction_follows_the_length_of_the_run(schedule: WSDConfig) -> None:
    in_steps = replace(schedule, warmup_fraction=None, warmup_steps=10)
    assert [schedule.lr_multiplier(step, 40) for step in range(40)] == [
        in_steps.lr_multiplier(step, 40) for step in range(40)
    ]
    assert schedule.lr_multiplier(0, math.inf) == 1 / 100  # nothing is known yet: as warmup_steps has it
    length, rates = RunLength(None, 60.0), []
    for step in range(60):
        length.record_step(step + 1.0)
        rates.append(schedule.lr_multiplier(step, length.planned_steps(step)))
    assert rates[:14] == sorted(rates[:14])
    assert rates[6] < 0.55 < 0.99 < max(rates[13:16])  # 15 of 60 seconds


@pytest.mark.slow
def test_a_warmup_is_given_once() -> None:
    assert config("schedule.warmup_fraction=0.1").warmup_steps(max_steps=800) == 80
    with pytest.raises(ConfigError, match=r"warmup_tokens=99 and schedule\.warmup_fraction=0\.1 give one warm-up"):
        WSDConfig(warmup_fraction=0.1, warmup_tokens=99)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_fraction=1\.0 .* Try schedule\.warmup_fraction=0\.02"):
        config("schedule.warmup_fraction=1")
