"""Processes wait for the run plan of rank 0, which prepares the text first."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import DistNetworkError, HashStore

from pretrain.errors import RankLostError
from pretrain.training.launch import _received


def test_a_text_takes_longer_to_prepare_than_a_process_may_be_silent() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    later = threading.Timer(0.5, store.set, ("pretrain/run_plan", "{}"))
    later.start()
    assert _received(store) == b"{}"
    later.join()


def test_the_end_of_rank_0_ends_the_wait() -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise DistNetworkError("Connection was reset")

    store: Any = Gone()
    with pytest.raises(RankLostError, match=r"rank 0 ended before it sent the settings .* start all processes again"):
        _received(store)
