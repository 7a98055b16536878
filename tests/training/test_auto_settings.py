"""Settings that are auto: the device, and parallel.compile, on for long runs on GPUs and on CPUs when asked."""

import inspect
import platform
import shutil
import sys
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.utils._triton

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.config.stages import course_of
from pretrain.errors import ConfigError
from pretrain.kernels.block_gradient import TrialBlock
from pretrain.kernels.compile import avoid_wrong_code
from pretrain.parallel.device import choose_device
from pretrain.training import auto_settings
from pretrain.training.auto_settings import resolve_compile, resolve_precision
from pretrain.training.config import Precision, TrainerConfig
from pretrain.training.run_length import run_length
from pretrain.training.startup_summary import startup_summary
from pretrain.training.strategy import MeshDDPStrategy, build_strategy

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # by torch, as it compiles
CPU = torch.device("cpu")
LONG = ("trainer.max_time=60", "trainer.max_steps=-1")


def settings(*words: str) -> RunConfig:
    tiny = ("model.n_layers=2", "model.d_model=32", "model.context_length=64", "trainer.precision=fp32", "batch_size=2")
    found: RunConfig = compose("train", [*tiny, *words])
    return found


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Take two gradients, without and with compiling, for those of a block; those left over were not taken."""
    found: list[torch.Tensor] = []
    monkeypatch.setattr(TrialBlock, "compile", lambda _: None)
    monkeypatch.setattr(TrialBlock, "gradient", lambda _: found.pop(0))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return found


@pytest.mark.slow
def test_a_cpu_compiles_only_when_asked(gradients: list[torch.Tensor]) -> None:
    for words in (LONG, (*LONG, "parallel.compile=false")):
        config = settings(*words)
        config = resolve_compile(config, CPU)
        assert config.parallel.compile is False
    gradients += [torch.ones(3), torch.ones(3) + 0.01]
    config = settings("parallel.compile=true")
    state = torch.get_rng_state()
    config = resolve_compile(config, CPU)
    assert config.parallel.compile is True
    assert not gradients
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "why"), [("fp32", "auto becomes fp32"), ("fp16", "fp16 has no number above")])
def test_a_residual_stream_in_16_bits_is_one_of_bf16(precision: str, why: str) -> None:
    message = rf"half_residual_stream=true .*is fp(32|16): {why}.*Try trainer\.precision=bf16"
    with pytest.raises(ConfigError, match=message):
        settings(f"trainer.precision={precision}", "trainer.half_residual_stream=true")


def test_a_residual_stream_in_16_bits_is_refused_where_auto_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("trainer.precision=auto", "trainer.half_residual_stream=true")
    monkeypatch.setattr("pretrain.training.auto_settings.auto_precision", lambda _: Precision.fp32)
    with pytest.raises(ConfigError, match=r"half_residual_stream=true .* auto becomes fp32"):
        resolve_precision(config, CPU)


@pytest.mark.slow
def test_a_block_is_tried_with_the_residual_stream_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[TrialBlock] = []

    def gradient(block: TrialBlock) -> torch.Tensor:
        tried.append(block)
        return torch.ones(3)

    monkeypatch.setattr(TrialBlock, "compile", lambda _: None)
    monkeypatch.setattr(TrialBlock, "gradient", gradient)
    words = ["parallel.compile=true", "trainer.precision=bf16"]
    for stream in (False, True):
        resolve_compile(settings(*words, f"trainer.half_residual_stream={stream}".lower()), CPU)
        assert tried[-1].model.embeddings.stream.half_stream is stream


@pytest.mark.slow
def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = settings(*LONG)
    config = resolve_compile(config, CPU)
    assert config.parallel.compile is False
    with pytest.raises(
        ConfigError, match=r"parallel\.compile=true needs a C\+\+ compiler.*no-such-compiler is missing"
    ):
        resolve_compile(settings("parallel.compile=true"), CPU)


@pytest.mark.parametrize("wrong", [float("nan"), 1.2])
def test_a_compiler_that_makes_wrong_code_is_not_used(
    wrong: float, gradients: list[torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    gradients += [torch.ones(3), torch.tensor([1.0, 1.0, wrong])]
    config = settings("parallel.compile=true")
    config = resolve_compile(config, CPU)
    assert config.parallel.compile is False
    assert "warning: parallel.compile=false: the gradient of a compiled block differs by" in (capsys.readouterr().out)


@pytest.mark.parametrize("dropout", ["0", "0.1"])
def test_the_gradient_of_a_block_is_the_same_each_time(dropout: str) -> None:
    model = settings(f"model.dropout={dropout}").model
    block = TrialBlock(model, (2, 16), causal=True, half=None, device=CPU)  # type: ignore[arg-type]
    found = block.gradient()
    assert found.norm() > 0
    assert torch.equal(block.gradient(), found)
    assert block.model.training


def test_flags_against_wrong_code_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for cxx, before, after in (
        ("g++", None, "native -fno-tree-slp-vectorize"),
        ("g++", "native", "native"),  # what the user has set stands
        ("clang++", None, None),
    ):
        monkeypatch.setenv("CXX", cxx)
        with config.patch({"cpp.march": before}):
            avoid_wrong_code()
            assert config.cpp.march == after


@pytest.mark.slow
def test_a_gpu_compiles_every_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(auto_settings, "peak_flops_per_s", lambda *_: (1e15, "documented"))
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    config = settings(*LONG)
    config = resolve_compile(config, gpu)
    assert config.parallel.compile is True
    short = settings("trainer.max_steps=50")
    short = resolve_compile(short, gpu)
    assert short.parallel.compile is False
    epochs = settings("trainer.max_epochs=2", "trainer.max_steps=-1")
    assert auto_settings.depends_on_text(epochs, gpu)
    assert not auto_settings.depends_on_text(epochs, CPU)
    assert [resolve_compile(epochs, gpu, tokens).parallel.compile for tokens in (10**5, 10**13)] == [False, True]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_startup_summary_mentions_the_wait_for_the_compiler(compiled: bool) -> None:
    config = settings(f"parallel.compile={str(compiled).lower()}")
    stream = SimpleNamespace(shares={}, tokens=lambda: {"": 5}, is_open=lambda: False)
    data: Any = SimpleNamespace(train_stream=stream, batch_sizes=config.batch_sizes(), rows_per_epoch=None)
    model: Any = torch.nn.Linear(2, 2)
    summary = startup_summary(run_length(course_of(config).stages[0]), model, data, CPU)
    assert summary.endswith("the first validation wait for the compiler, up to a few minutes") is compiled


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["Triton", "a compiler"])
def test_a_gpu_without_a_compiler(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: lacks != "Triton")
    monkeypatch.setattr(shutil, "which", lambda name: None if lacks == "a compiler" else f"/bin/{name}")
    config = settings(*LONG)
    config = resolve_compile(config, gpu)
    assert config.parallel.compile is False
    with pytest.raises(ConfigError, match=r"parallel\.compile=true needs Triton and a C compiler on a GPU"):
        resolve_compile(settings("parallel.compile=true"), gpu)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor")
def test_a_compiled_block_really_has_the_same_gradient() -> None:
    config = settings("parallel.compile=true")
    config = resolve_compile(config, CPU)
    assert config.parallel.compile is True


def test_trainer_settings_are_arguments_of_the_trainer() -> None:
    ours = {"max_tokens", "max_restarts", "profile_steps", "timeout_s", "validate_first"}
    ours |= {"half_residual_stream", "initial_loss_scale", "loss_scale_growth_interval"}
    names = {field.name for field in fields(TrainerConfig)} - ours
    assert names <= set(inspect.signature(L.Trainer.__init__).parameters)


def test_an_accelerator_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no such device here"):
        choose_device(TrainerConfig(accelerator="gpu"))


def test_offloading_needs_a_gpu_to_offload_from() -> None:
    config = settings("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "parallel.cpu_offload=true")
    with pytest.raises(ConfigError, match=r"parallel\.cpu_offload=true .* Try parallel\.cpu_offload=false"):
        build_strategy(config, choose_device(config.trainer))


@pytest.mark.slow
def test_gradients_of_ddp_are_views_of_its_buckets() -> None:
    config = settings("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    strategy = build_strategy(config, choose_device(config.trainer))
    assert isinstance(strategy, MeshDDPStrategy)
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True}


def test_a_run_without_a_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=-1 sets no limit, .* Try trainer\.max_time=60"):
        TrainerConfig(max_steps=-1)
