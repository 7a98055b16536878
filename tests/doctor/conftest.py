"""Contexts for the checks: settings and corpus of a run that takes about a second."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config.compose import compose
from pretrain.doctor.context import Context


@pytest.fixture
def context(tiny, tmp_path: Path) -> Callable[..., Context]:
    """Return what makes a subject of more words after those of a tiny run."""

    def make(*words: str) -> Context:
        folder = tmp_path / "doctor"
        folder.mkdir(exist_ok=True)
        given = [word for word in tiny.words if not word.startswith("data")] if "data=mixture" in words else tiny.words
        return Context(compose("train", [*given, *words]), folder)

    return make
