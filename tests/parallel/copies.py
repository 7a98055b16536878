"""Replicated parameters on processes that read the same rows."""

from pathlib import Path
from typing import Any

import torch
from subjects import subject
from torch import multiprocessing
from torch.distributed.tensor import DTensor

from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parity import Case, prepare_case, train_step
from pretrain.parallel.process_group import end_process


def apart(folder: Path, alike: bool) -> float:
    """Return how far the copies of two processes lie apart after five steps with dropout, drawn alike or not."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_work, (folder / f"store-{alike}", alike, answers), nprocs=2)
    return float(answers.get())


def _work(rank: int, store: Path, alike: bool, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    case = Case(2, ParallelConfig(tensor_parallel=2))
    torch.manual_seed(case.parallel_dims.gradient_rank(rank) if alike else rank)
    one = subject("gpt", dropout=0.2, attention_dropout=0.2)
    model_with_loss = prepare_case(one, case)
    optimizer = one.optimizer.build(model_with_loss.model)
    for step in range(5):
        train_step(model_with_loss, optimizer, one, case, step)
    largest = 0.0
    for name, parameter in parameters_by_name(model_with_loss.model).items():
        if "norm" in name:
            assert isinstance(parameter, DTensor)
            copies = [torch.empty_like(parameter.to_local()) for _ in range(2)]
            torch.distributed.all_gather(copies, parameter.to_local().detach())
            largest = max(largest, float((copies[0] - copies[1]).abs().max()))
    if rank == 0:
        answers.put(largest)
    end_process()
