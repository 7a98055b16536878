"""A step without a finite gradient changes neither weights nor state, to the bit, on one process and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import random_model, shape
from subjects import subject
from torch import Tensor, multiprocessing, nn

from pretrain.optim.config import AdamWConfig, MatrixPrecision, MuonConfig, OptimizerConfig, StableAdamWConfig
from pretrain.optim.skipped_steps import skips_on_device
from pretrain.optim.state import optimizer_state
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.mesh import full_tensor
from pretrain.parallel.parity import Case, prepare_case, train_step
from pretrain.parallel.process_group import end_process

FP32 = MatrixPrecision.fp32
OPTIMIZERS = {
    "adamw": AdamWConfig(),
    "stable_adamw": StableAdamWConfig(),
    "muon": MuonConfig(newton_schulz_precision=FP32),
    "normuon": MuonConfig(newton_schulz_precision=FP32, row_beta2=0.9, cautious_weight_decay=True),
}


def everything(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the bits of weights and state, whole: a negative zero is told from zero."""
    parts = dict(model.named_parameters()) | optimizer_state(optimizer, model)
    return {name: full_tensor(value).clone().view(torch.int32) for name, value in parts.items()}


def plant(model: nn.Module, seed: int, bad: float = 0.0) -> None:
    """Give every parameter a gradient; one matrix in the middle gets a number that is not finite."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)
        parameter.grad.view(-1)[0] = -0.0
    if bad:
        gradient = model.get_parameter("blocks.0.attention.query.weight").grad
        assert gradient is not None
        gradient[1, 1] = bad


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.mark.fault("F08")
@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_planted_nan_changes_nothing_and_leaves_no_trace(config: OptimizerConfig) -> None:
    model, other = (random_model(shape("llama"), 50, causal=True) for _ in range(2))
    optimizer: Any = config.build(model)
    plain: Any = config.build(other)
    assert skips_on_device(optimizer)
    plant(model, 7, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()  # the very first step, which makes the state
    assert differing(dict(model.state_dict()), dict(other.state_dict())) == []
    for seed, bad in enumerate((0.0, torch.nan, 0.0, torch.inf, -torch.inf, 0.0)):
        before = everything(optimizer, model)
        plant(model, seed, bad)
        optimizer.found_inf = torch.tensor(float(bad != 0.0))
        optimizer.step()
        after = everything(optimizer, model)
        if bad:
            assert differing(after, before) == []
            continue
        plant(other, seed)
        plain.step()
        assert differing(after, everything(plain, other)) == []
        assert len(differing(after, before)) > len(before) / 2


def test_an_optimizer_of_another_class_does_not_skip_by_itself() -> None:
    weight = [nn.Parameter(torch.zeros(2))]
    assert skips_on_device(torch.optim.AdamW(weight, fused=True))
    assert not skips_on_device(torch.optim.SGD(weight))
    assert not skips_on_device(torch.optim.AdamW(weight))  # not fused
    assert not skips_on_device(type("Mine", (torch.optim.AdamW,), {})(weight, fused=True))
    assert not skips_on_device(torch.optim.AdamW([nn.Parameter(torch.zeros(2, device="meta"))], fused=False))


def _work(rank: int, store: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    changed = []
    for kind, config in OPTIMIZERS.items():
        task, case = subject("llama", config), Case(2, ParallelConfig())
        model_with_loss = prepare_case(task, case)
        model: nn.Module = model_with_loss.model
        optimizer: Any = config.build(model)
        assert skips_on_device(optimizer)
        train_step(model_with_loss, optimizer, task, case, 0)
        before = everything(optimizer, model)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        changed += [f"{kind}: {name}" for name in differing(everything(optimizer, model), before)]
        optimizer.found_inf = torch.tensor(0.0)
        train_step(model_with_loss, optimizer, task, case, 1)
        final = everything(optimizer, model)
        changed += [f"{kind}, still: {name}" for name, value in before.items() if torch.equal(final[name], value)]
    if rank == 0:
        answers.put(changed)
    end_process()


@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.slow
def test_a_planted_nan_changes_nothing_where_a_model_is_sharded(tmp_path: Path) -> None:
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    processes: Any = multiprocessing.spawn(_work, (tmp_path / "store", answers), nprocs=2, join=False)  # type: ignore[attr-defined]
    processes.join()
    assert answers.get() == []
