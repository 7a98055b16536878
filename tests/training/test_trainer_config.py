"""Our names of Lightning's arguments are Lightning's."""

import inspect
from dataclasses import fields

import lightning as L
import pytest

from pretrain.errors import ConfigError
from pretrain.training.auto_settings import choose_device
from pretrain.training.config import TrainerConfig
from pretrain.training.strategy import build_strategy


def test_trainer_settings_are_arguments_of_the_trainer():
    known = set(inspect.signature(L.Trainer.__init__).parameters)
    assert {field.name for field in fields(TrainerConfig)} - {
        "max_tokens",
        "max_restarts",
        "profile_steps",
        "timeout_s",
        "validate_first",
    } <= known


def test_an_accelerator_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no such device here"):
        choose_device(TrainerConfig(accelerator="gpu"))


def test_offloading_needs_a_gpu_to_offload_from(tiny):
    config = tiny.config("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "parallel.cpu_offload=true")
    with pytest.raises(ConfigError, match=r"parallel\.cpu_offload=true .* Try parallel\.cpu_offload=false"):
        build_strategy(config, choose_device(config.trainer))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, r"trainer\.max_steps=0 is below 1\. Try trainer\.max_steps=1000\."),
        ({"max_steps": -1}, r"trainer\.max_steps=-1 sets no limit, and there is no other.* Try trainer\.max_time=60"),
        ({"max_tokens": 0}, r"trainer\.max_tokens=0 is below 1\. Try trainer\.max_tokens=1000000\."),
        ({"profile_steps": -1}, r"trainer\.profile_steps=-1 is negative\. Try trainer\.profile_steps=5"),
        ({"max_restarts": -1}, r"trainer\.max_restarts=-1 is negative\. Try trainer\.max_restarts=5"),
        ({"max_time": 0.0}, r"trainer\.max_time=0\.0 is not a number of minutes above 0\. Try trainer\.max_time=2\."),
        ({"max_time": float("nan")}, r"trainer\.max_time=nan is not a number of minutes above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**settings)
