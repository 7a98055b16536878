"""With graphs emulated by plain calls, losses, gradients, ledger and weights are those of a run without graphs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from same_state import assert_same_state
from subjects import subject
from torch import Tensor

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.collate import IGNORE
from pretrain.errors import ConfigError, Interrupted
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.mesh import load_parameters
from pretrain.training import graphs
from pretrain.training.callbacks.ledger import read_lines
from pretrain.training.graphs import MAX_GRAPHS, MicroBatchGraphs, PlainCalls, capture_on
from pretrain.training.train import run


class Recorded(PlainCalls):
    """Plain calls that insist, as a graph does, on gradients that stay where they were at the recording."""

    def __init__(self, model_with_loss: ModelWithLoss) -> None:
        self.model_with_loss = model_with_loss
        self.replays = 0

    def _addresses(self) -> list[int]:
        return [0 if p.grad is None else p.grad.data_ptr() for p in self.model_with_loss.parameters()]

    def record(self, work: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return work with the check."""
        recorded = self._addresses()

        def replay() -> tuple[Tensor, Tensor]:
            assert self._addresses() == recorded
            self.replays += 1
            return work()

        return replay


def build(family: str) -> ModelWithLoss:
    task = subject(family)
    model_with_loss: ModelWithLoss = task.build()
    model_with_loss.to_empty(device="cpu")
    assert isinstance(model_with_loss.model, Transformer)
    model_with_loss.model.tie()
    load_parameters(model_with_loss.model, task.values)
    return model_with_loss.train()


def micro_batch(family: str, number: int, excluded: bool) -> Batch:
    batch: Batch = subject(family).batch(number)
    if excluded:
        batch.targets[number % len(batch.targets)] = IGNORE
    return batch


def worker(model_with_loss: ModelWithLoss) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    def work(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, count = model_with_loss(batch)
        (loss / 100.0).backward()
        return loss.detach(), count

    return work


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("family", ["gpt", "llama", "local", "bert", "modern_bert", "hybrid", "diffusion"])
def test_losses_and_gradients_are_those_of_plain_calls(family: str, accumulation: int, excluded: bool) -> None:
    plain, captured = build(family), build(family)
    capture = Recorded(captured)
    do_plain, do_captured = worker(plain), MicroBatchGraphs(worker(captured), capture)
    for step in range(3):
        plain.zero_grad(set_to_none=True)
        captured.zero_grad(set_to_none=False)
        for part in range(accumulation):
            batch = micro_batch(family, step * accumulation + part, excluded)
            expected, found = do_plain(batch), do_captured(batch)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
        for one, other in zip(plain.parameters(), captured.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.equal(one.grad, other.grad)
    assert capture.replays > 0


def test_each_shape_has_a_graph_up_to_a_limit() -> None:
    seen: list[Batch] = []

    def work(batch: Batch) -> tuple[Tensor, Tensor]:
        seen.append(batch)
        return batch.targets.sum(), batch.tokens.sum()

    compute, whole = MicroBatchGraphs(work, capture_on(torch.device("cpu"))), micro_batch("gpt", 0, excluded=False)
    for _ in range(3):
        for rows in (1, 2):
            part = whole.map(lambda tensor, rows=rows: tensor[:rows])  # type: ignore[misc]
            assert compute(part) == (part.targets.sum(), part.tokens.sum())
    assert len({id(batch) for batch in seen}) == 2
    assert all(batch.tokens.data_ptr() != whole.tokens.data_ptr() for batch in seen)  # copies
    assert compute(replace(whole, documents=None)) is not None  # an input less is another shape
    for rows in range(1, 2 * MAX_GRAPHS):
        compute(whole.map(lambda tensor, rows=rows: tensor[:1].expand(rows, *tensor.shape[1:])))  # type: ignore[misc]
    assert len(compute._inputs) == MAX_GRAPHS


def words(folder: Path, *more: str) -> list[str]:
    return [
        "logging.ledger=true", "trainer.max_steps=8", "trainer.val_check_interval=3", "checkpoint.every_n_steps=4",
        "micro_batch_size=2", "batch_size=4", "sample.every_n_steps=0", f"paths.run_dir={folder}", *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model=gpt_nano", "model.dropout=0.1", "trainer.precision=bf16"],
        ["model=bert_nano", "optimizer=stable_adamw"],
        ["model=diffusion_nano", "optimizer=adamw"],
        ["model=hybrid_nano"],
    ],
    ids=["causal", "masked", "diffusion", "hybrid"],
)
def test_a_run_with_graphs_ends_as_one_without(
    tiny: Any, tmp_path: Path, settings: list[str], monkeypatch: Any
) -> None:
    made: list[MicroBatchGraphs] = []
    original = graphs.MicroBatchGraphs.__init__

    def note(self: MicroBatchGraphs, *given: Any) -> None:
        made.append(self)
        original(self, *given)

    monkeypatch.setattr(graphs.MicroBatchGraphs, "__init__", note)
    for name, uses in (("without", "false"), ("with", "true")):
        plan = tiny.plan(*words(tmp_path / name, f"parallel.cuda_graphs={uses}", *settings))
        run(replace(plan, excluded=frozenset(str(row) for row in range(0, 400, 3))))
    (one,) = made
    assert one._replays
    assert open_checkpoint(tmp_path / "with").progress["left_out"]
    assert read_lines(tmp_path / "with" / "ledger.jsonl") == read_lines(tmp_path / "without" / "ledger.jsonl")
    assert_same_state(tmp_path / "with", tmp_path / "without")


class Signal(Callback):
    """Sends SIGTERM to the run at a step."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the flag that the handler would set."""
        if trainer.global_step == 4:
            pl_module.signal_received = 15


@pytest.mark.long
def test_graphs_can_be_switched_on_at_a_resume(tiny: Any, tmp_path: Path) -> None:
    settings = ["model=gpt_nano", "model.dropout=0.1", "optimizer=adamw"]
    run(tiny.plan(*words(tmp_path / "whole", *settings)))
    with pytest.raises(Interrupted):
        run(tiny.plan(*words(tmp_path / "cut", *settings)), callbacks=[Signal()])
    run(tiny.plan(*words(tmp_path / "cut", *settings, "parallel.cuda_graphs=true", "resume=auto")))
    assert read_lines(tmp_path / "cut" / "ledger.jsonl") == read_lines(tmp_path / "whole" / "ledger.jsonl")
    assert_same_state(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer=ddp", "trainer.devices=2"], r"trainer\.strategy=ddp is that of several processes"),
        (["trainer.precision=fp16"], r"trainer\.precision=fp16 has a loss scale"),
    ],
)
def test_runs_that_are_no_graphs_are_refused(tiny: Any, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.cuda_graphs=true .*{message}.* Try parallel\.cuda_graphs=false"):
        tiny.config("model=gpt_nano", "parallel.cuda_graphs=true", *settings)


def test_recomputed_activations_are_no_graphs() -> None:
    with pytest.raises(ConfigError, match=r"activation_checkpointing=true, .* Try parallel\.cuda_graphs=false"):
        ParallelConfig(cuda_graphs=True, activation_checkpointing=True)
