"""The norms of gradient and weights part by part: which part of a model a run that goes wrong goes wrong in."""

from collections import defaultdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from pretrain.optim.groups import parameters_by_name
from pretrain.parallel.mesh import global_norm
from pretrain.training.callbacks.metrics import write
from pretrain.training.lightning_module import TrainingModule


class Norms(Callback):
    """Logs `weights/grad_norm/<part>`, before clipping, and `weights/norm/<part>`, before the step, every n steps.

    A part is a block, the embeddings, the final norm or the head. Every process takes part.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._found: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have the module show its gradient at the steps to be logged."""
        assert isinstance(pl_module, TrainingModule)
        parts = parts_of(pl_module.model_with_loss.model)

        def look(scale: Tensor) -> None:
            step = trainer.global_step + 1
            if step % self.every_n_steps == 0 or step == trainer.max_steps:
                for name, parameters in parts.items():
                    gradients = [each.grad for each in parameters if each.grad is not None]
                    self._found[f"weights/grad_norm/{name}"] = global_norm(gradients) * scale
                    self._found[f"weights/norm/{name}"] = global_norm([each.detach() for each in parameters])

        pl_module.gradient_hook = look

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was found in the step that has ended, if it was one to be logged."""
        if self._found:
            norms = {name: float(norm) for name, norm in self._found.items()}
            write(trainer, norms, trainer.global_step, with_nan=True)  # which part it begins in is the question
            self._found.clear()


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of each part: block_00, block_01, ..., and what the others are called."""
    found: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in parameters_by_name(model).items():
        first, second, *_ = name.split(".")
        if parameter.requires_grad:
            found[f"block_{int(second):02}" if first == "blocks" else first].append(parameter)
    return dict(found)
