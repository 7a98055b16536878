"""Where a run's first weights come from, and how they reach the devices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from pretrain.checkpoint import open_checkpoint
from pretrain.config import RunConfig
from pretrain.data.order import ORDER_VERSION
from pretrain.data.packing import PLAN_VERSION
from pretrain.data.prepare import Prepared
from pretrain.errors import ConfigError, DataError
from pretrain.language_model import saved_values
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor
from pretrain.models.transformer import Transformer
from pretrain.objectives.objective import Learner
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.whole import fill
from pretrain.training.config import Precision, Strategy
from pretrain.training.launch import Placement

Values = Callable[[str, torch.Size], Tensor]


def first_values(placement: Placement, prepared: Prepared, model: Transformer) -> Values:
    """Return the value of each parameter by its name: of the run resumed, of `init_from`, or fresh.

    Raises DataError where the run resumed had other data, ConfigError where `init_from` had another tokenizer, and
    CheckpointError where saved weights do not fit the model.
    """
    config, resumed = placement.config, placement.resumed
    if resumed is not None:
        _check_same_data(resumed.progress, prepared)
        return saved_values(resumed, model)
    if config.init_from:
        given = open_checkpoint(Path(config.init_from))
        if given.progress["tokenizer_fingerprint"] != prepared.tokenizer.fingerprint:
            raise ConfigError(
                f"init_from={config.init_from} was trained with another tokenizer "
                f"({given.progress['tokenizer_fingerprint'][:12]}) than this run's "
                f"({prepared.tokenizer.fingerprint[:12]}). "
                f"Try tokenizer=pretrained tokenizer.path={given.tokenizer_folder}."
            )
        return saved_values(given, model)
    shape, seed = config.model, config.seed
    assert isinstance(shape, TransformerConfig)
    return lambda name, size: initial_tensor(name, size, shape, seed)


def materialiser(
    learner: Learner, config: RunConfig, values: Values
) -> Callable[[DeviceMesh | None, torch.device], None]:
    """Return what gives a learner without weights its own, on this process's device and sharded over the mesh.

    No process ever holds more than its shard and one whole parameter.
    """
    bf16 = config.trainer.precision is Precision.bf16

    def materialise(mesh: DeviceMesh | None, device: torch.device) -> None:
        model = learner.model
        assert isinstance(model, Transformer)
        parallelize(learner, mesh if config.trainer.strategy is Strategy.fsdp else None, config.parallel, bf16)
        learner.to_empty(device=device)
        model.tie()
        fill(model, values)
        learner.train()

    return materialise


def fixed_facts(prepared: Prepared) -> dict[str, Any]:
    """Return what a resume must find unchanged."""
    return {
        "tokenizer_fingerprint": prepared.tokenizer.fingerprint,
        "data_fingerprint": prepared.fingerprint,
        "order_version": ORDER_VERSION,
        "plan_version": PLAN_VERSION,
    }


def _check_same_data(progress: dict[str, Any], prepared: Prepared) -> None:
    for name, value in fixed_facts(prepared).items():
        if progress.get(name) != value:
            raise DataError(
                f"the run resumed was trained with {name} {progress.get(name)}, and here it is {value}: the text or "
                "the program has changed since. Bring the old one back, or start anew with init_from=<run>."
            )
