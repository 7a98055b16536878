"""Shapes and counts of one optimizer step on the fullest device, derived from the settings."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.kernels.half_copies import HalfCopies
from pretrain.models.config import TransformerConfig, transformer_of
from pretrain.models.lora import add_adapters
from pretrain.models.masks import BLOCK, can_use_block_masks
from pretrain.optim.groups import check_groups, parameters_by_name
from pretrain.parallel.config import ParallelDims
from pretrain.training.config import Precision, Strategy

FLOAT_BYTES = 4
_SPLIT_INTO_COLUMNS = (
    "attention.output.weight", "feed_forward.down.weight", "attention.value_embedding.weight",
)  # fmt: skip
_SPLIT_INTO_ROWS = (
    *(f"attention.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")),
    "attention.gate.weight",
    "attention.value_gate.weight",
    *(f"feed_forward.{name}.{kind}" for name in ("gate", "up") for kind in ("weight", "bias")),
    "embeddings.tokens.weight",
    "head.weight",
    "head.bias",
)


@dataclass(frozen=True)
class PlannedVocabulary:
    """The part of a tokenizer that objectives need, for a plan without one."""

    vocab_size: int
    bos_id: int = 0
    eos_id: int = 0
    mask_id: int = 0
    special_ids: frozenset[int] = frozenset()

    @property
    def word_starts(self) -> NDArray[np.bool_]:
        """Bool (vocab_size,): no token begins a word."""
        return np.zeros(self.vocab_size, dtype=np.bool_)


@dataclass(frozen=True)
class Workload:
    """One micro-batch on the fullest device, with the settings that change its memory or time."""

    model: TransformerConfig
    vocab_size: int  # rows of the embedding
    shapes: dict[str, tuple[int, ...]]  # of every parameter by name, tied ones once
    frozen: frozenset[str]  # names of parameters that are not trained
    matrices: frozenset[str]  # names of parameters that Muon updates; empty for AdamW
    rows: int  # of one micro-batch on one device
    passes: int  # of the model over every row
    targets_per_row: int
    accumulation: int  # micro-batches of one optimizer step
    parallel_dims: ParallelDims
    strategy: Strategy
    precision: Precision  # resolved
    masked: bool  # whether attention reads a dense mask (T, T)
    activation_checkpointing: bool
    checkpoint_every_blocks: int
    selective_checkpointing: bool
    sequence_parallel: bool
    reshard_after_forward: bool
    gpu: bool  # a GPU's kernels save less for the backward pass
    compiled: bool  # on a GPU: attention takes block masks
    averaged: bool = False  # whether a moving average of the weights is kept beside them
    copied: int = 0  # numbers of the matrices that have a copy in 16 bits, made once a step
    half_stream: bool = False  # whether the residual stream is in 16 bits under autocast

    @property
    def ranks(self) -> int:
        """Devices of the run."""
        return self.parallel_dims.ranks

    @property
    def split(self) -> int:
        """Devices of a tensor-parallel group."""
        return self.parallel_dims.tensor

    @property
    def context(self) -> int:
        """Devices that split the positions of the same rows."""
        return self.parallel_dims.context

    @property
    def tokens_between(self) -> int:
        """Tokens of a micro-batch on one device between tensor-parallel matmuls."""
        return self.tokens // self.split if self.sequence_parallel else self.tokens

    @property
    def vocabulary_held(self) -> int:
        """Rows of the vocabulary matrix on one device."""
        return math.ceil(self.vocab_size / self.split)

    @property
    def checkpointed_blocks(self) -> int:
        """Blocks whose activations are recomputed."""
        return math.ceil(self.model.n_layers / self.checkpoint_every_blocks) if self.activation_checkpointing else 0

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.model.context_length

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one device that the model reads, in all passes."""
        return self.rows * self.passes * self.length // self.context

    @property
    def targets(self) -> int:
        """Target positions of a micro-batch on one device."""
        return min(self.rows * self.targets_per_row, self.tokens)

    @property
    def half(self) -> bool:
        """Whether matmuls are in 16 bits."""
        return self.precision is not Precision.fp32

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in a matmul."""
        return 2 if self.half else FLOAT_BYTES

    @property
    def weight_bytes(self) -> int:
        """Bytes of a number of a weight in use: float32 by autocast, 16 bits by FSDP2."""
        return 2 if self.half and self.sharded else FLOAT_BYTES

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number of the residual stream: as of a weight in use, or 16 bits by a setting of the run."""
        return 2 if self.half_stream else self.weight_bytes

    @property
    def autocasts(self) -> bool:
        """Whether autocast converts weights and inputs to 16 bits, with one copy per linear layer."""
        return self.half and not self.sharded

    @property
    def sharded(self) -> bool:
        """Whether each device holds a shard of the model."""
        return self.strategy is Strategy.fsdp

    @property
    def parameters(self) -> int:
        """Parameters of the full model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def frozen_parameters(self) -> int:
        """Parameters that are not trained."""
        return sum(math.prod(self.shapes[name]) for name in self.frozen)

    @property
    def adapters(self) -> int | None:
        """Parameters of low-rank adapters, where these alone are trained; None where all weights are."""
        return self.parameters - self.frozen_parameters if self.frozen else None

    def gathered_shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape on the fullest device after gathering: full, or split by tensor parallelism."""
        shape = list(self.shapes[name])
        if name.endswith(_SPLIT_INTO_COLUMNS):
            shape[1] = math.ceil(shape[1] / self.split)
        elif name.endswith(_SPLIT_INTO_ROWS):
            shape[0] = math.ceil(shape[0] / self.split)
        return tuple(shape)

    def local_size(self, name: str) -> int:
        """Return how many numbers of a parameter the fullest device stores.

        FSDP2 splits the first dimension into equal runs of rows, rounded up, so the first device has the most.
        """
        shape = self.gathered_shape(name)
        if not self.sharded:
            return math.prod(shape)
        return math.ceil(shape[0] / self.parallel_dims.shards) * math.prod(shape[1:])


