"""Checks of the machine: libraries, device, disk, and the checkpoint to resume."""

import re
import shutil
import tomllib
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.doctor import machine
from pretrain.doctor.check import NotApplicableError
from pretrain.doctor.resume import flip_bit
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.attention import Attention

ROOT = Path(__file__).parents[2]


def test_the_versions_are_those_of_the_project():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, (floor, ceiling) in machine.VERSIONS.items():
        assert f"{name}>={floor}" + (f",<{ceiling}" if ceiling else "") in wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "found", "passes"),
    [
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.12.9", False),
        ("torch", "3", True),
        ("lightning", "2.6.5", False),
        ("hydra-core", "1.4.0", False),
        ("omegaconf", None, False),
    ],
)
def test_an_old_or_missing_library_is_found(context, monkeypatch, library, found, passes):
    original = machine.version

    def version(name):
        if name != library:
            return original(name)
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(machine, "version", version)
    finding = machine.versions(context())
    assert finding.passed == passes
    if not passes:
        assert re.search(rf"{library} {found or 'missing'}, but >=.* is required: pip install", finding.figures)


@pytest.mark.slow
def test_a_device_that_is_not_there_is_found(context):
    assert machine.device(context("trainer=cpu")).figures.startswith("cpu, ")
    if not torch.cuda.is_available():
        absent = context("trainer=gpu")
        assert absent.device.type == "cpu"  # what needs one goes on with the processor
        with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu finds no such device here"):
            machine.device(absent)


@pytest.mark.slow
def test_a_gpu_is_named_with_its_memory(context, monkeypatch):
    monkeypatch.setattr(machine, "choose_device", lambda trainer: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**33, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "X100")
    assert machine.device(context()).figures == "X100, 8.0 of 16.0 GiB free"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "words", [[], ["model=llama_nano"], ["model=bert_nano"], ["model=hybrid_nano"], ["model=diffusion_nano"]]
)
def test_the_kernels_of_a_sound_machine_pass(context, words, precision):
    finding = machine.gradients(context(*words, "trainer=cpu", f"trainer.precision={precision}"))
    assert finding.passed, finding
    assert finding.figures.startswith(f"cpu, {precision}: relative error ")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_kernel_with_a_wrong_gradient_is_found(context, monkeypatch, precision):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad / 2

    original = Attention.forward
    wrong = context("trainer=cpu", f"trainer.precision={precision}")
    monkeypatch.setattr(
        Attention,
        "forward",
        lambda self, x, *given: (Halved.apply if x.dtype is not torch.float64 else torch.clone)(
            original(self, x, *given)
        ),
    )
    assert not machine.gradients(wrong).passed


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "copies"),
    [
        ([], 3),
        (["checkpoint.keep=5"], 6),
        (["checkpoint.keep=0"], 4),
        (["checkpoint.keep=0", "trainer.max_steps=-1", "trainer.max_time=1"], 2),
    ],
)
def test_a_full_disk_is_found(context, monkeypatch, words, copies):
    own = context("optimizer=adamw", *words)
    needed = copies * machine.checkpoint_bytes(own)
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder, free=free: Usage(0, 0, free))
        finding = machine.disk_space(own)
        assert finding.passed == fits
        assert finding.figures.startswith(f"{copies} checkpoints of ")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_size_of_a_checkpoint_is_that_of_its_tensors(context, optimizer):
    own = context(f"optimizer={optimizer}")
    model = own.config.model.build(own.prepared.tokenizer.vocab_size, True)
    built = own.config.optimizer.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    state = [value for slots in built.state.values() for value in slots.values() if value.ndim]
    held = sum(4 * tensor.numel() for tensor in [*model.parameters(), *state])
    assert machine.checkpoint_bytes(own) == held
    averaged = context(f"optimizer={optimizer}", "ema.decay=0.9")
    assert machine.checkpoint_bytes(averaged) == held + 4 * sum(parameter.numel() for parameter in model.parameters())
    adapted = context(f"optimizer={optimizer}", "init_from=base", "lora.rank=2")
    assert 4 * sum(parameter.numel() for parameter in model.parameters()) < machine.checkpoint_bytes(adapted) < held


@pytest.mark.slow
def test_the_runs_own_checkpoint_is_verified(context, tmp_path, monkeypatch):
    folder = tmp_path / "logs" / "run" / "checkpoints"
    parts = {part: {"x": torch.zeros(3)} for part in ("model", "optimizer", "random")}
    contents = checkpoint_writing.Contents(parts, {"config": {}, "progress": {}}, lambda to: to.mkdir())
    written = checkpoint_writing.write(folder, 7, contents)
    copy = tmp_path / "bucket" / "run"
    shutil.copytree(folder.parent, copy)
    for words in ([f"resume={folder.parent}"], [f"resume={written}"], ["resume=auto"], [f"resume=file://{copy}"]):
        finding = machine.own_checkpoint(context(*words))
        assert finding.passed
        assert "of step 7: sha256 of every file, 3 tensors read" in finding.figures
    flip_bit(written / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its sha256"):
        machine.own_checkpoint(context(f"resume={folder.parent}"))
    with pytest.raises(NotApplicableError, match="resume=null names no checkpoint"):
        machine.own_checkpoint(context())
