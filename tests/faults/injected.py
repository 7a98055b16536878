"""Faults that a child process injects into itself before it trains."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.errors import DataError
from pretrain.training.datamodule import MicroBatches

SAVE = 2  # the save to die in: an earlier checkpoint is there, and another run's worth of work after it
PRUNING_SAVE = 3  # with two kept, the first save that has something to prune


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(number: int, name: str, around: Callable[..., Any]) -> None:
    """Replace a function of the module that writes checkpoints by one that at its n-th call hands over to `around`."""
    original, calls = getattr(checkpoint_writing, name), [0]

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return (partial(around, original) if calls[0] == number else original)(*arguments, **named)

    setattr(checkpoint_writing, name, counted)


def before_data() -> None:
    _at_call(SAVE, "_write_shards", lambda original, *arguments: die())


def amid_data() -> None:
    """Die with half of the optimizer's file on the disk."""

    def half(original: Callable[..., str], path: Path, *arguments: Any) -> None:
        original(path, *arguments)
        os.truncate(path, path.stat().st_size // 2)
        die()

    _at_call(2 + 3 * (SAVE - 1), "write_tensors", half)  # three files a save, the optimizer's is the second


def _when(matches: Callable[[Path, int], bool], save: int) -> Callable[[Any], Any]:
    seen = [0]

    def reached(path: Path, count: int = 0) -> bool:
        if matches(path, count):
            seen[0] += 1
        return seen[0] == save and matches(path, count)

    return reached


def _die_on_flush(name: str) -> None:
    original, reached = checkpoint_writing.sync_to_disk, _when(lambda path, _: path.name == name, SAVE)

    def flush(path: Path) -> None:
        if reached(path):
            die()
        original(path)

    checkpoint_writing.sync_to_disk = flush


def before_manifest() -> None:
    _die_on_flush("tokenizer")


def before_rename() -> None:
    _die_on_flush("manifest.json")


def after_rename() -> None:
    _die_on_flush("checkpoints")


def amid_prune() -> None:
    """Die with an old checkpoint renamed and half deleted."""

    def half(original: Callable[..., None], folder: Path) -> None:
        doomed = folder.with_name(f"{folder.name}.tmp")
        folder.rename(doomed)
        (doomed / "model.safetensors").unlink()
        die()

    _at_call(PRUNING_SAVE - 2, "_remove", half)


def full_disk() -> None:
    """From the second save on, the disk is full after the first file."""

    def full(original: Callable[..., str], path: Path, *arguments: Any) -> None:
        path.write_bytes(b"\0" * 100)
        raise OSError(28, "No space left on device")

    _at_call(2 + 3 * (SAVE - 1), "write_tensors", full)


def no_room() -> None:
    """Before the second save, another program takes what was free."""
    original, calls = shutil.disk_usage, [0]

    def usage(path: Path) -> Any:
        calls[0] += 1
        found = original(path)
        return type(found)(found.total, found.total, 1000) if calls[0] > 2 else found

    shutil.disk_usage = usage  # type: ignore[assignment]


def read_only() -> None:
    """From the second save on, the file system takes no more writes, as after a fault of the disk."""

    def refuse(original: Callable[..., None], *arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    _at_call(SAVE, "_begin", refuse)


def clock_jumps() -> None:
    """The wall clock goes back and forth by hours, at every look at it."""
    original, draw = time.time, random.Random(0)
    time.time = lambda: original() + draw.uniform(-36_000, 36_000)


def shard_damaged() -> None:
    """The prefetch thread reads a damaged shard."""
    original = MicroBatches.__getitem__

    def read(self: MicroBatches, index: int) -> Any:
        if index == 10:
            raise DataError("shards/00000.tok holds token 999 at offset 5")
        return original(self, index)

    MicroBatches.__getitem__ = read  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__: fault
    for fault in (
        before_data,
        amid_data,
        before_manifest,
        before_rename,
        after_rename,
        amid_prune,
        full_disk,
        no_room,
        read_only,
        clock_jumps,
        shard_damaged,
    )
}
