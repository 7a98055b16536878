"""Training on a GPU equals training on a CPU, eager and compiled, and resumes exactly."""

import shutil
from dataclasses import replace

import pytest
import torch
from job import Job, assert_same_weights, files, losses
from subjects import subject

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.collate import IGNORE
from pretrain.language_model import LanguageModel
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.mesh import load_parameters
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.parity import TrainingTask
from pretrain.training.datamodule import BatchLoader, CopyToGpu

pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own
ON_GPU = ("trainer.accelerator=gpu", "model.d_model=64", "trainer.precision=bf16")


def trained(one: TrainingTask, device: str, compiled: bool, steps: int = 5) -> list[float]:
    """Return the losses of some steps of a tiny model, in nats per target."""
    torch.compiler.reset()
    model_with_loss: ModelWithLoss = one.build()
    parallelize(model_with_loss, None, ParallelConfig(compile=compiled), None)
    model_with_loss.to_empty(device=device)
    assert isinstance(model_with_loss.model, Transformer)
    model_with_loss.model.tie()
    load_parameters(model_with_loss.model, one.values)
    optimizer = one.optimizer.build(model_with_loss.model)
    found = []
    for step in range(steps):
        batch = one.batch(step).to(device)
        loss, _ = model_with_loss.train()(batch)
        (loss / (batch.targets != IGNORE).sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(float(loss))
    return found


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", ["gpt", "llama", "local", "bert", "modern_bert", "hybrid", "diffusion"])
def test_a_gpu_trains_what_a_processor_does(family: str, compiled: bool) -> None:
    one = subject(family, d_model=64)
    assert trained(one, "cuda", compiled) == pytest.approx(trained(one, "cpu", False), rel=1e-4)


def test_layers_are_compiled_once() -> None:
    """For batches with and without documents; those without would take another mask, and another minute."""
    from torch._dynamo.utils import counters

    one = subject("local", d_model=64)
    counters.clear()
    model_with_loss: ModelWithLoss = one.build()
    parallelize(model_with_loss, None, ParallelConfig(compile=True), None)
    model_with_loss.to_empty(device="cuda")
    load_parameters(model_with_loss.model, one.values)
    graphs = []
    for step in range(4):
        batch = one.batch(step).to("cuda")
        model_with_loss(replace(batch, documents=None) if step % 2 else batch)[0].backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1:] == graphs[:1] * 3


def test_batches_copied_ahead_are_the_batches(gpu: torch.device) -> None:
    """While the stream of the steps is busy, and more batches are built than are used at once."""
    one = subject("gpt", d_model=64)

    class Batches:
        def is_waiting(self, index: int) -> bool:
            return False

        def __getitem__(self, index: int) -> Batch:
            return one.batch(index)

    ahead = BatchLoader(Batches(), 0, 40, 3, CopyToGpu(gpu))  # type: ignore[arg-type]
    sums = []
    for batch in ahead:
        assert batch.tokens.is_cuda
        torch.cuda._sleep(1_000_000)
        sums.append((batch.tokens * batch.positions).sum())
    assert [int(each) for each in sums] == [
        int((one.batch(index).tokens * one.batch(index).positions).sum()) for index in range(40)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_run_goes_on_exactly(compiled: str, job: Job) -> None:
    """Bit for bit, in bf16, with dropout, with batches copied ahead after the resume only."""
    words = [*ON_GPU, f"parallel.compile={compiled}", "model.dropout=0.1"]
    whole = job.run("whole", *words)
    cut = shutil.copytree(whole, job.folder / "cut")
    shutil.rmtree(max((cut / "checkpoints").glob("step*")))
    (cut / "report.json").unlink()
    job.run("cut", *words, "resume=auto", "data.prefetch=2")
    assert open_checkpoint(cut).step == 10
    assert files(cut) == files(whole)
    assert losses(cut) == losses(whole)
    on_gpu, text = LanguageModel.load(whole, device="cuda"), "seven small birds sing in old trees"
    assert on_gpu.score(text).loss == pytest.approx(LanguageModel.load(whole).score(text).loss, rel=1e-4)
    assert len(on_gpu.generate([text, "the"], max_new_tokens=8)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_gpu_by_either_strategy_is_one_gpu_alone(strategy: str, job: Job) -> None:
    words = [*ON_GPU, "trainer.precision=fp32", "model.dropout=0", "parallel.compile=false", "optimizer=adamw"]
    alone = job.run("alone", *words)
    shared = job.run("shared", *words, f"trainer={strategy}", "trainer.accelerator=gpu", "trainer.devices=1")
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    assert_same_weights(alone, shared, atol=1e-4)
