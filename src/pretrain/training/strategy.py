"""Lightning strategies: one device, DDP, or FSDP2 with tensor parallelism on a mesh of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.device_dtype_mixin import _update_properties
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.mesh import build_mesh
from pretrain.training.config import Strategy as Sharing
from pretrain.training.lightning_module import TrainingModule


class MeshDDPStrategy(DDPStrategy):
    """DDP built on the compute stream; Lightning builds it on another one, and every backward pass waits for it."""

    def __init__(self, parallel_dims: ParallelDims, backend: str, timeout: timedelta) -> None:
        # gradients are views of DDP's buckets, which saves a copy of all of them
        super().__init__(process_group_backend=backend, timeout=timeout, gradient_as_bucket_view=True)
        self.parallel_dims = parallel_dims

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Number of data ranks and this process's rank among them."""
        return _sampler_settings(self.parallel_dims, self.global_rank)

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class MeshFSDP2Strategy(ModelParallelStrategy):
    """FSDP2 and tensor parallelism on the mesh (replicas, shards, tensor)."""

    def __init__(self, parallel_dims: ParallelDims, settings: ParallelConfig, backend: str, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=parallel_dims.gradient_ranks,
            tensor_parallel_size=parallel_dims.tensor,
            process_group_backend=backend,
            timeout=timeout,
        )
        self.parallel_dims = parallel_dims
        self.settings = settings
        self._mesh: DeviceMesh | None = None

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh (replicas, shards, tensor), instead of Lightning's of two dimensions."""
        assert self._mesh is not None
        return self._mesh

    def setup_environment(self) -> None:
        """Join the process group and build the mesh."""
        super().setup_environment()
        self._mesh = build_mesh(self.parallel_dims, self.root_device.type)

    def model_to_device(self) -> None:
        """Move the module to the GPU, except a model that `parallel.cpu_offload` keeps in CPU memory."""
        assert self.lightning_module is not None
        if not self.settings.cpu_offload:
            super().model_to_device()
            return
        _update_properties(self.lightning_module, device=self.root_device)  # as `to` does: `module.device`
        for name, part in self.lightning_module.named_children():
            if name != "model_with_loss":
                part.to(self.root_device)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Number of data ranks and this process's rank among them."""
        return _sampler_settings(self.parallel_dims, self.global_rank)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Skip gradient reduction in all but a step's last micro-batch, with `parallel.no_sync_accumulation`.

        Lightning does so for DDP alone.
        """
        assert isinstance(self.lightning_module, TrainingModule)
        model_with_loss = self.lightning_module.model_with_loss
        assert isinstance(model_with_loss, FSDPModule)
        model_with_loss.set_requires_gradient_sync(not self.settings.no_sync_accumulation)
        try:
            yield
        finally:
            model_with_loss.set_requires_gradient_sync(True)


def _sampler_settings(parallel_dims: ParallelDims, rank: int) -> dict[str, Any]:
    return {"num_replicas": parallel_dims.data_ranks, "rank": parallel_dims.data_rank(rank)}


def build_strategy(config: RunConfig, device: torch.device) -> Strategy | str:
    """Return Lightning's strategy for the run; raise ConfigError for CPU offload without a GPU."""
    timeout = timedelta(seconds=config.trainer.timeout_s)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if config.trainer.strategy is Sharing.ddp:
        return MeshDDPStrategy(config.parallel_dims(), backend, timeout)
    if config.trainer.strategy is Sharing.fsdp:
        if config.parallel.cpu_offload and device.type == "cpu":
            raise ConfigError(
                "parallel.cpu_offload=true keeps weights and optimizer state of a GPU in CPU memory, and this run has "
                "no GPU. Try parallel.cpu_offload=false."
            )
        if config.parallel.cpu_offload:
            backend = "cpu:gloo,cuda:nccl"  # gradients and their norms are in CPU memory
        return MeshFSDP2Strategy(config.parallel_dims(), config.parallel, backend, timeout)
    return "auto"
