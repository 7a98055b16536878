"""The gradient of one block of a model, to compare compiled and eager before a run compiles its blocks."""

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.kernels.compile import compile_block
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer

_VOCAB_SIZE = 64  # small, so that the head costs little


class TrialBlock:
    """A model of one block and random tokens (B, T), in autocast to `half` if there is one; `size` is (B, T)."""

    def __init__(
        self,
        config: TransformerConfig,
        size: tuple[int, int],
        causal: bool,
        half: torch.dtype | None,
        device: torch.device,
    ) -> None:
        config = replace(config, n_layers=1, global_attention_layers=[])  # a list may name layers after the first
        with torch.random.fork_rng():
            self.model = Transformer(config, _VOCAB_SIZE, causal=causal)
            initialize(self.model, config, seed=0)
        self.model.to(device)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(_VOCAB_SIZE, size, generator=generator).to(device)
        self.direction = torch.randn(config.d_model, generator=generator).to(device)
        self.half = half
        self.has_dropout = bool(config.dropout or config.attention_dropout)

    def compile(self) -> None:
        """Compile the block at its next forward pass."""
        block = self.model.blocks[0]
        assert isinstance(block, torch.nn.Module)
        compile_block(block)

    def gradient(self) -> Tensor:
        """Return the gradient of all weights after one pass without dropout, float32 (parameters,)."""
        training = self.model.training
        self.model.zero_grad()
        self.model.train(training and not self.has_dropout)
        half = self.half or torch.bfloat16
        with torch.autocast(self.tokens.device.type, half, enabled=self.half is not None):
            hidden = self.model(self.tokens)
        (hidden.float() @ self.direction).mean().backward()
        self.model.train(training)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        self.model.zero_grad()
        return gradient
