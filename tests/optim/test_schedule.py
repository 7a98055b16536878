"""The learning rate over a run, at the points that fix its curve."""

import math

import pytest

from pretrain.errors import ConfigError
from pretrain.optim.config import ConstantConfig, CosineConfig, LinearConfig, ScheduleConfig, WSDConfig


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (110, 0.2), (1000, 0.2),
                        (85, 0.2 + 0.8 * 0.5 * (1 - math.sqrt(0.5)))]
)  # fmt: skip
def test_cosine_climbs_then_falls_along_half_a_cosine(step: int, share: float) -> None:
    assert CosineConfig(warmup_steps=10, final_share=0.2).share(step, max_steps=110) == pytest.approx(share)


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (79, 1.0), (80, 1.0), (90, 0.55), (99, 0.145), (100, 0.1),
                        (500, 0.1)]
)  # fmt: skip
def test_wsd_climbs_stays_and_falls_along_a_line(step: int, share: float) -> None:
    assert WSDConfig(warmup_steps=10, decay_share=0.2, final_share=0.1).share(step, max_steps=100) == pytest.approx(
        share
    )


@pytest.mark.parametrize(("step", "share"), [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.55), (85, 0.325), (110, 0.1)])
def test_linear_climbs_and_falls_along_lines(step: int, share: float) -> None:
    assert LinearConfig(warmup_steps=10, final_share=0.1).share(step, max_steps=110) == pytest.approx(share)


@pytest.mark.parametrize(("step", "share"), [(0, 0.25), (3, 1.0), (4, 1.0), (50, 1.0), (99, 1.0)])
def test_constant_climbs_and_stays(step: int, share: float) -> None:
    assert ConstantConfig(warmup_steps=4).share(step, max_steps=100) == pytest.approx(share)


@pytest.mark.parametrize("schedule", [CosineConfig(), WSDConfig(), LinearConfig(), ConstantConfig()])
@pytest.mark.parametrize("warmup", [0, 1, 7, 50, 80])
@pytest.mark.parametrize("max_steps", [1, 2, 50])
def test_every_step_of_every_run_has_a_share_above_0_and_up_to_1(
    schedule: ScheduleConfig, warmup: int, max_steps: int
) -> None:
    schedule = type(schedule)(warmup_steps=warmup)
    shares = [schedule.share(step, max_steps) for step in range(max_steps)]
    assert all(0.0 < share <= 1.0 for share in shares)
    assert shares[: warmup + 1] == sorted(shares[: warmup + 1])
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)


@pytest.mark.parametrize("schedule", [CosineConfig, WSDConfig, LinearConfig])
def test_settings_out_of_range_are_refused(schedule: type) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps=-1 is negative\. Try schedule\.warmup_steps=0"):
        schedule(warmup_steps=-1)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_tokens=-1 is negative\. Try schedule\.warmup_tokens=0"):
        schedule(warmup_tokens=-1)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match=r"schedule\.final_share=.* is not a share from 0 to 1\. Try"):
            schedule(final_share=share)


@pytest.mark.parametrize("share", [0.0, 1.5, -0.2, math.nan])
def test_a_decay_that_is_no_share_of_the_run_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.decay_share=.* is not a share above 0 and up to 1\. Try"):
        WSDConfig(decay_share=share)


def test_a_schedule_of_no_kind_has_no_course() -> None:
    with pytest.raises(TypeError, match=r"schedule '\?' has no course"):
        ScheduleConfig(warmup_steps=0).share(0, 10)
