"""Where a run's first weights come from, and how they reach the devices."""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from pretrain.config.run import RunConfig
from pretrain.data.packing import PLAN_VERSION
from pretrain.data.prepare import Prepared
from pretrain.data.shuffle import ORDER_VERSION
from pretrain.errors import ConfigError, DataError, shown
from pretrain.interop.load import LoadParameter, ModelFolder, open_model, saved_values
from pretrain.launch.run_plan import RunPlan
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.init import initial_tensor
from pretrain.models.transformer import Transformer
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.mesh import load_parameters
from pretrain.parallel.parallelize import parallelize
from pretrain.training.config import Precision, Strategy
from pretrain.training.fine_tuning import values_of_base


def initial_weights(run_plan: RunPlan, prepared: Prepared, model: Transformer) -> LoadParameter:
    """Return the value of each parameter by its name: of the run resumed, of `init_from`, or fresh.

    Raises DataError where the run resumed had other data, ConfigError where `init_from` had another tokenizer or shape,
    and CheckpointError where saved weights do not fit the model.
    """
    config, resumed = run_plan.config, run_plan.resumed
    if resumed is not None:
        _check_same_data(resumed.progress, prepared)
        return saved_values(resumed, model)
    if config.init_from:
        given = open_model(config.init_from)
        _check_same_tokenizer(config, given, prepared)
        _check_same_shape(config, given.shape)
        return values_of_base(config, given, prepared, model)
    shape, seed = config.model, config.seed
    assert isinstance(shape, TransformerConfig)
    return lambda name, size: initial_tensor(name, size, shape, seed)


def materializer(
    model_with_loss: ModelWithLoss, config: RunConfig, values: LoadParameter
) -> Callable[[DeviceMesh | None, torch.device], None]:
    """Return what gives a learner without weights its own, on this process's device and sharded over the mesh.

    No process ever holds more than its shard and one whole parameter.
    """
    bf16 = config.trainer.precision is Precision.bf16

    def materialize(mesh: DeviceMesh | None, device: torch.device) -> None:
        model = model_with_loss.model
        assert isinstance(model, Transformer)
        parallelize(model_with_loss, mesh if config.trainer.strategy is Strategy.fsdp else None, config.parallel, bf16)
        model_with_loss.to_empty(device="cpu" if config.parallel.cpu_offload else device)
        model.tie()
        load_parameters(model, values)
        model_with_loss.train()

    return materialize


def fixed_facts(prepared: Prepared) -> dict[str, Any]:
    """Return what a resume must find unchanged."""
    return {
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
        "data_fingerprint": prepared.fingerprint,
        "order_version": ORDER_VERSION,
        "plan_version": PLAN_VERSION,
    }


def _check_same_tokenizer(config: RunConfig, given: ModelFolder, prepared: Prepared) -> None:
    theirs, ours = given.tokenizer.fingerprint, prepared.tokenizer.fingerprint
    if theirs != ours:
        raise ConfigError(
            f"init_from={config.init_from} was trained with another tokenizer ({theirs[:12]}) than this run's "
            f"({ours[:12]}). Try model=imported, which takes it along, or tokenizer=pretrained "
            f"tokenizer.path={given.tokenizer_folder}."
        )


def _check_same_shape(config: RunConfig, theirs: ModelConfig) -> None:
    """Refuse settings that would read other weights into the same names, but for those that may differ by name."""
    ours = config.model
    if not isinstance(ours, TransformerConfig) or not isinstance(theirs, TransformerConfig):
        return
    for name, (before, after) in theirs.differences(ours).items():
        if f"model.{name}" not in config.allow_change:
            raise ConfigError(
                f"init_from={config.init_from} has model.{name}={shown(before)}, and this run has "
                f"model.{name}={shown(after)}. Take the whole shape from there with model=imported, or allow the "
                f"change: 'allow_change=[model.{name}]'."
            )


def _check_same_data(progress: dict[str, Any], prepared: Prepared) -> None:
    for name, value in fixed_facts(prepared).items():
        if progress.get(name) != value:
            raise DataError(
                f"the run resumed was trained with {name} {progress.get(name)}, and here it is {value}: the text or "
                "the program has changed since. Bring the old one back, or start anew with init_from=<run>."
            )
