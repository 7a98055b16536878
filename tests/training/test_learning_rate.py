"""A resume that changes the learning rate warns with both rates."""

from types import SimpleNamespace
from typing import Any

import pytest

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.training.run_length import course_from, run_length
from pretrain.training.startup_summary import rate_change

COSINE = ["schedule=cosine", "schedule.warmup_steps=0", "schedule.min_lr_ratio=0.1", "optimizer.learning_rate=0.01"]
CONSTANT = ["schedule=constant", "schedule.warmup_steps=0"]
UNTIMED = "trainer.max_steps=-1"
LONGER = (
    "the learning rate goes from 0.001 at step 100 to 0.0055 at step 101: schedule=cosine ran over 100 steps before, "
    "and over 200 steps from here on."
)


def config(*words: str) -> RunConfig:
    composed: RunConfig = compose("train", ["model.context_length=32", "batch_size=4", *words])
    return composed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "now", "step", "told"),
    [
        ([*COSINE, "trainer.max_steps=100"], [], 100, None),
        ([*COSINE, "trainer.max_steps=100"], ["trainer.max_steps=200"], 100, LONGER),
        ([*COSINE, "trainer.max_steps=100"], ["trainer.max_steps=60"], 50,
         "from 0.00564 at step 50 to 0.0016 at step 51"),
        ([*COSINE, "trainer.max_steps=100"], ["optimizer.learning_rate=0.02"], 50,
         "the learning rate goes from 0.00564 at step 50 to 0.011 at step 51: its settings have changed."),
        ([*CONSTANT, "trainer.max_steps=100"], ["trainer.max_steps=7"], 5, None),
        (["schedule=wsd", "schedule.warmup_steps=0", "schedule.decay_fraction=0.01", "trainer.max_steps=100"],
         ["trainer.max_steps=200"], 100, None),
        ([*COSINE, UNTIMED, "trainer.max_time=1"], ["trainer.max_time=2"], 100,
         "to 0.00557 at step 101: schedule=cosine ran over 1 minutes before, and over 2 minutes from here on."),
        ([*COSINE, UNTIMED, "trainer.max_tokens=12800"], ["batch_size=8"], 50,
         "over 100 steps before, and over 75 steps"),
    ],
)  # fmt: skip
def test_a_resume_warns_of_a_changed_learning_rate(
    saved: list[str], now: list[str], step: int, told: str | None
) -> None:
    then, new = config(*saved), config(*saved, *now)
    resumed: Any = SimpleNamespace(run_config=lambda: then, whole_config=lambda: then, step=step, progress={})
    course = course_from(new, resumed)
    found = rate_change(resumed, run_length(course.at(step), 60.0, course.sizes), course.sizes)
    assert (found is None) if told is None else (found is not None and told in found), found
