"""Lightning's strategies for a model that devices share: each a copy of it, or each a part, on a mesh of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from pretrain.parallel.config import ParallelConfig, ParallelDims
from pretrain.parallel.mesh import build_mesh
from pretrain.training.lightning_module import TrainingModule


class MeshDDPStrategy(DDPStrategy):
    """DDP, made on the stream that computes: Lightning takes another one, and each backward pass waits for it."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)


class MeshFSDP2Strategy(ModelParallelStrategy):
    """FSDP2, tensor parallelism, copies of either, on the mesh (replicas, shards, tensor)."""

    def __init__(self, parallel_dims: ParallelDims, settings: ParallelConfig, backend: str, timeout: timedelta) -> None:
        super().__init__(
            data_parallel_size=parallel_dims.data_ranks,
            tensor_parallel_size=parallel_dims.tensor,
            process_group_backend=backend,
            timeout=timeout,
        )
        self.parallel_dims = parallel_dims
        self.settings = settings

    def setup_environment(self) -> None:
        """Join the other processes, and lay them out."""
        super().setup_environment()
        self._device_mesh = build_mesh(self.parallel_dims, self.root_device.type)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    def model_to_device(self) -> None:
        """Move to the GPU what is not there yet; a learner that stays in the processor's memory is not moved."""
        assert self.lightning_module is not None
        if not self.settings.cpu_offload:
            super().model_to_device()
            return
        for name, part in self.lightning_module.named_children():
            if name != "model_with_loss":
                part.to(self.root_device)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The share of the data that this process reads."""
        return {"num_replicas": self.parallel_dims.data_ranks, "rank": self.parallel_dims.data_rank(self.global_rank)}

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients whole and unshared in a micro-batch that is not a step's last, where that is asked for.

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
