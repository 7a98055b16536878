"""How the model does on tasks with right answers while it trains: curves beside those of the loss."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from pretrain.errors import ConfigError
from pretrain.evaluation.config import ScoresConfig
from pretrain.evaluation.examples import ExampleSet, distinct_names, read_examples
from pretrain.evaluation.scorer import check_examples
from pretrain.evaluation.tasks import score_tasks
from pretrain.launch.rank import rank
from pretrain.launch.run_folder import TABLE
from pretrain.models.transformer import Transformer
from pretrain.training.callbacks.checkpoints import Checkpoints, unless_asked
from pretrain.training.callbacks.metrics import write
from pretrain.training.callbacks.samples import Writer
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.csv_table import has_figures
from pretrain.training.throughput import Throughput


def open_tasks(config: ScoresConfig, causal: bool) -> list[ExampleSet]:
    """Return the fixed examples that a run is scored on; read before it starts, so that a wrong file ends it at once.

    Raises ConfigError for a task that a masked model cannot do, DataError for a file without examples.
    """
    if config.cloze and not causal:
        raise ConfigError(
            f"scores.cloze={config.cloze} continues passages, and this run trains a model to fill masks. "
            "Try scores.minimal_pairs or scores.multiple_choice."
        )
    found = [
        read_examples(task, path, config.max_examples, config.delimiter, key=f"scores.{task.name}")
        for task, path in config.files()
    ]
    distinct_names(found, "scores")
    return found


class Scores(Callback):
    """Logs `eval/<file>/<figure>` every n steps and at the end; the training's random numbers are left alone.

    The first process scores, on a gathered copy where the model is sharded, while the others wait. A signal ends that
    at once. A resume makes up for a step that was saved and not scored any more.
    """

    def __init__(
        self, config: ScoresConfig, writer: Writer, throughput: Throughput, folder: Path, checkpoints: Checkpoints
    ) -> None:
        """Read the examples; `folder` is the run's. Raises what `open_tasks` does."""
        self.config = config
        self.checkpoints = checkpoints
        self.table = folder / TABLE
        self.writer = writer
        self.throughput = throughput
        causal = writer.config.objective.causal
        self.tasks = open_tasks(config, causal)
        for task in self.tasks:
            check_examples(task, writer.tokenizer, writer.config.model.context_length, causal)
        self.newest: dict[str, float] = {}
        self._scored_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the weights that a run goes on from, if it ended before that was done."""
        step = trainer.global_step
        due = self.writer.config.logger.csv and step > 0 and step % self.config.every_n_steps == 0
        if due and not has_figures(self.table, step, "eval/"):
            self._score_between_steps(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score where it is time to, at the end of a step."""
        ended = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ended and trainer.global_step % self.config.every_n_steps == 0:
            self._score_between_steps(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the weights at the end, if that has not been done."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step != self._scored_step:
            self._keep(trainer, self._score(pl_module))

    def make_up(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Score a run that found nothing left to train, if it was cut off before it did that at its end."""
        step = trainer.global_step
        if self.writer.config.logger.csv and not has_figures(self.table, step, "eval/"):
            self._keep(trainer, self._score(module))

    def _score_between_steps(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        with self.throughput.paused("scores"):
            self._keep(trainer, self._score(module))
            self.checkpoints.stop_where_asked_meanwhile(trainer, module)

    def _score(self, module: TrainingModule) -> dict[str, float] | None:
        """Return the figures, on the first process alone; none where a signal ends the scoring."""
        model = module.model_with_loss.model
        assert isinstance(model, Transformer)
        whole = self.writer.whole_model(model)  # every process takes part where the model is sharded
        if rank() > 0:
            return None

        def score() -> dict[str, float]:
            with torch.compiler.set_stance("force_eager"):  # blocks compiled to train are not compiled again to score
                return score_tasks(whole, self.writer.tokenizer, self.tasks, self.config.batch_tokens)

        return unless_asked(module, score)

    def _keep(self, trainer: L.Trainer, figures: dict[str, float] | None) -> None:
        self._scored_step = trainer.global_step
        if figures is not None:
            self.newest = figures
            write(trainer, figures, trainer.global_step)
