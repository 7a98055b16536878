"""Fine-tuning: labels from the data, and a new head on the weights of a base model."""

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
from pretrain.models.interface import LanguageModule, build_model
from pretrain.objectives.fine_tuning_config import ClassifyConfig, ContrastiveConfig, RegressConfig
from pretrain.training.datamodule import TextDataModule

_HEAD = "head."


def with_labels(config: RunConfig, prepared: Prepared) -> RunConfig:
    """Return the settings with the labels of the training data; settings without labels are unchanged.

    Raises DataError if `objective.labels` differ from those of the data.
    """
    objective, labels = config.objective, prepared.labels
    if (classifier := objective.classifier) is None:
        return config
    if classifier.labels and classifier.labels != labels:
        raise DataError(
            f"objective.labels=[{','.join(classifier.labels)}], and the training data has the labels "
            f"[{','.join(labels)}]. Try objective.labels=[], which takes those of the data."
        )
    return replace(config, objective=replace(classifier, labels=labels))


def trained_head(config: RunConfig) -> str | None:
    """Return the prefix of the parameters that a run with adapters trains beside them: those of a new label head."""
    return None if config.objective.n_labels is None else _HEAD


def freeze_unused(config: RunConfig, model: LanguageModule) -> None:
    """Freeze the head where the objective compares hidden states: it would have no gradient."""
    if config.objective.embedding_pooling is not None:
        for name, parameter in model.named_parameters():
            if name.startswith(_HEAD):
                parameter.requires_grad_(False)


def excluded_pairs(data: TextDataModule) -> list[str]:
    """Return a warning for each source with pairs whose prompts fill the context, so that no target remains."""
    if not isinstance(data.train_stream, MixtureDataset):
        return []
    warnings = []
    for name, train in data.train_stream.streams.items():
        validation = data.validation_streams.get(name)
        parts = [(train, "to train on"), *([(validation, "to validate on")] if validation else [])]
        counts = [(rows, count, use) for rows, use in parts if (count := _n_excluded(rows))]
        if counts:
            numbers = " and ".join(f"{count:,} of {rows.store.n_documents:,} {use}" for rows, count, use in counts)
            longest = max(rows.fitting_length() for rows, _, _ in counts)
            warnings.append(
                f"{f'source {name}: ' if name else ''}pairs whose prompts fill the context of {train.plan.row_length} "
                f"tokens have no response to learn and are excluded: {numbers}. Try model.context_length={longest}, "
                "or shorter prompts."
            )
    return warnings


def truncated_documents(data: TextDataModule) -> list[str]:
    """Return a warning for each source with texts or pairs that are longer than a row, so that they lose their ends."""
    streams = data.train_stream.streams if isinstance(data.train_stream, MixtureDataset) else {}
    return [
        f"{f'source {name}: ' if name else ''}{count:,} of {rows.store.n_documents:,} examples have more than the "
        f"{rows.plan.row_length} tokens of a row, up to {int(rows.store.document_lengths().max()):,}: the longest text "
        "of each loses its end first. Try a larger model.context_length."
        for name, rows in streams.items()
        if (count := rows.truncated_documents())
    ]


def _check_direction(config: RunConfig, base: ModelFolder, left_to_right: bool) -> None:
    """Raise ConfigError for attention that the base was not trained with."""
    if left_to_right is not base.objective.causal and not (base.objective.fills_masks and not left_to_right):
        raise ConfigError(
            f"objective.left_to_right={str(left_to_right).lower()}, and the attention of init_from={config.init_from} "
            f"is the opposite. Try objective.left_to_right={str(base.objective.causal).lower()}."
        )


def _with_new_tokens(config: RunConfig, base: ModelFolder, prepared: Prepared, model: LanguageModule) -> LoadParameter:
    """Return the weights of a base model by name, with rows for tokens that its vocabulary lacks.

    A new row is the mean of the rows of the base's tokens, so that it changes the predictions of the others little. It
    overwrites a row of padding if the base's vocabulary is padded. Source: Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
    """
    known, wanted = base.tokenizer.vocab_size, prepared.tokenizer.vocab_size
    if known == wanted:
        return base.values(model)
    before = build_without_weights(config.model, base.objective, base.tokenizer)
    with torch.device("meta"):
        wider = build_model(config.model, before.vocab_size + 1, before.causal)
    weights, sizes = base.values(before), {name: parameter.shape for name, parameter in before.named_parameters()}
    by_token = {name for name, parameter in wider.named_parameters() if parameter.shape != sizes[name]}

    def load(name: str, size: torch.Size) -> Tensor:
        value = weights(name, sizes[name])
        if name not in by_token:
            return value
        new, padding = value[:known].float().mean(0, keepdim=True).to(value.dtype), value[wanted:]
        return torch.cat([value[:known], new.expand(size[0] - known - len(padding), *value.shape[1:]), padding])

    return load


def _n_excluded(rows: ShuffledRows) -> int:
    return 0 if rows.without_target is None else int(rows.without_target.sum())


def base_weights(config: RunConfig, base: ModelFolder, prepared: Prepared, model: LanguageModule) -> LoadParameter:
    """Return the weights of the base model `init_from` by name, and initial ones for a head that it lacks.

    Raises ConfigError if the base cannot be fine-tuned with this objective, CheckpointError if its weights do not fit.
    """
    objective, of_base = config.objective, base.objective
    if not isinstance(objective, ClassifyConfig | RegressConfig):
        if of_base.n_labels is not None:
            what = "predicts numbers of texts" if of_base.classifier is None else "is a classifier"
            raise ConfigError(
                f"init_from={config.init_from} {what} and has no head over the vocabulary, which "
                f"objective={config.objective.kind} needs. Start from the model that it was fine-tuned from."
            )
        if isinstance(config.objective, ContrastiveConfig):
            _check_direction(config, base, config.objective.left_to_right)
        return _with_new_tokens(config, base, prepared, model)
    _check_direction(config, base, objective.left_to_right)
    if type(of_base) is type(objective) and getattr(of_base, "labels", None) == getattr(objective, "labels", None):
        return base.values(model)
    weights = base.values(build_without_weights(config.model, base.objective, prepared.tokenizer))
    new = [name for name, _ in model.named_parameters() if name.startswith(_HEAD)]
    outputs = f"{objective.n_labels} labels" if isinstance(objective, ClassifyConfig) else "a number"
    log(f"new parameters, not from {config.init_from}: {', '.join(new)} ({outputs})")

    def load(name: str, size: torch.Size) -> Tensor:
        return config.model.initial_value(name, size, config.seed) if name.startswith(_HEAD) else weights(name, size)

    return load
