"""A run folder with checkpoints."""

from pathlib import Path

import pytest
from saved_checkpoints import save


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 12 and 20."""
    for step in (12, 20):
        save(tmp_path / "checkpoints", step)
    return tmp_path
