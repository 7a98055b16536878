"""How long one block of a model takes here: tried before a run, by those who plan it and those who start it."""

import os
import shutil
import sys
import time
from dataclasses import replace

import torch

from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialise
from pretrain.models.size import training_flops_per_token
from pretrain.models.transformer import Transformer

_VOCABULARY = 64  # of the model that is tried: hardly any head


def compiler() -> str:
    """Return the name of the C++ compiler that torch calls on a processor."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def can_compile(device: torch.device) -> bool:
    """Whether blocks can be compiled on this device: on a GPU by Triton, which needs a C compiler."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # here: it asks the GPU

        names = [os.environ["CC"]] if "CC" in os.environ else ["cc", "gcc", "clang"]
        return has_triton() and any(shutil.which(name) for name in names)
    return device.type == "cpu" and shutil.which(compiler()) is not None


class OneBlock:
    """A model of one block, and rows for it to read."""

    def __init__(
        self, shape: TransformerConfig, rows: int, length: int, causal: bool, bf16: bool, device: torch.device
    ) -> None:
        one = replace(shape, n_layers=1)
        with torch.random.fork_rng():
            self.model = Transformer(one, _VOCABULARY, causal=causal)
            initialise(self.model, one, seed=0)
        self.model.to(device)
        self.tokens = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.bf16 = bf16
        self.flops = rows * length * training_flops_per_token(replace(one, context_length=length), _VOCABULARY, 0.0)

    def compile(self) -> None:
        """Compile the block, at its next pass."""
        self.model.blocks[0].compile(dynamic=False)

    def seconds(self, rounds: int = 8) -> list[float]:
        """Return the times of passes forward and backward, after one that does not count."""
        found = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            with torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self.bf16):
                hidden = self.model(self.tokens)
            hidden.float().mean().backward()
            if self.tokens.is_cuda:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return found[1:]
