"""Fixtures of the planning tests: settings composed as plan.py composes them."""

from collections.abc import Callable

import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import Target
from pretrain.planning.hardware import GIB, Hardware
from pretrain.training.config import Precision

Plan = Callable[..., PlanConfig]
# a machine of round numbers, so that no test measures
CPU = Hardware("a processor", 1e11, 1e11, 16 * GIB, gpu=False, bytes_per_s=1e10)


@pytest.fixture
def plan() -> Plan:
    """Return a function that composes the settings of a plan from overrides."""
    register_schemas("plan", PlanConfig)

    def composed(*words: str) -> PlanConfig:
        found: PlanConfig = compose("plan", list(words))
        return found

    return composed


@pytest.fixture
def target() -> Target:
    """Return a CPU without prepared data, in float32."""
    return Target(CPU, Precision.fp32, vocab_size=2048, data=None)


@pytest.fixture
def cpu() -> Hardware:
    """Return a CPU of round numbers."""
    return CPU
