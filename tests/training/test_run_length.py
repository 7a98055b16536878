"""A run ends at its step, its tokens or its time, and its schedule with it."""

import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.optim.schedules import CosineConfig, LinearConfig, WSDConfig
from pretrain.training.run_length import RunLength, run_length


def config(*words: str) -> RunConfig:
    register_schemas("train", RunConfig)
    composed: RunConfig = compose("train", [*words, "model.context_length=32", "batch_size=4"])
    return composed


def test_steps_and_tokens_and_time_are_limits_side_by_side() -> None:
    assert run_length(config("trainer.max_steps=7")).max_steps == 7
    assert run_length(config("trainer.max_steps=7", "trainer.max_tokens=512")).max_steps == 4
    assert run_length(config("trainer.max_steps=7", "trainer.max_tokens=5120")).max_steps == 7
    assert run_length(config("trainer.max_steps=-1", "trainer.max_tokens=639")).max_steps == 4  # never more than given
    timed = run_length(config("trainer.max_steps=-1", "trainer.max_time=1.5"), seconds=60.0)
    assert (timed.max_steps, timed.max_seconds, timed.seconds) == (None, 90.0, 60.0)
    assert str(timed) == "1.5 minutes"
    assert str(RunLength(1000, 60.0)) == "1,000 steps or 1 minutes"
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
