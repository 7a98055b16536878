"""What the tests of planning share: settings composed as plan.py composes them."""

from collections.abc import Callable

import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import Place
from pretrain.planning.hardware import GIB, Hardware

Plan = Callable[..., PlanConfig]
# a machine of round numbers, so that no test measures
CPU = Hardware("a processor", 1e11, 1e11, 16 * GIB, gpu=False, bytes_per_s=1e10)


@pytest.fixture
def plan() -> Plan:
    """Return what composes the settings of a plan from words."""
    register_schemas("plan", PlanConfig)

    def composed(*words: str) -> PlanConfig:
        found: PlanConfig = compose("plan", list(words))
        return found

    return composed


@pytest.fixture
def place() -> Place:
    """Return a processor with nothing prepared, in float32."""
    return Place(CPU, bf16=False, vocab_size=2048, data=None)


@pytest.fixture
def cpu() -> Hardware:
    """Return a processor of round numbers."""
    return CPU
