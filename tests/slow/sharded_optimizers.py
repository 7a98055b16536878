"""Three steps of an optimizer on a model sharded over two processes, and unsharded; torchrun starts it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from families import random_model, shape
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module

from pretrain.objectives.causal import Causal
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import AdamWConfig, MuonConfig, NewtonSchulz, StableAdamWConfig
from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.mesh import build_mesh
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.process_group import end_process


def set_gradients(model: Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=draw)
        sharded = isinstance(parameter, DTensor)
        parameter.grad = (
            distribute_tensor(gradient, parameter.device_mesh, parameter.placements) if sharded else gradient
        )


GROUPS = {"queries": {"match": ["*query.weight"], "learning_rate_ratio": 2.0, "weight_decay": 0.0}}


def main() -> None:
    torch.distributed.init_process_group("gloo")
    for config in (MuonConfig, StableAdamWConfig):
        compare(config(learning_rate=0.02, weight_decay=0.1, groups=GROUPS))
    compare(MuonConfig(learning_rate=0.02, weight_decay=0.1, row_beta2=0.9, cautious_weight_decay=True,
                       newton_schulz_coefficients=NewtonSchulz.polar_express))  # fmt: skip
    end_process()


def compare(config: AdamWConfig) -> None:
    """Print how far the optimizer has moved the weights, and how far apart those of both models are."""
    mesh = build_mesh(ParallelDims(2), "cpu")
    # 33 rows do not divide evenly over two processes
    whole, sharded = (random_model(shape("llama", d_ff=33), 51, causal=True) for _ in range(2))
    parallelize(ModelWithLoss(sharded, Causal()), mesh, ParallelConfig(), None)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    optimizers = [config.build(model) for model in (whole, sharded)]
    before = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    for step in range(3):
        for model, optimizer in zip((whole, sharded), optimizers, strict=True):
            set_gradients(model, step)
            optimizer.step()
    moved, apart = 0.0, 0.0
    for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        moved = max(moved, float((one.detach() - before[name]).abs().max()))
        apart = max(apart, float((one - other.full_tensor()).detach().abs().max()))
    if os.environ["RANK"] == "0":
        print(f"{config.kind} moved {moved} apart {apart}")


if __name__ == "__main__":
    main()
