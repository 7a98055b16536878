"""Communication of one step per case, counted by torch in processes of its own."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from subjects import subject
from torch import multiprocessing
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.optim.config import OptimizerConfig
from pretrain.parallel.parity import Case, prepare_case, train_step
from pretrain.parallel.process_group import end_process


class Collectives(TorchDispatchMode):
    """Counts collectives by name, as torch's CommDebugMode, which cannot follow a second forward pass (torch 2.13)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as the operations of this process
        sends = "wait" not in func._opname and "wrap" not in func._opname
        if func.namespace in ("c10d", "_c10d_functional") and sends:
            self.counts[func._opname.strip("_")] += 1
        return func(*args, **(kwargs or {}))


def counted(
    cases: dict[str, Case], folder: Path, optimizer: OptimizerConfig | None = None
) -> dict[str, dict[str, Counter[str]]]:
    """Return for each case the collectives of its second step by name, on two processes."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_work, (folder / "store", cases, optimizer, answers), nprocs=2)
    return answers.get()


def _work(rank: int, store: Path, cases: dict[str, Case], config: OptimizerConfig | None, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, case in cases.items():
        one = subject("llama", config, tie_embeddings=name == "tied")
        model_with_loss = prepare_case(one, case)
        optimizer = one.optimizer.build(model_with_loss.model)
        module = DistributedDataParallel(model_with_loss) if case.ddp else model_with_loss
        train_step(module, optimizer, one, case, 0)
        with Collectives() as collectives:
            train_step(module, optimizer, one, case, 1)
        found[name] = collectives.counts
    if rank == 0:
        answers.put(found)
    end_process()
