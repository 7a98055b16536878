"""A step without a finite gradient changes neither weights nor state, to the bit, on one process and on two."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from subjects import subject
from torch import Tensor, multiprocessing, nn

from pretrain.optim.config import AdamWConfig, MatrixPrecision, MuonConfig, OptimizerConfig
from pretrain.optim.groups import skips_on_device
from pretrain.optim.state import optimizer_state
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.mesh import full_tensor
from pretrain.parallel.parity import Case, prepare_case, train_step
from pretrain.parallel.process_group import end_process

OPTIMIZERS = [AdamWConfig(), MuonConfig(newton_schulz_precision=MatrixPrecision.fp32)]


def everything(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return copies of weights and state, whole, with negative zeros told from others."""
    parts = dict(model.named_parameters()) | optimizer_state(optimizer, model)
    return {name: full_tensor(value).clone().view(torch.int32) for name, value in parts.items()}


def plant(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: config.kind)
def test_a_planted_nan_changes_nothing_to_the_bit(config: OptimizerConfig) -> None:
    model = random_model(shape("llama"), 50, causal=True)
    optimizer: Any = config.build(model)
    assert skips_on_device(optimizer)
    plant(model, 0.1)
    optimizer.step()
    before = everything(optimizer, model)
    for bad in (torch.nan, torch.inf, -torch.inf):
        plant(model, bad)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        after = everything(optimizer, model)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    other = random_model(shape("llama"), 50, causal=True)
    plain: Any = config.build(other)
    for each, module in ((optimizer, model), (plain, other)):
        if each is plain:
            plant(module, 0.1)
            each.step()
        else:
            each.found_inf = torch.tensor(0.0)
        plant(module, -0.3)
        each.step()
    found, expected = everything(optimizer, model), everything(plain, other)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_optimizer_of_another_class_does_not_skip_by_itself() -> None:
    weight = [nn.Parameter(torch.zeros(2))]
    assert not skips_on_device(torch.optim.SGD(weight))
    assert not skips_on_device(torch.optim.AdamW(weight))  # not fused
    assert not skips_on_device(type("Mine", (torch.optim.AdamW,), {})(weight, fused=True))


def _work(rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    changed = []
    layouts = ParallelConfig(), ParallelConfig(tensor_parallel=2)
    for config, settings in product(OPTIMIZERS, layouts):
        task, case = subject("llama", config), Case(2, settings)
        model_with_loss = prepare_case(task, case)
        optimizer: Any = config.build(model_with_loss.model)
        train_step(model_with_loss, optimizer, task, case, 0)
        before = everything(optimizer, model_with_loss.model)
        for parameter in model_with_loss.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        after = everything(optimizer, model_with_loss.model)
        changed += [name for name, value in before.items() if not torch.equal(after[name], value)]
        optimizer.found_inf = torch.tensor(0.0)
        train_step(model_with_loss, optimizer, task, case, 1)
        final = everything(optimizer, model_with_loss.model)
        changed += [f"still {name}" for name, value in before.items() if torch.equal(final[name], value)]
    if rank == 0:
        answers.put(changed)
    end_process()


@pytest.mark.slow
def test_a_planted_nan_changes_nothing_where_a_model_is_sharded(tmp_path: Path) -> None:
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    processes: Any = multiprocessing.spawn(_work, (tmp_path / "store", answers), nprocs=2, join=False)  # type: ignore[attr-defined]
    processes.join()
    assert answers.get() == []
