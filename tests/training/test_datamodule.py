"""Prefetched micro-batches: the same order and errors, and no thread is left over."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from subjects import Words

from pretrain.errors import DataError
from pretrain.objectives.config import CausalConfig, DiffusionConfig, HybridConfig, MaskedConfig
from pretrain.objectives.hashed_draws import MASK_VERSION
from pretrain.training.datamodule import BatchLoader, TextDataModule


class Numbers:
    """Batches that are their own numbers; batch 5 is damaged, and the text from `waits_at` on is never read."""

    waits_at = 2**62

    def is_waiting(self, index: int) -> bool:
        return index >= self.waits_at

    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise DataError("shard 5 is damaged")
        return index


def loader(start: int, prefetch: int, batches: Any = None) -> BatchLoader:
    return BatchLoader(batches or Numbers(), start, 9, prefetch)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_come_in_order_and_then_the_error(prefetch: int):
    assert list(loader(6, prefetch)) == [6, 7, 8]
    batches = iter(loader(2, prefetch))
    assert [next(batches) for _ in range(3)] == [2, 3, 4]
    with pytest.raises(DataError, match=r"^shard 5 is damaged$"):
        next(batches)
    assert not threads()


@pytest.mark.parametrize("waits_at", [0, 2**62])
def test_a_closed_loader_leaves_no_thread(waits_at: int):
    numbers = Numbers()
    numbers.waits_at = waits_at
    batches = loader(0, 2, numbers)
    iter(batches)
    deadline = time.monotonic() + 10
    while waits_at > 0 and batches._thread._queue.qsize() < 2 and time.monotonic() < deadline:  # type: ignore[union-attr]
        time.sleep(0.01)
    assert threads()
    batches.close()
    assert not threads()


def test_batches_are_copied_in_the_thread_and_received_outside_it() -> None:
    copied, received = [], []

    def copy_ahead(number: Any) -> Any:
        copied.append((number, threading.current_thread().name))
        if number == 4:
            raise DataError("no memory for batch 4")
        return lambda: received.append(threading.current_thread().name) or number

    batches = iter(BatchLoader(Numbers(), 1, 9, 2, copy_ahead))  # type: ignore[arg-type]
    assert [next(batches) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match=r"^no memory for batch 4$"):
        next(batches)
    assert copied == [(number, "prefetch") for number in (1, 2, 3, 4)]
    assert received == [threading.current_thread().name] * 3
    assert not threads()


def test_a_run_goes_on_with_the_masks_that_it_began_with() -> None:
    objective = MaskedConfig().build(Words(), seed=0)
    data: Any = SimpleNamespace(excluded=frozenset(), objective=objective, order=None)
    newest = TextDataModule.state_dict(data)
    assert newest["mask_version"] == MASK_VERSION == 3
    TextDataModule.load_state_dict(data, {})  # of a program that knew one version only
    assert objective.mask_version == 1
    assert TextDataModule.state_dict(data)["mask_version"] == 1
    TextDataModule.load_state_dict(data, newest)
    assert objective.mask_version == 3
    with pytest.raises(DataError, match=r"by mask_version 4, and this program knows 1 to 3\. Resume it with"):
        TextDataModule.load_state_dict(data, {"mask_version": 4})
    hybrid = HybridConfig().build(Words(), seed=0)
    hybrid.mask_version = 1
    assert hybrid.parts["masked"].mask_version == 1
    hybrid.mask_version = MASK_VERSION
    data.objective = hybrid
    TextDataModule.load_state_dict(data, {"objective": "causal"})  # of the stage before, which hid no tokens
    assert hybrid.mask_version == MASK_VERSION
    diffusion = DiffusionConfig().build(Words(), seed=0)
    diffusion.mask_version = 1
    assert diffusion.validation_parts[""].mask_version == 1
    data.objective = CausalConfig().build(Words(), seed=0)
    TextDataModule.load_state_dict(data, {})
    assert "mask_version" not in TextDataModule.state_dict(data)
