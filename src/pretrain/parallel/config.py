"""Settings of how a model is spread over devices and how its activations are kept."""

from dataclasses import dataclass
from typing import ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError
from pretrain.models.config import ModelConfig
from pretrain.training.config import Precision, Strategy, TrainerConfig


@dataclass
class ParallelConfig(Settings):
    """What changes memory and speed, but not the result."""

    prefix: ClassVar[str] = "parallel."
    tensor_parallel: int = setting(
        1, "fsdp: neighboring devices that split each matrix (Shoeybi et al. 2019, arXiv:1909.08053).",
        bounds="[1, inf)", unit="devices",
    )  # fmt: skip
    context_parallel: int = setting(
        1, "ddp, fsdp: neighboring devices that split the positions of each row (arXiv:2407.21783, section 3.3.2).",
        bounds="[1, inf)", unit="devices",
    )  # fmt: skip
    sequence_parallel: bool = setting(
        False, "Split the rows between the matrices too (Korthikanti et al. 2022, arXiv:2205.05198)."
    )
    replicas: int = setting(
        1, "fsdp: copies of the sharded model, as a rule one for each machine (hybrid sharding, HSDP).",
        bounds="[1, inf)",
    )  # fmt: skip
    reshard_after_forward: bool = setting(
        True, "fsdp: free a block's gathered weights between its forward and backward pass."
    )
    no_sync_accumulation: bool = setting(
        False, "fsdp: keep whole gradients until the last micro-batch: less traffic, more memory."
    )
    prefetch_blocks: int = setting(
        0, "fsdp: blocks gathered ahead of the one that computes; 0: FSDP2's own choice, 1.", bounds="[0, inf)",
        unit="blocks",
    )  # fmt: skip
    cpu_offload: bool = setting(False, "fsdp on GPUs: keep weights, gradients and optimizer state in CPU memory.")
    activation_checkpointing: bool = setting(
        False, "Keep only each block's input, and recompute its activations in the backward pass (Chen et al. 2016)."
    )
    checkpoint_every_blocks: int = setting(
        1, "With activation_checkpointing: of every n-th block only.", bounds="[1, inf)", unit="blocks"
    )
    selective_checkpointing: bool = setting(
        False, "With activation_checkpointing: keep the results of matmuls and attention, recompute the rest."
    )
    compile: bool | None = setting(None, "torch.compile each block; null: on GPUs, in runs of 5 minutes or more.")
    cuda_graphs: bool = setting(
        False, "single: replay each micro-batch as one CUDA graph, for small models; not run on a GPU yet."
    )
    half_weight_copies: bool = setting(
        False, "single, ddp: cast each matrix to 16 bits once a step, not at each use; not run on a GPU yet."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ConfigError(
                "parallel.sequence_parallel=true splits rows among the devices that split matrices, and "
                "parallel.tensor_parallel=1 has none. Try parallel.tensor_parallel=2."
            )
        if self.cuda_graphs and self.activation_checkpointing:
            raise ConfigError(
                "parallel.cuda_graphs=true cannot record parallel.activation_checkpointing=true, which reads the state "
                "of the random generator. Try parallel.cuda_graphs=false."
            )
        how = {"selective_checkpointing": "true"} if self.selective_checkpointing else {}
        how |= {"checkpoint_every_blocks": f"{n}"} if (n := self.checkpoint_every_blocks) > 1 else {}
        for name, value in how.items():
            if not self.activation_checkpointing:
                raise ConfigError(
                    f"parallel.{name}={value} needs activation checkpointing, which is off. "
                    "Try parallel.activation_checkpointing=true."
                )


@dataclass(frozen=True)
class ParallelDims:
    """Shape of the device mesh: `ranks` = replicas x shards x tensor; neighboring ranks split matrices.

    `context` neighbors among the ranks with the same part of the matrices split the positions of their rows, and are
    shards like those with other rows.
    """

    ranks: int = 1
    replicas: int = 1  # copies of the sharded model
    tensor: int = 1  # processes that split each matrix and read the same rows
    context: int = 1  # processes that split the positions of the same rows

    @property
    def shards(self) -> int:
        """The number of processes over which a copy of the model is sharded, each with rows of its own."""
        return self.ranks // (self.replicas * self.tensor)

    @property
    def data_ranks(self) -> int:
        """The number of groups of processes that read the same rows."""
        return self.ranks // self.same_rows

    @property
    def same_rows(self) -> int:
        """The number of neighboring processes that read the same rows."""
        return self.context * self.tensor

    @property
    def gradient_ranks(self) -> int:
        """The number of processes over which a gradient is averaged: each has other rows, or other positions."""
        return self.ranks // self.tensor

    def data_rank(self, rank: int) -> int:
        """Return the index of the group that a process reads with."""
        return rank // self.same_rows

    def gradient_rank(self, rank: int) -> int:
        """Return the index of a process among those with other rows or positions; tensor-parallel ranks share it."""
        return rank // self.tensor

    def is_tp_rank_zero(self, rank: int) -> bool:
        """Whether a process is tensor-parallel rank 0.

        Ranks of one tensor-parallel group compute the same losses, so only this one contributes to sums.
        """
        return rank % self.tensor == 0


def build_parallel_dims(parallel: ParallelConfig, trainer: TrainerConfig, model: ModelConfig) -> ParallelDims:
    """Return the shape of a run's device mesh; raises ConfigError where devices or model do not divide so."""
    if trainer.strategy is not Strategy.fsdp:
        for name in ("tensor_parallel", "replicas"):
            if getattr(parallel, name) > 1:
                raise ConfigError(
                    f"parallel.{name}={getattr(parallel, name)} needs a sharded model, and "
                    f"trainer.strategy={trainer.strategy.name} shards none. Try trainer=fsdp."
                )
    if parallel.cuda_graphs:
        _check_graphs(trainer)
    if parallel.half_weight_copies:
        _check_half_copies(trainer)
    context = parallel.context_parallel
    if context > 1 and trainer.strategy is Strategy.single:
        raise ConfigError(
            f"parallel.context_parallel={context} splits rows over devices, and trainer.strategy=single has one. "
            f"Try trainer=fsdp trainer.devices={context}."
        )
    together = parallel.tensor_parallel * parallel.replicas * context
    if trainer.ranks % together:
        of_rows = f" x parallel.context_parallel={context}" if context > 1 else ""
        raise ConfigError(
            f"parallel.tensor_parallel={parallel.tensor_parallel} x parallel.replicas={parallel.replicas}{of_rows} do "
            f"not divide the {trainer.ranks} devices of the run. Try trainer.devices={together}."
        )
    if parallel.tensor_parallel > 1:
        _check_split(parallel, model)
    if context > 1:
        _check_slices(parallel, model)
    return ParallelDims(trainer.ranks, parallel.replicas, parallel.tensor_parallel, context)


def _check_slices(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Raise ConfigError where the devices do not divide the rows of the model."""
    devices, shape = parallel.context_parallel, model.transformer
    if shape is None:
        raise ConfigError(
            f"parallel.context_parallel={devices} splits the rows of model.kind=transformer, and model.kind is "
            f"{model.kind}. Try parallel.context_parallel=1."
        )
    length, chunks = shape.context_length, 2 * devices
    if length % chunks:
        near = max(chunks, length // chunks * chunks)
        raise ConfigError(
            f"parallel.context_parallel={devices} cuts rows into {chunks} equal chunks, and "
            f"model.context_length={length} is no multiple of {chunks}. Try model.context_length={near}."
        )
    if parallel.sequence_parallel and (length // devices) % parallel.tensor_parallel:
        raise ConfigError(
            f"parallel.sequence_parallel=true splits the {length // devices} positions that "
            f"parallel.context_parallel={devices} leaves a device, and parallel.tensor_parallel="
            f"{parallel.tensor_parallel} does not divide them. Try parallel.sequence_parallel=false."
        )


def _check_graphs(trainer: TrainerConfig) -> None:
    """Raise ConfigError for a run whose micro-batches are no graphs: of several processes, or with a loss scale."""
    does = "cuda_graphs=true records a micro-batch once"
    if trainer.strategy is not Strategy.single:
        why = "is that of several processes, whose sums are not recorded"
        raise _does_not_fit(does, f"strategy={trainer.strategy.name} {why}")
    if trainer.precision is Precision.fp16:
        raise _does_not_fit(does, "precision=fp16 has a loss scale that changes with the steps")


def _check_half_copies(trainer: TrainerConfig) -> None:
    """Raise ConfigError for a run that has no use for 16-bit copies of its matrices."""
    does = "half_weight_copies=true casts each matrix once a step"
    if trainer.strategy is Strategy.fsdp:
        raise _does_not_fit(does, "strategy=fsdp gathers the weights in 16 bits by itself")
    if trainer.precision is Precision.fp32:
        raise _does_not_fit(does, "precision=fp32 multiplies by float32 (auto, too, on some devices)")


def _does_not_fit(does: str, trainer_setting: str) -> ConfigError:
    """Return the error of a parallel setting and what it does, beside a setting of the trainer and why it cannot."""
    return ConfigError(f"parallel.{does}, and trainer.{trainer_setting}. Try parallel.{does.partition('=')[0]}=false.")


def _check_split(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Raise ConfigError where the devices do not divide the matrices of the model, or its rows."""
    devices = parallel.tensor_parallel
    shape = model.transformer
    if shape is None:
        raise ConfigError(
            f"parallel.tensor_parallel={devices} splits the matrices of model.kind=transformer, and model.kind is "
            f"{model.kind}. Try parallel.tensor_parallel=1."
        )
    if shape.qk_norm and shape.qk_norm_across_heads:
        raise ConfigError(
            f"parallel.tensor_parallel={devices} splits attention by heads, and model.qk_norm_across_heads=true "
            "normalizes over all of them. Try parallel.tensor_parallel=1, with trainer.strategy=fsdp."
        )
    parts = {"n_heads": shape.n_heads, "n_kv_heads": shape.kv_heads, "d_ff": shape.ff_width}
    if parallel.sequence_parallel:
        parts["context_length"] = shape.context_length
    for name, size in parts.items():
        if size % devices:
            most = max(n for n in range(1, devices) if all(size % n == 0 for size in parts.values()))
            raise ConfigError(
                f"parallel.tensor_parallel={devices} does not divide model.{name}={size}, which the devices split. "
                f"Try parallel.tensor_parallel={most}."
            )
