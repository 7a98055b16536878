"""An object storage in memory whose requests can be counted, slowed, refused or killed."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pretrain.checkpoint.remote import runs_below
from pretrain.files.object_storage import RemoteFolder

URL = "memory://bucket/logs"
_REQUESTS = ("find", "open", "get_file", "put_file", "pipe_file", "rm_file")


class Killed(BaseException):
    """Stands for the death of the process in the middle of a request."""


class FaultyStorage:
    """Counts requests as (name, path); `before` is called ahead of each and may raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda request, path: None
        for name in _REQUESTS:
            monkeypatch.setattr(MemoryFileSystem, name, self._counted(name, getattr(MemoryFileSystem, name)))
        monkeypatch.setattr(MemoryFileSystem, "store", {})
        monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])

    def _counted(self, name: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def counted(system: MemoryFileSystem, *arguments: Any, **named: Any) -> Any:
            path = str(arguments[1] if name == "put_file" else arguments[0])
            self.requests.append((name, path))
            self.before(name, path)
            return request(system, *arguments, **named)

        return counted

    def kill_at(self, number: int) -> None:
        """Raise Killed at the request of this number from here on, and at all later ones."""
        start = len(self.requests)

        def before(request: str, path: str) -> None:
            if len(self.requests) - start > number:
                raise Killed

        self.before = before

    def refuse(self, error: Exception, *, times: int = 1_000_000, only: tuple[str, ...] = _REQUESTS) -> None:
        """Raise an error at the next requests of these kinds."""
        left = [times]

        def before(request: str, path: str) -> None:
            if request in only and left[0]:
                left[0] -= 1
                raise error

        self.before = before

    def slow_down(self, seconds: float) -> None:
        """Let every write take a while."""

        def before(request: str, path: str) -> None:
            if request in ("put_file", "pipe_file"):
                time.sleep(seconds)

        self.before = before

    def heal(self) -> None:
        """Let every request pass again."""
        self.before = lambda request, path: None


def steps_at(url: str = URL) -> list[int]:
    """Return the steps of the checkpoints that a reader sees, over all runs."""
    runs = runs_below(RemoteFolder(url, retry_s=0.0))
    return [int(step.removeprefix("step-")) for run in runs for step in run.checkpoints]
