"""Our names of Lightning's arguments are Lightning's."""

import inspect
from dataclasses import fields

import lightning as L
import pytest

from pretrain.errors import ConfigError
from pretrain.training.config import TrainerConfig
from pretrain.training.strategy import choose_device


def test_trainer_settings_are_arguments_of_the_trainer():
    known = set(inspect.signature(L.Trainer.__init__).parameters)
    assert {field.name for field in fields(TrainerConfig)} <= known


def test_an_accelerator_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="finds no such device here"):
        choose_device(TrainerConfig(accelerator="gpu"))
