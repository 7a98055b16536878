"""The first weights of a run: from a checkpoint, a base model or an initializer, onto its devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pretrain.config.run import RunConfig
from pretrain.data.packing import PLAN_VERSION
from pretrain.data.prepare import Prepared
from pretrain.data.shuffle import ORDER_VERSION
from pretrain.errors import ConfigError, DataError, shown
from pretrain.interop.families import FAMILIES
from pretrain.interop.family import choose_family
from pretrain.interop.load import LoadParameter, ModelFolder, build_without_weights, open_model, saved_values
from pretrain.interop.peft_folder import read_adapters
from pretrain.kernels.half_copies import HalfCopies
from pretrain.launch.rank import log
from pretrain.launch.run_plan import RunPlan
from pretrain.models.config import ModelConfig, transformer_of
from pretrain.models.interface import LanguageModule, allocate, build_model, move_buffers
from pretrain.models.layers import use_half_stream
from pretrain.models.lora import initial_adapter, is_adapter
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.context_parallel import build_row_split
from pretrain.parallel.mesh import load_parameters
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.precision import half_dtype
from pretrain.training.config import Strategy
from pretrain.training.fine_tuning import base_weights


def initial_weights(run_plan: RunPlan, prepared: Prepared, model: LanguageModule, text_of: str = "") -> LoadParameter:
    """Return the parameters of the resumed run, of `init_from`, or newly initialized ones, by name.

    `text_of` is the stage whose text the run reads; that of the checkpoint is compared where it is of the same stage.
    Raises DataError if the resumed run had other data, ConfigError if `init_from` has another tokenizer or shape,
    CheckpointError if saved weights do not fit the model.
    """
    config, resumed = run_plan.config, run_plan.resumed
    if resumed is not None:
        _check_same_data(resumed.progress, prepared, text_of)
        return saved_values(resumed, config.lora, model)
    if config.init_from:
        base = open_model(config.init_from, cache=config.paths.cache_dir)
        _check_same_tokenizer(config, base, prepared)
        _check_same_shape(config, base.shape)
        _check_same_padding(config, base)
        for line in what_changes(config, base, prepared):
            log(line)
        return _with_adapters(config, base, prepared, model)
    return lambda name, size: config.model.initial_value(name, size, config.seed)


def _with_adapters(config: RunConfig, base: ModelFolder, prepared: Prepared, model: LanguageModule) -> LoadParameter:
    """Return the weights of the base, and those of the adapters if the run trains any."""
    if not config.lora.is_on:
        return base_weights(config, base, prepared, model)
    plain = build_without_weights(config.model, config.objective, prepared.tokenizer)
    weights, sizes = base_weights(config, base, prepared, plain), _sizes(model)
    adapters = None if config.lora.init_from is None else _peft_adapters(config, config.lora.init_from, sizes)

    def load(name: str, size: torch.Size) -> Tensor:
        if not is_adapter(name):
            return weights(name, size)
        value = initial_adapter(name, size, config.seed)
        return value if adapters is None else adapters(name, value)

    return load


def _peft_adapters(config: RunConfig, folder: str, sizes: dict[str, torch.Size]) -> Callable[[str, Tensor], Tensor]:
    shape = transformer_of(config.model, "has adapters in a PEFT folder")
    family = choose_family(shape, config.objective.causal, FAMILIES)
    return read_adapters(Path(folder), sizes, config.lora, family)


def _sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def materializer(
    model_with_loss: ModelWithLoss, config: RunConfig, weights: LoadParameter
) -> Callable[[DeviceMesh | None, torch.device], None]:
    """Return a function that shards a meta model over a mesh and loads its weights onto the device.

    No process holds more than its shard and one full parameter.
    """
    half = half_dtype(config.trainer.precision)

    def materialize(mesh: DeviceMesh | None, device: torch.device) -> None:
        model = model_with_loss.model
        if config.trainer.half_residual_stream:
            use_half_stream(model)
        parallelize(model_with_loss, mesh if config.trainer.strategy is Strategy.fsdp else None, config.parallel, half)
        allocate(model_with_loss, "cpu" if config.parallel.cpu_offload else device, rebuilt)
        move_buffers(model_with_loss, device)  # FSDP2 brings parameters to the GPU, and no buffers
        load_parameters(model, weights)
        if half is not None and config.parallel.half_weight_copies:
            model_with_loss.half_copies = HalfCopies(model, half)
        model_with_loss.split_rows = build_row_split(config.parallel_dims(), device.type)
        model_with_loss.train()

    def rebuilt() -> nn.ModuleDict:
        """Return the model again, with values for its buffers, under the name that it has in `ModelWithLoss`."""
        model: Any = model_with_loss.model
        return nn.ModuleDict(
            {"model": build_model(config.model, model.vocab_size, model.causal, config.objective.n_labels)}
        )

    return materialize


def fixed_facts(prepared: Prepared) -> dict[str, Any]:
    """Return the metadata that a resume must find unchanged."""
    return {
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
        "data_fingerprint": prepared.fingerprint,
        "order_version": ORDER_VERSION,
        "plan_version": PLAN_VERSION,
    }


def what_changes(config: RunConfig, base: ModelFolder, prepared: Prepared) -> list[str]:
    """Return a line for each thing that the base model did not learn in its training: direction, place, new tokens."""
    lines, objective = list[str](), config.objective
    if base.objective.causal and not objective.causal and not base.objective.fills_masks:
        lines.append(
            f"init_from={config.init_from} is causal, and objective={objective.kind} reads text from both sides: its "
            "attention becomes bidirectional"
        )
    if objective.denoises and base.objective.shift_targets != objective.shift_targets:
        place = "before a token predicts it" if base.objective.shift_targets else "of a token predicts it"
        lines.append(
            f"in init_from={config.init_from} the position {place}, and with "
            f"objective.shift={str(objective.shift_targets).lower()} another one does, which takes longer to learn"
        )
    if (added := prepared.tokenizer.vocab_size - base.tokenizer.vocab_size) > 0:
        lines.append(f"{added} new {'row' if added == 1 else 'rows'} of the embedding: the mean of the others")
    return lines


def _check_same_tokenizer(config: RunConfig, base: ModelFolder, prepared: Prepared) -> None:
    if base.tokenizer.mask_id is None and prepared.tokenizer.mask_id is not None:
        mask = prepared.tokenizer.roles["mask_token"]
        if base.tokenizer.with_mask(mask).fingerprint == prepared.tokenizer.fingerprint:
            return
    saved, current = base.tokenizer.fingerprint, prepared.tokenizer.fingerprint
    if saved != current:
        raise ConfigError(
            f"init_from={config.init_from} was trained with another tokenizer ({saved[:12]}) than this run's "
            f"({current[:12]}). Try model=imported, which brings its tokenizer, or tokenizer=pretrained "
            f"tokenizer.path={base.tokenizer_folder}."
        )


def _check_same_shape(config: RunConfig, shape: ModelConfig) -> None:
    """Raise ConfigError if a setting changes what the base's weights compute and is not in `allow_change`."""
    ours, theirs = config.model.transformer, shape.transformer
    if ours is None or theirs is None:
        return
    for name, (before, after) in theirs.differences(ours).items():
        if f"model.{name}" not in config.allow_change:
            raise ConfigError(
                f"init_from={config.init_from} has model.{name}={shown(before)}, and this run has "
                f"model.{name}={shown(after)}. Take the whole shape from the base with model=imported, or allow the "
                f"change: 'allow_change=[model.{name}]'."
            )


def _check_same_padding(config: RunConfig, base: ModelFolder) -> None:
    """Raise ConfigError if the vocabulary of the base is padded to another number of rows."""
    ours, theirs = (model.vocabulary(base.tokenizer.vocab_size) for model in (config.model, base.shape))
    if ours != theirs:
        raise ConfigError(
            f"init_from={config.init_from} has model.vocab_multiple={base.shape.vocab_multiple}, which gives its "
            f"embedding {theirs:,} rows, and this run has model.vocab_multiple={config.model.vocab_multiple}, which "
            f"gives it {ours:,}. Try model.vocab_multiple={base.shape.vocab_multiple}."
        )


def _check_same_data(progress: dict[str, Any], prepared: Prepared, text_of: str) -> None:
    other_text = progress.get("text_of", "") != text_of
    for name, value in fixed_facts(prepared).items():
        if progress.get(name) != value and not (name == "data_fingerprint" and other_text):
            raise DataError(
                f"the resumed run was trained with {name} {progress.get(name)}, and here it is {value}: the text or "
                "the program has changed since. Restore the old one, or start anew with init_from=<run>."
            )
