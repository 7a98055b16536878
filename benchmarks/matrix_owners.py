"""Muon on two processes, its matrices with owners or without: `python benchmarks/matrix_owners.py`.

A GPT of 12 million parameters is trained by two gloo processes of one thread each, sharded (FSDP2) and as copies (DDP).
Ours gives each matrix an owner, which alone orthogonalizes it. The baseline is what this code did before: every process
computes every update, of shards by torch's DTensor, whose matmuls gather and reduce. Both take turns in one run. The
optimizer's step is a part of the whole step that is measured with it. All numbers are in float32.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comparison import Result, take_turns, typed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor
from pretrain.objectives.batch import Batch
from pretrain.objectives.causal import Causal
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import AdamWConfig, MatrixPrecision, MuonConfig
from pretrain.optim.groups import parameters_by_name
from pretrain.optim.muon import Muon, orthogonalize
from pretrain.parallel.mesh import full_tensor
from pretrain.parallel.parity import Case, TrainingTask, prepare_case, train_step
from pretrain.parallel.process_group import end_process

MEASURES = ("src/pretrain/optim", "src/pretrain/parallel", "src/pretrain/models", "src/pretrain/objectives")

VOCABULARY, ROWS, LENGTH = 4096, 8, 256
SHAPE = TransformerConfig(
    n_layers=6, d_model=384, n_heads=6, n_kv_heads=6, context_length=LENGTH, tie_embeddings=False
)  # fmt: skip
MUON = MuonConfig(learning_rate=1e-3, newton_schulz_precision=MatrixPrecision.fp32)
CASES = {"FSDP2": Case(2), "DDP": Case(2, ddp=True)}
BEFORE = "every process computes all"


class WithoutOwners(Muon):
    """Muon whose update every process computes for every matrix, as before matrices had owners."""

    def _step_matrices(self, stacks: list[Any]) -> None:
        for stack in stacks:
            self._step_stack(stack.group, stack.parameters)

    def _step_stack(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        buffers = [
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter)) for parameter in parameters
        ]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1.0 - group["momentum"])
        nesterov = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        updates = orthogonalize(nesterov, group["newton_schulz_steps"], group["newton_schulz_coefficients"])
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"] * scale)


def build(shape: TransformerConfig) -> ModelWithLoss:
    """Return the model on the meta device."""
    with torch.device("meta"):
        return ModelWithLoss(shape.build(VOCABULARY, causal=True), Causal())


def initial(shape: TransformerConfig, name: str, size: torch.Size) -> Tensor:
    """Return the first value of a parameter."""
    return initial_tensor(name, size, shape, seed=0)


def batch_of(step: int) -> Batch:
    """Return rows of random tokens."""
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return Batch(tokens, positions, None, tokens.roll(-1, 1), None, torch.arange(ROWS))


class Training:
    """A model that two processes train, and how long its last step took."""

    def __init__(self, case: Case, shape: TransformerConfig, optimizer: str) -> None:
        self.case, self.step = case, 0
        self.task = TrainingTask(partial(build, shape), partial(initial, shape), batch_of, MUON)
        self.model_with_loss = prepare_case(self.task, case)
        config = AdamWConfig(learning_rate=1e-3) if optimizer == "AdamW" else MUON
        self.optimizer = config.build(self.model_with_loss.model)
        if optimizer == BEFORE:
            self.optimizer = WithoutOwners(self.optimizer.param_groups, lr=MUON.learning_rate)
        self.module = DistributedDataParallel(self.model_with_loss) if case.ddp else self.model_with_loss
        self.optimizer_s = 0.0
        self.optimizer.register_step_pre_hook(self._begin)
        self.optimizer.register_step_post_hook(self._end)

    def _begin(self, *_: Any) -> None:
        torch.distributed.barrier()
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        torch.distributed.barrier()
        self.optimizer_s = time.perf_counter() - self._began

    def __call__(self) -> float:
        """Take a step; return its seconds, until both processes have ended it."""
        torch.distributed.barrier()
        start = time.perf_counter()
        train_step(self.module, self.optimizer, self.task, self.case, self.step)
        torch.distributed.barrier()
        self.step += 1
        return time.perf_counter() - start

    def weights(self) -> dict[str, Tensor]:
        """Return the full weights; every process calls this."""
        named = parameters_by_name(self.model_with_loss.model)
        return {name: full_tensor(weight) for name, weight in named.items()}


def measure(case: Case, shape: TransformerConfig, rounds: int) -> dict[str, Any]:
    """Return seconds by optimizer, of whole steps and of the optimizer's, and how far the weights are apart."""
    trainings = {name: Training(case, shape, name) for name in ("ours", BEFORE, "AdamW")}
    of_optimizer: dict[str, list[float]] = {name: [] for name in trainings}

    def turn(name: str, take: Callable[[], float]) -> float:
        seconds = take()
        of_optimizer[name].append(trainings[name].optimizer_s)
        return seconds

    whole = take_turns({name: partial(turn, name, each) for name, each in trainings.items()}, rounds, warm_up=2)
    own, before = trainings["ours"].weights(), trainings[BEFORE].weights()
    apart = max(float((own[name] - before[name]).abs().max()) for name in own)
    return {"whole": whole, "optimizer": {name: each[2:] for name, each in of_optimizer.items()}, "apart": apart}


def work(rank: int, store: str, shape: TransformerConfig, rounds: int, answers: Any) -> None:
    """Measure all cases on one of the two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name, case in CASES.items():
        found = measure(case, shape, rounds)
        if rank == 0:
            answers.put((name, found))
    end_process()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="steps of each optimizer")
    parser.add_argument("--quick", action="store_true", help="a tiny model, 2 rounds, nothing saved")
    given = parser.parse_args()
    rounds = 2 if given.quick else given.rounds
    shape = (
        TransformerConfig(n_layers=2, d_model=64, n_heads=2, n_kv_heads=2, tie_embeddings=False)
        if given.quick
        else SHAPE
    )
    result = Result("matrix_owners", typed(), {"rounds": rounds})
    answers = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (f"file://{folder}/store", shape, rounds, answers), nprocs=2)
    for _ in CASES:
        name, found = answers.get()
        for what, seconds in (("optimizer's step", found["optimizer"]), ("whole step", found["whole"])):
            target = {BEFORE: 1.0}
            result.add(f"{name}, {what}", "s", seconds, more_is_better=False, targets=target)
        result.figures[f"{name}, largest difference of weights"] = found["apart"]
    result.finish(keep=not given.quick)


if __name__ == "__main__":
    main()
