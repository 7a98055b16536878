"""Compare the state of two runs."""

from pathlib import Path

import torch

from pretrain.checkpoint.read import open_checkpoint


def assert_same_state(one: Path, other: Path) -> None:
    first, second = open_checkpoint(one), open_checkpoint(other)
    assert first.step == second.step
    assert first.progress | {"seconds": 0} == second.progress | {"seconds": 0}
    for part in ("model", "optimizer", "random"):
        a, b = first.tensors(part), second.tensors(part)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), part
