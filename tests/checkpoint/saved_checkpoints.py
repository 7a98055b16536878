"""Small checkpoints to read, damage and delete."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.write import Contents, write


def save_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text("{}")


def parts(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((3, 2), float(step))},
        "optimizer": {"weight/exp_avg": torch.zeros(3, 2), "weight/step": torch.tensor(1.0)},
        "random": {"torch": torch.get_rng_state(), "python_gauss": torch.zeros(0)},
    }


def contents(step: int, save_tokenizer: Callable[[Path], None] = save_tokenizer) -> Contents:
    return Contents(parts(step), {"config": {"seed": 1}, "progress": {"tokens_seen": 7}}, save_tokenizer)


def save(parent: Path, step: int = 12) -> Path:
    return write(parent, step, contents(step))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
