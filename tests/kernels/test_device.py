"""How a run computes is decided by what the device can do, not by what else runs on it."""

import pytest
import torch

from pretrain.kernels import device
from pretrain.kernels.device import bf16_is_fast, matmul_flops_per_s

CPU = torch.device("cpu")


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, list[float]]:
    """Take the speeds of each format, one after another, for measured ones; the last stays."""
    found: dict[torch.dtype, list[float]] = {}

    def next_speed(_device: torch.device, dtype: torch.dtype, _seconds: float) -> float:
        return found[dtype].pop(0) if len(found[dtype]) > 1 else found[dtype][0]

    monkeypatch.setattr(device, "matmul_flops_per_s", next_speed)
    return found


@pytest.mark.parametrize(
    ("bf16", "fp32", "fast"),
    [
        ([4e11], [2e11], True),
        ([1.1e11, 1e11, 4e11], [2e11], True),  # held up at first
        ([2e11], [2e11], False),
        ([2.5e11], [5e10, 2e11], False),  # ahead only while the other was held up
    ],
)
def test_a_moment_that_was_held_up_does_not_choose_the_number_format(
    speeds: dict[torch.dtype, list[float]], bf16: list[float], fp32: list[float], fast: bool
) -> None:
    speeds |= {torch.bfloat16: bf16, torch.float32: fp32}
    assert bf16_is_fast(CPU) is fast


def test_a_format_without_instructions_is_not_measured_for_long(speeds: dict[torch.dtype, list[float]]) -> None:
    speeds |= {torch.bfloat16: [1e10, 9e10], torch.float32: [2e11]}
    assert not bf16_is_fast(CPU)
    assert speeds[torch.bfloat16] == [9e10]  # asked for once


def test_a_product_is_measured_at_least_once() -> None:
    assert matmul_flops_per_s(CPU, torch.float32, 0.0) > 1e7
