"""The gradient of one block of a model, compiled and not, to compare before a run compiles its blocks."""

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.kernels.compile import compile_block
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer

_VOCABULARY = 64  # of the model that is tried: hardly any head


class TrialBlock:
    """A model of one block, and rows for it to read."""

    def __init__(
        self, shape: TransformerConfig, rows: int, length: int, causal: bool, bf16: bool, device: torch.device
    ) -> None:
        one = replace(shape, n_layers=1)
        with torch.random.fork_rng():
            self.model = Transformer(one, _VOCABULARY, causal=causal)
            initialize(self.model, one, seed=0)
        self.model.to(device)
        draw = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(_VOCABULARY, (rows, length), generator=draw).to(device)
        self.direction = torch.randn(shape.d_model, generator=draw).to(device)
        self.bf16 = bf16
        self.drops = bool(shape.dropout or shape.attention_dropout)

    def compile(self) -> None:
        """Compile the block, at its next pass."""
        block = self.model.blocks[0]
        assert isinstance(block, torch.nn.Module)
        compile_block(block)

    def gradient(self) -> Tensor:
        """Return the gradient of one pass over all weights, float32 (parameters,); dropout is left out."""
        training = self.model.training
        self.model.zero_grad()
        self.model.train(training and not self.drops)
        self._pass()
        self.model.train(training)
        found = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        self.model.zero_grad()
        return found

    def _pass(self) -> None:
        with torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self.bf16):
            hidden = self.model(self.tokens)
        (hidden.float() @ self.direction).mean().backward()
