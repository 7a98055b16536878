"""Three steps of an optimizer on one process, and on two that share a model in each way; torchrun starts it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from families import random_model, shape
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module

from pretrain.models.transformer import Transformer
from pretrain.objectives.causal import Causal
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import AdamWConfig, MuonConfig, NewtonSchulz, StableAdamWConfig
from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.mesh import build_mesh, full_tensor
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


CONFIGS = (
    MuonConfig(learning_rate=0.02, weight_decay=0.1, groups=GROUPS),
    StableAdamWConfig(learning_rate=0.02, weight_decay=0.1, groups=GROUPS),
    MuonConfig(learning_rate=0.02, weight_decay=0.1, row_beta2=0.9, cautious_weight_decay=True,
               newton_schulz_coefficients=NewtonSchulz.polar_express),
)  # fmt: skip
EVEN, ODD = {"d_ff": 34}, {"d_ff": 33}  # an odd number of rows does not divide evenly over two processes
LAYOUTS = {
    "shards": (ParallelDims(2), EVEN),
    "uneven shards": (ParallelDims(2), ODD),
    "split": (ParallelDims(2, tensor=2), EVEN),
    "replicas": (ParallelDims(2, replicas=2), EVEN),
}


def main() -> None:
    alone = [[trained(build(size), config) for size in (EVEN, ODD)] for config in CONFIGS]  # before there is a group
    torch.distributed.init_process_group("gloo")
    for config, (even, odd) in zip(CONFIGS, alone, strict=True):
        moved = distance(weights_of(build(EVEN)), even)
        apart = {"copies": distance(trained(build(EVEN), config), even)}
        for name, (dims, size) in LAYOUTS.items():
            model = build(size)
            parallelize(ModelWithLoss(model, Causal()), build_mesh(dims, "cpu"), ParallelConfig(), None)
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
            apart[name] = distance(trained(model, config), odd if size is ODD else even)
        if os.environ["RANK"] == "0":
            print(f"{config.kind} moved {moved} apart {max(apart.values())} {apart}")
    end_process()


def build(size: dict[str, int]) -> Transformer:
    return random_model(shape("llama", **size), 52, causal=True)


def trained(model: Transformer, config: AdamWConfig) -> dict[str, Tensor]:
    """Return the full weights after three steps."""
    optimizer = config.build(model)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step()
    return weights_of(model)


def weights_of(model: Transformer) -> dict[str, Tensor]:
    return {name: full_tensor(parameter) for name, parameter in parameters_by_name(model).items()}


def distance(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(float((value - expected[name]).abs().max()) for name, value in weights.items())


if __name__ == "__main__":
    main()
