"""FLOPs, time and intervals, computed by hand."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.models.config import TransformerConfig
from pretrain.models.size import parameter_count, training_flops_per_token
from pretrain.planning import hardware as hardware_module
from pretrain.planning.config import Device, PlanConfig
from pretrain.planning.cost import best_interval_s, bytes_exchanged, bytes_moved, checkpoint_bytes, cost_of
from pretrain.planning.hardware import (
    DOCUMENTED,
    GIB,
    Hardware,
    exchanged_bytes_per_s,
    hardware_of,
    precision_of,
)
from pretrain.planning.workload import workload_of
from pretrain.training.config import Precision

Plan = Callable[..., PlanConfig]


@pytest.mark.slow
def test_gpt2_small_without_biases_has_the_operations_counted_by_hand(plan: Plan) -> None:
    """Attention not halved for its causal mask, the embedding's look-up not counted."""
    model = plan("model=gpt_small", "model.bias=false", "model.norm_bias=false").model
    assert isinstance(model, TransformerConfig)
    assert parameter_count(model, 50_257) == 124_337_664
    assert 1024 * training_flops_per_token(model, 50_257) == 874_944_921_600


@pytest.mark.slow
def test_a_gpu_takes_its_time_at_the_stated_utilization(plan: Plan) -> None:
    config = plan("model=gpt_small", "vocab_size=50257", "batch_size=512", "trainer.max_steps=10")
    work, h100 = workload_of(config, 50_257, Precision.bf16, gpu=True), DOCUMENTED[Device.h100]
    cost = cost_of(work, h100, mfu=0.5, max_steps=10, max_minutes=None)
    assert cost.step_s == pytest.approx(512 * 874_944_921_600 / (0.5 * 989e12))
    assert cost.tokens == 10 * 512 * 1024
    assert cost.seconds == pytest.approx(10 * cost.step_s)
    assert cost.tokens_per_s == pytest.approx(512 * 1024 / cost.step_s)
    checkpointed = cost_of(replace(work, activation_checkpointing=True), h100, 0.5, 10, None)
    assert checkpointed.flops_per_token == cost.flops_per_token
    assert 1.2 < checkpointed.step_s / cost.step_s < 4 / 3


@pytest.mark.slow
def test_a_cpu_takes_the_time_of_matmuls_and_of_memory(plan: Plan, cpu: Hardware) -> None:
    work = workload_of(plan("model=gpt_nano"), 2048, Precision.fp32)
    cost = cost_of(work, cpu, 0.4, None, max_minutes=1.0)
    assert cost.step_s == pytest.approx(7_864_320 * 2048 / 1e11 + bytes_moved(work) / 1e10)
    assert cost.steps == int(60 / cost.step_s)


@pytest.mark.slow
def test_a_sharded_model_copies_what_it_gathers_and_reduces(plan: Plan) -> None:
    words = ("model=gpt_nano", "trainer.accelerator=cpu", "trainer.devices=2", "batch_size=16")
    copied, sharded = (workload_of(plan(*words, f"trainer={kind}"), 2048, Precision.fp32) for kind in ("ddp", "fsdp"))
    blocks = 4 * (12 * 128 * 128 + 2 * 128 + 2 * 64)
    held = sum(sharded.local_size(name) for name in sharded.shapes)
    fewer_to_step = 10 * 4 * (copied.parameters - held)
    extra = 2 * 4 * (2 * copied.parameters + blocks)
    assert bytes_moved(sharded) - bytes_moved(copied) == pytest.approx(extra - fewer_to_step)


