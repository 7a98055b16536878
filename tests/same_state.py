"""Compare the state of two runs."""

from collections.abc import Collection
from pathlib import Path

import torch

from pretrain.checkpoint.read import open_checkpoint


def assert_same_state(one: Path, other: Path, but: Collection[str] = (), parts: Collection[str] = ()) -> None:
    """Compare the newest checkpoints of two runs: counters, but for these names, and tensors, of more `parts` too."""
    first, second = open_checkpoint(one), open_checkpoint(other)
    assert first.step == second.step
    counters = [{name: value for name, value in each.progress.items() if name not in but} for each in (first, second)]
    assert counters[0] | {"seconds": 0} == counters[1] | {"seconds": 0}
    for part in ("model", "optimizer", "random", *parts):
        a, b = first.tensors(part), second.tensors(part)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part
