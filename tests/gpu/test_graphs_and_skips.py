"""On a GPU, CUDA graphs train as plain calls do, and a planted NaN changes nothing, decided on the device."""

import shutil
from typing import Any

import pytest
import torch
from job import Job, files, losses
from subjects import subject
from torch import Tensor, nn

from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import AdamWConfig, MuonConfig, OptimizerConfig, StableAdamWConfig
from pretrain.optim.skipped_steps import skips_on_device
from pretrain.parallel.mesh import load_parameters
from pretrain.training.graphs import MicroBatchGraphs, PlainCalls, capture_on

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own
ON_GPU = ("trainer.accelerator=gpu", "model.d_model=64", "trainer.precision=bf16", "parallel.compile=false")


def trained(family: str, device: torch.device, capture: Any) -> list[Tensor]:
    """Return the loss of each micro-batch, and the gradients of all."""
    task = subject(family, d_model=64)
    model_with_loss: ModelWithLoss = task.build()
    model_with_loss.to_empty(device=device)
    assert isinstance(model_with_loss.model, Transformer)
    model_with_loss.model.tie()
    load_parameters(model_with_loss.model, task.values)
    model_with_loss.train()

    def work(batch: Batch) -> tuple[Tensor, Tensor]:
        loss, count = model_with_loss(batch)
        (loss / 100.0).backward()
        return loss.detach(), count

    graphs = MicroBatchGraphs(work, capture)
    found = [graphs(task.batch(number).to(device))[0].clone() for number in range(5)]
    return [*found, *(each.grad for each in model_with_loss.parameters() if each.grad is not None)]


@pytest.mark.parametrize("family", ["gpt", "llama", "local", "bert", "modern_bert", "hybrid", "diffusion"])
def test_replayed_micro_batches_are_those_of_plain_calls(family: str, gpu: torch.device) -> None:
    graphs, plain = (trained(family, gpu, capture) for capture in (capture_on(gpu), PlainCalls()))
    assert len(graphs) == len(plain)
    for one, other in zip(graphs, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [AdamWConfig(), StableAdamWConfig(), MuonConfig()], ids=lambda each: each.kind)
def test_a_planted_nan_leaves_weights_and_state_equal_to_the_bit(config: OptimizerConfig, gpu: torch.device) -> None:
    task = subject("llama", config)
    model_with_loss: ModelWithLoss = task.build()
    model_with_loss.to_empty(device=gpu)
    load_parameters(model_with_loss.model, task.values)
    model: nn.Module = model_with_loss.model
    optimizer: Any = config.build(model)
    assert skips_on_device(optimizer)

    def everything() -> list[Tensor]:
        state = [each for values in optimizer.state.values() for each in values.values() if isinstance(each, Tensor)]
        return [each.detach().clone() for each in (*model.parameters(), *state)]

    def step(bad: bool) -> None:
        loss, _ = model_with_loss.train()(task.batch(0).to(gpu))
        (loss * torch.nan if bad else loss).backward()
        optimizer.found_inf = torch.tensor(float(bad), device=gpu)
        optimizer.step()
        optimizer.zero_grad()

    step(False)
    before = everything()
    step(True)
    assert all(torch.equal(one, other) for one, other in zip(everything(), before, strict=True))
    step(False)
    assert not all(torch.equal(one, other) for one, other in zip(everything(), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("after_the_cut", ["true", "false"])
def test_a_run_with_graphs_goes_on_exactly(after_the_cut: str, job: Job) -> None:
    """Bit for bit, in bf16, with graphs and without them after the cut."""
    words = [*ON_GPU, "model.dropout=0"]
    whole = job.run("whole", *words, "parallel.cuda_graphs=true")
    cut = shutil.copytree(whole, job.folder / "cut")
    shutil.rmtree(max((cut / "checkpoints").glob("step*")))
    (cut / "report.json").unlink()
    job.run("cut", *words, f"parallel.cuda_graphs={after_the_cut}", "resume=auto")
    assert losses(cut) == losses(whole)
    if after_the_cut == "true":
        assert files(cut) == files(whole)