@pytest.mark.slow
def test_processes_exchange_what_a_ring_passes(plan: Plan, cpu: Hardware) -> None:
    words = ["model=gpt_nano", "trainer.accelerator=cpu", "batch_size=8"]
    settings: dict[str, list[str]] = {
        "alone": [],
        "ddp": ["trainer=ddp", "trainer.devices=2"],
        "fsdp": ["trainer=fsdp", "trainer.devices=2"],
        "kept": ["trainer=fsdp", "trainer.devices=2", "parallel.reshard_after_forward=false"],
        "copies": ["trainer=fsdp", "trainer.devices=4", "parallel.replicas=2"],
        "split": ["trainer=fsdp", "trainer.devices=2", "parallel.tensor_parallel=2"],
        "sliced": ["trainer=fsdp", "trainer.devices=2", "parallel.context_parallel=2"],
        "sliced copies": ["trainer=ddp", "trainer.devices=2", "parallel.context_parallel=2"],
    }
    works = {name: workload_of(plan(*words, *more), 2048, Precision.fp32) for name, more in settings.items()}
    found = {name: bytes_exchanged(work) for name, work in works.items()}
    whole, blocks = works["alone"].parameters, 4 * (12 * 128 * 128 + 2 * 128 + 2 * 64)
    assert found["alone"] == 0
    assert found["ddp"] == 2 * 0.5 * 4 * whole
    assert found["fsdp"] == 0.5 * 4 * (2 * whole + blocks)
    assert found["kept"] == 0.5 * 4 * 2 * whole
    assert found["copies"] == found["fsdp"] + 2 * 0.5 * 4 * whole / 2
    assert found["split"] == 8 * 0.5 * 4 * 8 * 256 * 128 * 4
    keys_and_values = 2 * 0.5 * 4 * (2 * 8 * 256 * 128) * 4
    assert found["sliced"] == found["fsdp"] + keys_and_values
    assert found["sliced copies"] == found["ddp"] + keys_and_values
    slow = replace(cpu, exchanged_per_s=1e9)
    alone, together = (cost_of(works["fsdp"], hardware, 0.4, 10, None).step_s for hardware in (cpu, slow))
    assert together - alone == pytest.approx(found["fsdp"] / 1e9)


def test_what_processes_exchange_is_measured() -> None:
    assert 1e6 < exchanged_bytes_per_s(times=1) < 1e12


@pytest.mark.slow
def test_frozen_weights_have_no_gradient_and_adapters_do(plan: Plan) -> None:
    """Forward and the gradient of the input: 4 operations a frozen weight, 6 a trained one."""
    words = ["model=gpt_small", "vocab_size=50257", "init_from=x", "lora.rank=8"]
    work = workload_of(plan(*words), 50_257, Precision.bf16, gpu=True)
    trained, adapters = work.parameters - work.frozen_parameters, 12 * 8 * (4 * 2 * 768 + 2 * 5 * 768)
    assert trained == adapters
    in_matmuls, attention = 12 * 12 * 768**2 + 50_257 * 768, 12 * 768 * 1024 * 12
    cost = cost_of(work, DOCUMENTED[Device.h100], 0.4, 10, None)
    assert cost.flops_per_token == 4 * in_matmuls + 6 * adapters + attention
    everything = replace(work, frozen=frozenset())
    assert cost_of(everything, DOCUMENTED[Device.h100], 0.4, 10, None).step_s > 1.3 * cost.step_s


@pytest.mark.slow
def test_devices_divide_the_step(plan: Plan) -> None:
    words = ["model=gpt_nano", "batch_size=64", "trainer.devices=8"]
    alone, shared = (workload_of(plan(*w), 2048, Precision.bf16) for w in (words[:2], [*words, "trainer=fsdp"]))
    h100 = DOCUMENTED[Device.h100]
    one, eight = (cost_of(work, h100, 0.4, 10, None) for work in (alone, shared))
    assert one.step_s == pytest.approx(8 * eight.step_s)
    assert one.tokens == eight.tokens


@pytest.mark.slow
def test_a_checkpoint_holds_weights_and_moments(plan: Plan) -> None:
    adamw, muon = (
        workload_of(plan("model=gpt_nano", f"optimizer={kind}"), 2048, Precision.fp32) for kind in ("adamw", "muon")
    )
    matrices = 4 * 12 * 128 * 128
    assert checkpoint_bytes(adamw) == 12 * 1_050_240
    assert checkpoint_bytes(muon) == 12 * 1_050_240 - 4 * matrices


