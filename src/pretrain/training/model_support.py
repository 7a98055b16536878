"""What a run asks of its model, checked before the first step."""

import torch
from torch import nn

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.models.interface import blocks_of, build_model, inputs_of
from pretrain.models.layers import has_residual_stream
from pretrain.models.lora import add_adapters
from pretrain.models.transformer import Transformer
from pretrain.optim.groups import check_groups
from pretrain.training.fine_tuning import freeze_unused, trained_head


def check_supported(config: RunConfig, model: nn.Module) -> None:
    """Raise ConfigError for a setting that the run's model cannot follow, such as a mask of documents."""
    taken, named = inputs_of(model), f"model.kind={config.model.kind}"
    if not config.objective.causal and "documents" not in taken:
        raise ConfigError(
            f"objective={config.objective.kind} attends to whole rows, whose end is padding, and {named} has no input "
            "`documents` that leaves it out. Try objective=causal, or give forward() that input."
        )
    if config.data.document_mask and "documents" not in taken:
        raise ConfigError(
            f"data.document_mask=true keeps the documents of a row apart, and {named} has no input `documents`. "
            "Try data.document_mask=false, or give forward() that input."
        )
    if config.objective.mixes_directions and "is_causal" not in taken:
        raise ConfigError(
            f"objective={config.objective.kind} chooses the direction of attention by row, and {named} has no input "
            "`is_causal`. Try objective=causal, or give forward() that input."
        )
    if config.trainer.half_residual_stream and not has_residual_stream(model):
        raise ConfigError(
            f"trainer.half_residual_stream=true casts what blocks of model.kind=transformer add up; {named} has none "
            "of these. Try trainer.half_residual_stream=false."
        )
    if config.parallel.activation_checkpointing and not blocks_of(model):
        raise ConfigError(
            f"parallel.activation_checkpointing=true recomputes a model block by block, and {named} has no `blocks`. "
            "Try parallel.activation_checkpointing=false."
        )
    devices = config.parallel.tensor_parallel
    if devices > 1 and isinstance(model, Transformer):
        _check_vocabulary_split(model.vocab_size, devices)


def check_parameter_groups(config: RunConfig) -> None:
    """Raise ConfigError for a group of parameters that has none, from the model without weights and without a text."""
    objective = config.objective
    if not getattr(config.optimizer, "groups", None):
        return
    with torch.device("meta"):
        model = build_model(config.model, 2, objective.causal, objective.n_labels)  # two tokens: names have no sizes
        add_adapters(model, config.lora, trained_head(config))
    freeze_unused(config, model)
    check_groups(config.optimizer, model)


def _check_vocabulary_split(ids: int, devices: int) -> None:
    """Raise ConfigError where one of the devices would have no id: each takes an equal number, the last what is left.

    Its empty part of the head has no logits to take a softmax of.
    """
    if -(-ids // devices) * (devices - 1) >= ids:
        raise ConfigError(
            f"parallel.tensor_parallel={devices} splits the vocabulary, and of {ids} ids the last device would get "
            f"none. Try model.vocab_multiple={devices}."
        )
