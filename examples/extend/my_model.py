"""A model of your own: causal convolutions instead of attention. It has no mask of documents, so turn that off.

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_model]' model=convolution data.document_mask=false
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.registry import register
from pretrain.config.setting import setting
from pretrain.models.config import ModelConfig


@dataclass
class ConvolutionConfig(ModelConfig):
    kind: str = "convolution"
    n_layers: int = setting(4, "Convolutions.", bounds="[1, 1000]")
    width: int = setting(128, "Width of the hidden states.", bounds="[1, 65536]", unit="channels")
    reach: int = setting(8, "Tokens that a convolution reads.", bounds="[1, 65536]", unit="tokens")

    def build(self, vocab_size: int, causal: bool) -> nn.Module:
        return Convolution(self, vocab_size)


class Convolution(nn.Module):
    def __init__(self, config: ConvolutionConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(nn.Conv1d(config.width, config.width, config.reach) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            past = F.pad(x.mT, (block.kernel_size[0] - 1, 0))
            x = x + F.gelu(block(past).mT)
        return self.norm(x)


register("model", ConvolutionConfig)