def test_the_interval_between_checkpoints_loses_least() -> None:
    best = best_interval_s(2.0, 3600.0)

    def lost(interval_s: float) -> float:
        return 2.0 / interval_s + interval_s / 2 / 3600.0

    assert best == pytest.approx(120.0)
    assert lost(best) < min(lost(0.9 * best), lost(1.1 * best))


@pytest.mark.long
def test_the_device_is_the_one_that_the_run_asks_for(plan: Plan) -> None:
    assert hardware_of(plan("trainer=fsdp", "trainer.devices=64", "batch_size=64")).name.startswith("H100")
    smaller = hardware_of(plan("device=a100", "memory_gib=40"))
    assert (smaller.name, smaller.memory) == ("A100 SXM 80 GB", 40 * 2**30)
    here = hardware_of(plan("device=cpu"))
    assert not here.gpu
    assert here.flops_per_s(Precision.fp32) > 1e8
    assert here.bytes_per_s > 1e8
    assert precision_of(plan(), smaller) is Precision.bf16
    assert precision_of(plan("trainer.precision=fp32"), smaller) is Precision.fp32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gib", "tera", "source"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, 312, "NVIDIA A100 data sheet, 2021"),  # the data sheet's has 80 GB
        ("NVIDIA GeForce RTX 4080", 15.6, 50, "measured"),  # in no table: not an H100
        ("NVIDIA H100 PCIe", 79.1, 50, "measured"),  # slower than an H100 SXM
    ],
)
def test_the_gpu_of_this_machine_is_planned_as_it_is(
    plan: Plan, name: str, gib: float, tera: float, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {torch.bfloat16: 50e12, torch.float32: 20e12}
    monkeypatch.setattr(hardware_module, "matmul_flops_per_s", lambda device, dtype, seconds: measured[dtype])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=int(gib * GIB)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    found = hardware_of(plan())
    assert (found.name, found.memory, found.gpu, found.source) == (name, int(gib * GIB), True, source)
    assert found.flops_per_s(precision_of(plan(), found)) == pytest.approx(tera * 1e12)
    assert hardware_of(plan("device=a100")).memory == 80 * GIB
    assert hardware_of(plan("memory_gib=12")).memory == 12 * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "precision", "tera", "gib"),
    [
        ("device=t4", Precision.fp16, 65, 14.7),
        ("device=v100 memory_gib=32", Precision.fp16, 125, 32),
        ("device=v100 trainer.precision=bf16", Precision.bf16, 15.7, 15.8),  # without tensor cores
        ("device=l4", Precision.bf16, 121, 22.5),
        ("device=rtx_5090 trainer.precision=fp32", Precision.fp32, 104.8, 31.8),
        ("device=other peak_tflops=60 memory_gib=12", Precision.bf16, 60, 12),
        ("device=m1", Precision.fp32, 2.6, 8),
        ("device=m3_max peak_tflops=10 memory_gib=64", Precision.fp32, 10, 64),
    ],
)
def test_a_gpu_has_the_numbers_of_its_data_sheet_or_those_given(
    plan: Plan, words: str, precision: Precision, tera: float, gib: float
) -> None:
    config = plan(*words.split())
    hardware = hardware_of(config)
    assert precision_of(config, hardware) is precision
    assert hardware.flops_per_s(precision) == pytest.approx(tera * 1e12)
    assert hardware.memory == int(gib * 2**30)
    assert hardware.source
    assert hardware.reserved == (hardware.memory // 4 if "device=m" in words else 2**30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("device=other memory_gib=12", "device=other needs peak_tflops, .* Try device=other peak_tflops=65"),
        ("device=other peak_tflops=12", "device=other needs memory_gib"),
        ("device=m3_max", "device=m3_max needs peak_tflops, .* device=auto .* device=m3_max peak_tflops=4"),
        ("device=cpu peak_tflops=4", "peak_tflops=4 is the peak of a GPU, and device=cpu is measured"),
    ],
)
def test_a_device_without_its_numbers_is_refused(plan: Plan, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hardware_of(plan(*words.split()))
