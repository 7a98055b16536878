"""With parallel.cpu_offload, weights and gradients are in CPU memory, and the rest of a step on a GPU: without one."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor, Shard

from pretrain.models.interface import move_buffers
from pretrain.parallel import mesh
from pretrain.parallel.config import ParallelConfig
from pretrain.training.datamodule import TextDataModule
from pretrain.training.strategy import MeshFSDP2Strategy

CPU, META = torch.device("cpu"), torch.device("meta")


def test_gradients_are_scaled_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factor has come from the numbers of targets, which are on the GPU."""
    devices: list[str] = []
    monkeypatch.setattr(torch, "_foreach_mul_", lambda parts, factor: devices.append(factor.device.type))
    with FakeTensorMode():
        mesh.scale_by([torch.ones(3)], torch.ones((), device="cuda"))
    assert devices == ["cpu"]


def test_values_end_where_their_parameters_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """`distribute_tensor` moves them to the device of the mesh; optimizer state that stays there ends the next step."""
    moved: list[torch.device] = []
    on_gpu = SimpleNamespace(to=lambda device: moved.append(device) or "sharded")
    monkeypatch.setattr(mesh, "distribute_tensor", lambda *_, **__: on_gpu)
    parameter: Any = Mock(spec=DTensor, device=CPU, placements=[Shard(0)], device_mesh=None, shape=torch.Size([4, 3]))
    assert mesh.distribute_like(torch.zeros(4, 3), parameter) == "sharded"
    assert moved == [CPU]


def test_the_module_is_on_the_gpu_though_its_weights_are_not() -> None:
    module: Any = L.LightningModule()
    module.model_with_loss, module.scores = nn.Linear(2, 2), nn.Linear(2, 2)
    strategy: Any = SimpleNamespace(
        lightning_module=module, settings=ParallelConfig(cpu_offload=True), root_device=META
    )
    MeshFSDP2Strategy.model_to_device(strategy)
    assert module.device == META  # whose memory and random state are logged and saved
    assert [module.model_with_loss.weight.device, module.scores.weight.device] == [CPU, META]


def test_buffers_are_where_a_model_computes() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    move_buffers(model, META)
    assert all(buffer.device == META for buffer in model.buffers())
    assert all(parameter.device == CPU for parameter in model.parameters())
    assert set(model.state_dict()) >= {"0.running_mean", "0.weight"}


def test_rows_of_a_spike_are_read_again_on_the_device_that_computes() -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=META))
    data: Any = SimpleNamespace(
        trainer=trainer, _training_batches=lambda: SimpleNamespace(batch=lambda _: torch.zeros(2))
    )
    batch: Any = TextDataModule.training_batch(data, np.arange(2))
    assert batch.device == META
