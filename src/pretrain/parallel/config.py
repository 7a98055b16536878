"""Settings of how a model is spread over devices and how its activations are kept."""

from dataclasses import dataclass

from pretrain.errors import ConfigError
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.training.config import Strategy, TrainerConfig


@dataclass
class ParallelConfig:
    """What changes memory and speed, but not the result."""

    tensor_parallel: int = (
        1  # fsdp: neighbouring devices that split each matrix (Shoeybi et al. 2019, arXiv:1909.08053)
    )
    sequence_parallel: bool = False  # and the rows between the matrices (Korthikanti et al. 2022, arXiv:2205.05198)
    replicas: int = 1  # fsdp: copies of the sharded model, as a rule one for each machine (hybrid sharding, HSDP)
    reshard_after_forward: bool = True  # fsdp: free a block's gathered weights until the backward pass needs them
    no_sync_accumulation: bool = (
        False  # fsdp: keep whole gradients until the last micro-batch: less traffic, more memory
    )
    prefetch_blocks: int = (
        0  # fsdp: blocks gathered ahead of the one that computes; 0 leaves it to FSDP2, which takes 1
    )
    cpu_offload: bool = False  # fsdp on GPUs: weights, gradients and optimizer stay in the processor's memory
    activation_checkpointing: bool = False  # keep only each block's input and compute the rest again (Chen et al. 2016)
    checkpoint_every_blocks: int = 1  # 2: of every second block only
    selective_checkpointing: bool = False  # keep what matrix products and attention gave; compute the cheap rest again
    compile: bool | None = None  # torch.compile each block; null: on GPUs, in runs of 5 minutes or more

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "replicas", "checkpoint_every_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"parallel.{name}={getattr(self, name)} is below 1. Try parallel.{name}=1.")
        if self.prefetch_blocks < 0:
            raise ConfigError(
                f"parallel.prefetch_blocks={self.prefetch_blocks} is negative. Try parallel.prefetch_blocks=0."
            )
        if self.sequence_parallel and self.tensor_parallel == 1:
            raise ConfigError(
                "parallel.sequence_parallel=true splits rows among the devices that split matrices, and "
                "parallel.tensor_parallel=1 has none. Try parallel.tensor_parallel=2."
            )
        how = {"selective_checkpointing": "true"} if self.selective_checkpointing else {}
        how |= {"checkpoint_every_blocks": f"{n}"} if (n := self.checkpoint_every_blocks) > 1 else {}
        for name, value in how.items():
            if not self.activation_checkpointing:
                raise ConfigError(
                    f"parallel.{name}={value} says how activations are checkpointed, and they are not. "
                    "Try parallel.activation_checkpointing=true."
                )


@dataclass(frozen=True)
class ParallelDims:
    """How the processes of a run are arranged: `ranks` = replicas x shards x tensor, neighbours splitting matrices."""

    ranks: int = 1
    replicas: int = 1  # copies of the sharded model
    tensor: int = 1  # processes that split each matrix and read the same rows

    @property
    def shards(self) -> int:
        """Processes over which a copy of the model is sharded, each with rows of its own."""
        return self.ranks // (self.replicas * self.tensor)

    @property
    def data_ranks(self) -> int:
        """Groups of processes that read rows of their own."""
        return self.ranks // self.tensor

    def data_rank(self, rank: int) -> int:
        """Return the number of the group that a process reads with."""
        return rank // self.tensor

    def is_tp_rank_zero(self, rank: int) -> bool:
        """Whether a process is the first of those that read the same rows: what all of them find, only it reports."""
        return rank % self.tensor == 0


def build_parallel_dims(parallel: ParallelConfig, trainer: TrainerConfig, model: ModelConfig) -> ParallelDims:
    """Return how the processes of a run are arranged; raises ConfigError where devices or model do not divide so."""
    if trainer.strategy is not Strategy.fsdp:
        for name in ("tensor_parallel", "replicas"):
            if getattr(parallel, name) > 1:
                raise ConfigError(
                    f"parallel.{name}={getattr(parallel, name)} arranges sharded models, and "
                    f"trainer.strategy={trainer.strategy.name} shards none. Try trainer=fsdp."
                )
    together = parallel.tensor_parallel * parallel.replicas
    if trainer.ranks % together:
        raise ConfigError(
            f"parallel.tensor_parallel={parallel.tensor_parallel} x parallel.replicas={parallel.replicas} do not "
            f"divide the {trainer.ranks} devices of the run. Try trainer.devices={together}."
        )
    if parallel.tensor_parallel > 1:
        _check_split(parallel, model)
    return ParallelDims(trainer.ranks, parallel.replicas, parallel.tensor_parallel)


def _check_split(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Raise ConfigError where the devices cannot split the matrices of the model, or its rows."""
    devices = parallel.tensor_parallel
    if not isinstance(model, TransformerConfig):
        raise ConfigError(
            f"parallel.tensor_parallel={devices} knows the matrices of a Transformer of ours, and model.kind is "
            f"{model.kind}. Try parallel.tensor_parallel=1."
        )
    parts = {"n_heads": model.n_heads, "n_kv_heads": model.kv_heads, "d_ff": model.ff_width}
    if parallel.sequence_parallel:
        parts["context_length"] = model.context_length
    for name, size in parts.items():
        if size % devices:
            most = max(n for n in range(1, devices) if all(size % n == 0 for size in parts.values()))
            raise ConfigError(
                f"parallel.tensor_parallel={devices} does not divide model.{name}={size}, which the devices split. "
                f"Try parallel.tensor_parallel={most}."
            )
