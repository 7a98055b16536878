"""The learning rate at the points that determine its curve."""

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.errors import ConfigError
from pretrain.optim.schedules import ConstantConfig, CosineConfig, Decay, LinearConfig, ScheduleConfig, WSDConfig


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (110, 0.2), (1000, 0.2),
                        (85, 0.2 + 0.8 * 0.5 * (1 - math.sqrt(0.5)))]
)  # fmt: skip
def test_cosine_climbs_then_falls_along_half_a_cosine(step: int, share: float) -> None:
    assert CosineConfig(warmup_steps=10, min_lr_ratio=0.2).lr_multiplier(step, max_steps=110) == pytest.approx(share)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (90, 0.55), (99, 0.145), (100, 0.1),
                        (500, 0.1)]
)  # fmt: skip
def test_wsd_climbs_stays_and_falls_along_a_line(step: int, share: float) -> None:
    assert WSDConfig(warmup_steps=10, decay_fraction=0.2, min_lr_ratio=0.1).lr_multiplier(
        step, max_steps=100
    ) == pytest.approx(share)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (9, 1.0), (80, 1.0), (85, 0.1 + 0.9 * 0.5),
                        (99, 0.1 + 0.9 * (1 - math.sqrt(0.95))),
                        (100, 0.1), (500, 0.1)]
)  # fmt: skip
def test_wsd_falls_along_1_minus_sqrt_too(step: int, share: float) -> None:
    schedule = WSDConfig(warmup_steps=10, decay_fraction=0.2, min_lr_ratio=0.1, decay=Decay.one_minus_sqrt)
    assert schedule.lr_multiplier(step, max_steps=100) == pytest.approx(share)
    assert schedule.lr_multiplier(step, math.inf) == min(1.0, (step + 1) / 10)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.55), (85, 0.325), (110, 0.1), (500, 0.1)]
)
def test_linear_climbs_and_falls_along_lines(step: int, share: float) -> None:
    assert LinearConfig(warmup_steps=10, min_lr_ratio=0.1).lr_multiplier(step, max_steps=111) == pytest.approx(share)


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (3, 1.0), (4, 1.0), (50, 1.0), (99, 1.0)])
def test_constant_climbs_and_stays(step: int, share: float) -> None:
    assert ConstantConfig(warmup_steps=4).lr_multiplier(step, max_steps=100) == pytest.approx(share)


def steepest(schedule: ScheduleConfig, max_steps: int) -> float:
    """Return the largest change from one step to the next that the course of a schedule has behind its warm-up."""
    behind = max_steps - schedule.warmup_steps
    if isinstance(schedule, CosineConfig):
        return (1 - schedule.min_lr_ratio) * math.pi / 2 / behind
    if isinstance(schedule, LinearConfig):
        return (1 - schedule.min_lr_ratio) / max(1, behind - 1)
    if isinstance(schedule, WSDConfig):
        return (1 - schedule.min_lr_ratio) / max(1, min(round(schedule.decay_fraction * max_steps), behind))
    return 0.0


def last(schedule: ScheduleConfig, max_steps: int) -> float:
    """Return the share of a run's last step, as the docstrings state it."""
    behind = max_steps - schedule.warmup_steps
    if isinstance(schedule, ConstantConfig) or behind == 1:
        return 1.0
    if isinstance(schedule, CosineConfig):
        return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * (1 - math.cos(math.pi / behind)) / 2
    if isinstance(schedule, WSDConfig):
        return schedule.min_lr_ratio + steepest(schedule, max_steps)
    assert isinstance(schedule, LinearConfig)
    return schedule.min_lr_ratio


KINDS = st.sampled_from([CosineConfig, WSDConfig, LinearConfig, ConstantConfig])
PART = st.floats(0.0, 1.0)


@pytest.mark.slow
@given(KINDS, st.integers(1, 300), st.integers(0, 320), PART, st.floats(0.001, 1.0))
@example(WSDConfig, 20, 18, 0.0, 0.5)  # the warm-up reaches into the decay: it jumped from 1 to 0.2
@example(LinearConfig, 20, 0, 0.1, 0.5)  # its last step was one short of the end
@settings(max_examples=300, deadline=None)
def test_no_rate_jumps_and_the_last_is_what_the_schedule_promises(
    kind: type[ScheduleConfig], max_steps: int, warmup: int, final: float, decay: float
) -> None:
    values = {"min_lr_ratio": final, "decay_fraction": decay, "warmup_steps": warmup}
    schedule = kind(**{name: value for name, value in values.items() if name in kind.__dataclass_fields__})  # type: ignore[arg-type]
    shares = [schedule.lr_multiplier(step, max_steps) for step in range(max_steps)]
    climb, course = shares[:warmup], shares[warmup:]
    assert climb == pytest.approx([(step + 1) / warmup for step in range(len(climb))])
    assert all(0.0 <= share <= 1.0 for share in shares)
    if not course:
        return
    assert course[0] == 1.0
    steps = [before - after for before, after in itertools.pairwise(course)]
    assert all(-1e-12 <= step <= steepest(schedule, max_steps) + 1e-12 for step in steps)
    assert course[-1] == pytest.approx(last(schedule, max_steps))
    behind_the_end = 1.0 if kind is ConstantConfig else final
    assert schedule.lr_multiplier(max_steps + 5, max_steps) == pytest.approx(behind_the_end)


@pytest.mark.parametrize("schedule", [CosineConfig(), WSDConfig(), LinearConfig(), ConstantConfig()])
def test_a_run_whose_end_nobody_knows_yet_stays_at_the_height(schedule: ScheduleConfig) -> None:
    assert schedule.lr_multiplier(1000, math.inf) == 1.0


@pytest.mark.parametrize("schedule", [CosineConfig, WSDConfig, LinearConfig])
def test_settings_out_of_range_are_refused(schedule: type) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=-1 is negative\. Try schedule\.warmup_steps=0"):
        schedule(warmup_steps=-1)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_tokens=-1 is negative\. Try schedule\.warmup_tokens=0"):
        schedule(warmup_tokens=-1)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"schedule\.min_lr_ratio=.* is not a share from 0 to 1\. Try"):
            schedule(min_lr_ratio=share)


@pytest.mark.parametrize("share", [0.0, 1.5, -0.2, math.nan])
def test_a_decay_that_is_no_share_of_the_run_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.decay_fraction=.* is not a share above 0 and up to 1\. Try"):
        WSDConfig(decay_fraction=share)


def test_a_schedule_of_no_kind_has_no_course() -> None:
    with pytest.raises(TypeError, match=r"schedule '\?' has no after_warmup"):
        ScheduleConfig(warmup_steps=0).lr_multiplier(0, 10)
