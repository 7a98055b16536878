"""The feed-forward layer of a block, plain or gated."""

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.kernels.gelu import gelu_tanh
from pretrain.models.config import Activation, TransformerConfig


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Return the element-wise non-linearity of `activation`; of a gated one, its gate's."""
    if activation is Activation.swiglu:
        return F.silu(x)
    if activation is Activation.relu2:
        return F.relu(x).square()
    return gelu_tanh(x) if activation is Activation.gelu_tanh else F.gelu(x)


class FeedForward(nn.Module):
    """Two or, gated, three matrices with a non-linearity between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.feed_forward
        self.gate = nn.Linear(config.d_model, config.ff_width, bias=config.bias) if config.gated else None
        self.up = nn.Linear(config.d_model, config.ff_width, bias=config.bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x (B, T, d_model), same shape."""
        if self.gate is None:
            return self.down(activate(self.up(x), self.activation))
        return self.down(activate(self.gate(x), self.activation) * self.up(x))
