"""Tests that need a GPU; skipped without one."""

import pytest
import torch


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    """Return the GPU; skips the test where torch finds none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    return torch.device("cuda")
