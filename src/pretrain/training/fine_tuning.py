"""What fine-tuning adds to a run: labels found in the data, and a new head on the weights of a base."""

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.data.mixture import MixtureDataset
from pretrain.data.prepare import Prepared
from pretrain.data.train_stream import ShuffledRows
from pretrain.errors import ConfigError, DataError
from pretrain.interop.load import LoadParameter, ModelFolder, build_without_weights
from pretrain.launch.rank import log
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import ClassifyConfig
from pretrain.training.datamodule import TextDataModule

_HEAD = "head."


def with_labels(config: RunConfig, prepared: Prepared) -> RunConfig:
    """Return the settings with the labels of the training data, which are saved with the model; others unchanged.

    Raises DataError where `objective.labels` are given and the data has others.
    """
    objective, found = config.objective, prepared.labels
    if not isinstance(objective, ClassifyConfig):
        return config
    if objective.labels and objective.labels != found:
        raise DataError(
            f"objective.labels=[{','.join(objective.labels)}], and the training data has the labels "
            f"[{','.join(found)}]. Try objective.labels=[], which takes those of the data."
        )
    return replace(config, objective=replace(objective, labels=found))


def pairs_left_out(data: TextDataModule) -> list[str]:
    """Return a sentence for each source of which pairs are left out, as their prompts leave nothing to predict."""
    if not isinstance(data.train_stream, MixtureDataset):
        return []
    found = []
    for name, train in data.train_stream.streams.items():
        validation = data.validation_streams.get(name)
        parts = [(train, "to train on"), *([(validation, "to validate on")] if validation else [])]
        counts = [(rows, _left_out(rows), use) for rows, use in parts if _left_out(rows)]
        if counts:
            shown = " and ".join(f"{count:,} of {rows.store.n_documents:,} {use}" for rows, count, use in counts)
            longest = max(rows.fitting_length() for rows, _, _ in counts)
            found.append(
                f"{f'source {name}: ' if name else ''}pairs whose prompts fill the context of {train.plan.row_length} "
                f"tokens have no response to learn and are left out: {shown}. Try model.context_length={longest}, "
                "or shorter prompts."
            )
    return found


def _left_out(rows: ShuffledRows) -> int:
    return 0 if rows.without_target is None else int(rows.without_target.sum())


def values_of_base(config: RunConfig, given: ModelFolder, prepared: Prepared, model: Transformer) -> LoadParameter:
    """Return the values of the base that `init_from` names; of a head that it does not have, fresh ones.

    Raises ConfigError where the base cannot become what the run trains, CheckpointError where its weights do not fit.
    """
    theirs, ours = given.objective, config.objective
    if not isinstance(ours, ClassifyConfig):
        if isinstance(theirs, ClassifyConfig):
            raise ConfigError(
                f"init_from={config.init_from} is a classifier and has no head over the vocabulary, which "
                f"objective={ours.kind} needs. Start from the base that it was made of."
            )
        return given.values(model)
    if ours.left_to_right is not theirs.causal and not (theirs.fills_masks and not ours.left_to_right):
        raise ConfigError(
            f"objective.left_to_right={str(ours.left_to_right).lower()}, and init_from={config.init_from} was trained "
            f"to read the other way. Try objective.left_to_right={str(theirs.causal).lower()}."
        )
    if isinstance(theirs, ClassifyConfig) and theirs.labels == ours.labels:
        return given.values(model)
    base = given.values(build_without_weights(config.model, theirs, prepared.tokenizer))
    new = [name for name, _ in model.named_parameters() if name.startswith(_HEAD)]
    log(f"new parameters, not from {config.init_from}: {', '.join(new)} ({len(ours.labels)} labels)")
    shape, seed = config.model, config.seed
    assert isinstance(shape, TransformerConfig)

    def value(name: str, size: torch.Size) -> Tensor:
        return initial_tensor(name, size, shape, seed) if name.startswith(_HEAD) else base(name, size)

    return value