def workload_of(config: RunConfig, vocab_size: int, precision: Precision, gpu: bool = False) -> Workload:
    """Return the workload of a run with a tokenizer of `vocab_size` ids.

    Raises ConfigError for a model that is not a Transformer of ours, for trainer.devices=-1, and for a group of
    parameters that has none.
    """
    model = config.model
    shape = transformer_of(model, "is planned by a formula")
    if config.trainer.devices == -1:
        raise ConfigError(
            "trainer.devices=-1 means all GPUs of a machine, and a plan needs their number. Try trainer.devices=8."
        )
    with torch.device("meta"):
        built = model.build(model.vocabulary(vocab_size), config.objective.causal)
        add_adapters(built, config.lora)
    check_groups(config.optimizer, built)
    compiled = gpu and config.parallel.compile is not False  # auto compiles every long run on a GPU
    return Workload(
        model=shape,
        vocab_size=model.vocabulary(vocab_size),
        shapes={name: tuple(parameter.shape) for name, parameter in parameters_by_name(built).items()},
        frozen=frozenset(name for name, each in parameters_by_name(built).items() if not each.requires_grad),
        matrices=config.optimizer.stacked_matrices(built),
        rows=config.rows_per_micro_batch(),
        passes=config.objective.passes,
        targets_per_row=_targets_per_row(config),
        accumulation=config.accumulation_steps(),
        parallel_dims=config.parallel_dims(),
        strategy=config.trainer.strategy,
        precision=precision,
        masked=_masked(config) and not (compiled and can_use_block_masks(shape) and _slices_are_blocks(config)),
        activation_checkpointing=config.parallel.activation_checkpointing,
        checkpoint_every_blocks=config.parallel.checkpoint_every_blocks,
        selective_checkpointing=config.parallel.selective_checkpointing,
        sequence_parallel=config.parallel.sequence_parallel,
        reshard_after_forward=config.parallel.reshard_after_forward,
        gpu=gpu,
        compiled=compiled,
        averaged=config.ema.decay > 0.0,
        copied=_copied(config, built) if precision is not Precision.fp32 else 0,
        half_stream=config.trainer.half_residual_stream
        and precision is Precision.bf16
        and config.trainer.strategy is not Strategy.fsdp,  # whose stream is in 16 bits in any case
    )


def _copied(config: RunConfig, built: nn.Module) -> int:
    if not config.parallel.half_weight_copies:
        return 0
    return sum(copy.numel() for copy in HalfCopies(built, torch.bfloat16).tensors)


def _masked(config: RunConfig) -> bool:
    slices = config.parallel.context_parallel > 1  # which have no plain causal mask
    return slices or config.data.document_mask or not config.objective.causal or config.objective.mixes_directions


def _slices_are_blocks(config: RunConfig) -> bool:
    context = config.parallel.context_parallel
    return context == 1 or config.model.context_length % (2 * context * BLOCK) == 0


def _targets_per_row(config: RunConfig) -> int:
    objective = config.objective.build(PlannedVocabulary(1), config.seed)
    return objective.targets_per_sequence(config.model.context_length)
