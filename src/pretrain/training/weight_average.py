"""An exponential moving average of the weights of a run, with a validation of its own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from pretrain.checkpoint.read import EMA, Checkpoint
from pretrain.config.run import RunConfig
from pretrain.interop.load import LoadParameter, saved_values
from pretrain.kernels.device import sum_dtype
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.groups import parameters_by_name
from pretrain.optim.skipped_steps import local_parts
from pretrain.parallel.parallelize import reshard
from pretrain.training.initial_weights import materializer
from pretrain.training.validation_metrics import ValidationScores


class WeightAverage:
    """The average of the weights after each step, float32, in a second model that is sharded as the trained one is.

    Update t, from 0, leaves min(decay, (1 + t) / (10 + t)) of the average: it covers about the last tenth of a run
    until it reaches `decay`, and forgets the initial weights. A skipped step is no update. The model is no module of
    the training, so that neither DDP, the optimizer nor a checkpoint's `model` see it.
    """

    def __init__(
        self,
        decay: float,
        model_with_loss: ModelWithLoss,
        scores: ValidationScores,
        materialize: Callable[[DeviceMesh | None, torch.device], None],
        is_saved: bool,
    ) -> None:
        self.decay = decay
        self.model_with_loss = model_with_loss
        self.scores = scores
        self.updates = torch.zeros((), dtype=torch.float64)
        self._materialize = materialize  # loads the saved average, or the weights that the run starts with
        self._is_saved = is_saved
        self._weights: list[nn.Parameter] = []
        self._averages: list[nn.Parameter] = []

    def materialize(self, mesh: DeviceMesh | None, device: torch.device, trained: ModelWithLoss) -> None:
        """Build the average on device and mesh beside the trained model, which is there already."""
        self._materialize(mesh, device)
        self.updates = self.updates.to(device, sum_dtype(device))
        self.model_with_loss.model.eval().requires_grad_(False)  # the objective is that of the training
        weights, averages = (parameters_by_name(each.model) for each in (trained, self.model_with_loss))
        self._weights, self._averages = list(weights.values()), [averages[name] for name in weights]

    @torch.no_grad()
    def update(self, applies: Tensor) -> None:
        """Add the weights of this step if `applies` () is true, on the device; nothing is sent between processes."""
        kept = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        share = torch.where(applies, 1.0 - kept, 0.0).float()
        for average, weight in zip(local_parts(self._averages), local_parts(self._weights), strict=True):
            average.lerp_(weight, share.to(average.device))
        self.updates += applies

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by the names of the weights, sharded as they are."""
        reshard(self.model_with_loss)
        return {name: tensor.detach() for name, tensor in parameters_by_name(self.model_with_loss.model).items()}

    def validate(self, loader: int, batch: Batch) -> None:
        """Evaluate a batch of a validation loader."""
        losses, predictions = self.model_with_loss.evaluate(batch)
        self.scores.update(loader, batch, losses, predictions)

    def validated(self) -> dict[str, float]:
        """Return the loss of the average, in nats, as `val/loss_ema`; reset its metrics and free gathered weights."""
        reshard(self.model_with_loss)
        values, _ = self.scores.compute()
        return {"val/loss_ema": values["val/loss"]} if "val/loss" in values else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates; `tensors` are the average itself."""
        return {"ema_updates": int(self.updates)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count updates from a checkpoint that holds the average; without one, from 0."""
        self.updates.fill_(int(state_dict.get("ema_updates", 0)) if self._is_saved else 0)


def build_average(
    config: RunConfig, resumed: Checkpoint | None, model_with_loss: ModelWithLoss, weights: LoadParameter,
    scores: ValidationScores,
) -> WeightAverage | None:  # fmt: skip
    """Return the average of a run; None without `ema.decay`.

    It begins with that of the resumed checkpoint, or where there is none with `weights`, those of the run's start.
    `model_with_loss` is on the meta device; `scores` are for the average alone. Raises CheckpointError if a saved
    average does not fit the model.
    """
    if not config.ema.decay:
        return None
    model = copy.deepcopy(model_with_loss.model)
    is_saved = resumed is not None and resumed.has_average
    if resumed is not None and is_saved:
        weights = saved_values(resumed, config.lora, model, part=EMA)
    second = ModelWithLoss(model, model_with_loss.objective)
    # it is run in validations alone
    plain = replace(config, parallel=replace(config.parallel, compile=False, half_weight_copies=False))
    return WeightAverage(config.ema.decay, second, scores, materializer(second, plain, weights), is_saved)
