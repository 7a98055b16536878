"""What one step of a run asks of each device: shapes and numbers drawn from its settings, before any formula."""

import math
from dataclasses import dataclass

import torch

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config import HybridConfig, MaskedConfig, MaskingConfig
from pretrain.optim.config import MuonConfig
from pretrain.optim.groups import parameter_names, parameters_by_name
from pretrain.training.config import Strategy


@dataclass(frozen=True)
class Workload:
    """One micro-batch on the device that holds most, and what the settings say of it."""

    model: TransformerConfig
    vocab_size: int  # rows of the embedding
    shapes: dict[str, tuple[int, ...]]  # of every parameter by name, shared ones once
    matrices: frozenset[str]  # names of parameters that Muon steps; empty for AdamW
    rows: int  # of one micro-batch on one device
    targets_per_row: int
    accumulation: int  # micro-batches of one optimizer step
    ranks: int
    strategy: Strategy
    bf16: bool
    masked: bool  # whether attention is told who sees whom by a mask tensor
    activation_checkpointing: bool
    reshard_after_forward: bool
    gpu: bool  # which kernels compute: some keep more than others

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.model.context_length

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.rows * self.length

    @property
    def targets(self) -> int:
        """Places of a micro-batch that reach the head."""
        return self.rows * self.targets_per_row

    @property
    def sharded(self) -> bool:
        """Whether each device holds a shard of the model."""
        return self.strategy is Strategy.fsdp

    @property
    def parameters(self) -> int:
        """Numbers in the whole model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def held(self, name: str) -> int:
        """Return how many numbers of a parameter the fullest device holds.

        FSDP2 cuts the first dimension into equal runs of rows, rounded up, so the first device has the most.
        """
        shape = self.shapes[name]
        if not self.sharded:
            return math.prod(shape)
        return math.ceil(shape[0] / self.ranks) * math.prod(shape[1:])


def workload_of(config: RunConfig, vocab_size: int, bf16: bool, gpu: bool = False) -> Workload:
    """Return the workload of a run with a tokenizer of `vocab_size` ids.

    Raises ConfigError for a model that is not a Transformer of ours, and where the number of devices is left open.
    """
    model = config.model
    if not isinstance(model, TransformerConfig):
        raise ConfigError(f"model.kind={model.kind} cannot be planned: its formulas are not known. Try model=gpt_nano.")
    if config.trainer.devices == -1:
        raise ConfigError(
            "trainer.devices=-1 takes all GPUs of a machine, and a plan does not know how many there are. "
            "Try trainer.devices=8."
        )
    with torch.device("meta"):
        built = model.build(model.vocabulary(vocab_size), config.objective.causal)
    names = parameter_names(built)
    return Workload(
        model=model,
        vocab_size=model.vocabulary(vocab_size),
        shapes={name: tuple(parameter.shape) for name, parameter in parameters_by_name(built).items()},
        matrices=frozenset(names.matrices if isinstance(config.optimizer, MuonConfig) else ()),
        rows=config.rows_per_micro_batch(),
        targets_per_row=_targets_per_row(config),
        accumulation=config.accumulation_steps(),
        ranks=config.trainer.ranks,
        strategy=config.trainer.strategy,
        bf16=bf16,
        masked=config.data.document_mask or not config.objective.causal or isinstance(config.objective, HybridConfig),
        activation_checkpointing=config.parallel.activation_checkpointing,
        reshard_after_forward=config.parallel.reshard_after_forward,
        gpu=gpu,
    )


def _targets_per_row(config: RunConfig) -> int:
    """Return the places of a row that reach the head: of a hybrid batch every place, of a masked one the share."""
    objective, length = config.objective, config.model.context_length
    if isinstance(objective, MaskedConfig):
        return max(1, math.ceil(objective.mask_probability * length))
    assert isinstance(objective, MaskingConfig) or objective.causal
    return length
