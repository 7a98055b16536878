"""An optimizer of your own: Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675), whose steps have one length.

PYTHONPATH=examples/extend python src/train.py 'plugins=[my_optimizer]' optimizer=lion optimizer.learning_rate=1e-4
"""

from dataclasses import dataclass

import torch
from torch import nn

from pretrain.config.registry import register
from pretrain.config.setting import setting
from pretrain.optim.config import OptimizerConfig


@dataclass
class LionConfig(OptimizerConfig):
    kind: str = "lion"
    beta1: float = setting(0.9, "Part of the momentum in a step.", bounds="[0.0, 1.0)")
    beta2: float = setting(0.99, "Decay of the momentum.", bounds="[0.0, 1.0)")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        settings = {"lr": self.learning_rate, "decay": self.weight_decay, "beta1": self.beta1, "beta2": self.beta2}
        return Lion(model.parameters(), settings)


class Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):  # Lightning runs the closure before
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"])
                p.sub_(group["lr"] * torch.lerp(p.grad, momentum, group["beta1"]).sign())
                momentum.lerp_(p.grad, 1 - group["beta2"])


register("optimizer", LionConfig)
