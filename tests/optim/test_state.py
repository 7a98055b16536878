"""Optimizer state by parameter name: loaded in a new process, training continues bit for bit."""

from pathlib import Path

import pytest
import torch
from families import random_model, shape
from torch import nn

from pretrain.checkpoint.safetensors_file import TensorFiles, write_tensors
from pretrain.errors import CheckpointError
from pretrain.optim.config import AdamWConfig, MuonConfig, OptimizerConfig
from pretrain.optim.state import load_optimizer_state, optimizer_state

CONFIGS = [AdamWConfig(learning_rate=0.01), MuonConfig(learning_rate=0.01)]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["gpt", "llama", "bert"])
def test_a_saved_state_goes_on_to_the_bit(config: OptimizerConfig, family: str, tmp_path: Path) -> None:
    model = random_model(shape(family), 50, causal=True)
    optimizer = config.build(model)
    train(model, optimizer, range(3))
    write_tensors(tmp_path / "state", optimizer_state(optimizer, model))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, optimizer, range(3, 6))

    resumed = shape(family).build(50, causal=True)
    for name, parameter in resumed.named_parameters():
        parameter.data.copy_(weights[name])
    fresh = config.build(resumed)
    load_optimizer_state(fresh, resumed, dict(TensorFiles([tmp_path / "state"])))
    train(resumed, fresh, range(3, 6))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    ours, theirs = optimizer_state(optimizer, model), optimizer_state(fresh, resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_keys_are_names_and_slots_and_numbers_become_tensors() -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert optimizer_state(optimizer, model) == {}
    train(model, optimizer, range(1))
    optimizer.state[model.weight]["count"] = 7
    state = optimizer_state(optimizer, model)
    assert set(state) == {"weight/momentum_buffer", "bias/momentum_buffer", "weight/count"}
    assert state["weight/count"].item() == 7


def test_state_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match=r"holds gone/exp_avg, but the model has no parameter 'gone'"):
        load_optimizer_state(optimizer, model, {"gone/exp_avg": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"weight/exp_avg has shape \(2, 2\), the parameter \(3, 2\)\. Take the"):
        load_optimizer_state(optimizer, model, {"weight/exp_avg": torch.zeros(2, 2)})


@pytest.mark.parametrize(("wrote", "reads"), [CONFIGS, CONFIGS[::-1]])
def test_state_of_another_optimizer_is_refused(wrote: OptimizerConfig, reads: OptimizerConfig) -> None:
    """A resume that allows its optimizer to change would else fail in the first step, or go on with half a state."""
    model = random_model(shape("gpt"), 50, causal=True)
    optimizer = wrote.build(model)
    train(model, optimizer, range(1))
    with pytest.raises(
        CheckpointError, match=r"keeps no (momentum_buffer|exp_avg|step) there: another optimizer wrote"
    ):
        load_optimizer_state(reads.build(model), model, optimizer_state(optimizer, model))
