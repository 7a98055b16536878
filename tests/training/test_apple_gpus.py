"""What a run decides on a Mac's GPU (mps), as far as a machine without one can tell."""

from types import SimpleNamespace

import pytest
import torch

from pretrain.config.compose import compose, register_schemas
from pretrain.errors import ConfigError
from pretrain.kernels import device as kernels_device
from pretrain.kernels.device import device_name, memory_in_use, sum_dtype
from pretrain.parallel.device import choose_device
from pretrain.parallel.precision import auto_precision
from pretrain.planning import hardware
from pretrain.planning.config import Device, PlanConfig
from pretrain.planning.hardware import hardware_of, precision_of
from pretrain.process_state import generators_and_logs_restored
from pretrain.training.auto_settings import resolve_auto_settings
from pretrain.training.config import Precision, Strategy, TrainerConfig
from pretrain.training.run_state import random_state, set_random_state

MPS = torch.device("mps")
GIB = 2**30


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Make this machine say that it is a Mac with a GPU; return the states that its generator was set to."""
    states: list[torch.Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.arange(44, dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 27 * GIB)
    monkeypatch.setattr(kernels_device, "apple_chip", lambda: "Apple M3 Max")
    monkeypatch.setattr(hardware, "apple_chip", lambda: "Apple M3 Max")
    return states


@pytest.mark.usefixtures("mac")
def test_a_run_trains_on_the_gpu_in_fp32_and_sums_in_what_it_has() -> None:
    assert choose_device(TrainerConfig()) == MPS
    assert auto_precision(MPS) is Precision.fp32
    assert sum_dtype(MPS) is torch.float32
    assert device_name(MPS) == "Apple M3 Max"
    assert memory_in_use(MPS) == 3 * GIB


@pytest.mark.usefixtures("mac")
def test_a_shared_run_takes_the_processor_or_is_refused() -> None:
    shared = TrainerConfig(devices=2, strategy=Strategy.ddp)
    assert choose_device(shared).type == "cpu"
    with pytest.raises(ConfigError, match=r"mps with trainer\.strategy=fsdp .* trainer\.accelerator=cpu"):
        choose_device(TrainerConfig(devices=2, strategy=Strategy.fsdp, accelerator="mps"))
    with pytest.raises(ConfigError, match=r"accelerator=gpu finds no such device here\. Try trainer\.accelerator=mps"):
        choose_device(TrainerConfig(accelerator="gpu"))


@pytest.mark.slow
@pytest.mark.usefixtures("mac")
def test_blocks_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match=r"Apple GPU \(mps\)\. Try parallel\.compile=false"):
        resolve_auto_settings(compose("train", ["parallel.compile=true"]))
    found = resolve_auto_settings(compose("train", ["trainer.max_steps=-1", "trainer.max_time=600"]))
    assert found.parallel.compile is False


def test_a_resume_gives_the_gpu_its_random_numbers_back(mac: list[torch.Tensor]) -> None:
    state = random_state(MPS)
    assert "mps" not in random_state(torch.device("cpu"))
    set_random_state(state)
    assert [each.tolist() for each in mac] == [list(range(44))]
    with generators_and_logs_restored():
        pass
    assert len(mac) == 2


def test_a_run_of_a_mac_goes_on_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    set_random_state(random_state(torch.device("cpu")) | {"mps": torch.zeros(44, dtype=torch.uint8)})


@pytest.mark.slow
@pytest.mark.usefixtures("mac")
def test_a_plan_measures_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    register_schemas("plan", PlanConfig)
    peaks = {torch.float32: 9e12, torch.float16: 11e12}
    monkeypatch.setattr(hardware, "matmul_flops_per_s", lambda device, dtype, seconds: peaks[dtype])
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: SimpleNamespace(total=36 * GIB))
    here: PlanConfig = compose("plan", [])
    found = hardware_of(here)
    assert (found.name, found.gpu, found.source) == ("this Mac's GPU (Apple M3 Max)", True, "measured")
    assert (found.memory, found.reserved) == (36 * GIB, 9 * GIB)
    assert precision_of(here, found) is Precision.fp32
    assert [found.flops_per_s(each) for each in (Precision.fp32, Precision.fp16)] == [9e12, 11e12]
    monkeypatch.setattr(hardware, "measure_cpu", lambda config: "the processor")
    monkeypatch.setattr(hardware, "_with_numbers", lambda found, device, config: (found, device))
    for words in (["trainer=cpu"], ["trainer=ddp", "trainer.devices=2"]):
        assert hardware_of(compose("plan", words)) == ("the processor", Device.cpu)


def test_a_chip_has_no_name_where_nothing_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(kernels_device.subprocess, "run", missing)
    assert kernels_device.apple_chip() == ""
