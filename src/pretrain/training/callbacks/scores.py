"""Scores on benchmark tasks during training, as curves beside those of the loss."""

from pathlib import Path

import lightning as L
import torch

from pretrain.config.run import RunConfig
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, shown
from pretrain.evaluation.bound import estimate_of
from pretrain.evaluation.config import NeedleConfig, ScoresConfig
from pretrain.evaluation.embedding_tasks import (
    RetrievalSet,
    SentencePairs,
    read_retrieval_set,
    read_sentence_pairs,
    score_embeddings,
    some_pairs,
)
from pretrain.evaluation.examples import ExampleSet, distinct_names, read_examples
from pretrain.evaluation.likelihood import Ints
from pretrain.evaluation.needle import open_haystack, score_needles
from pretrain.evaluation.scorer import Scorer, check_examples
from pretrain.evaluation.tasks import score_tasks
from pretrain.language_model import LanguageModel
from pretrain.launch.rank import rank
from pretrain.launch.run_folder import TABLE
from pretrain.models.interface import LanguageModule
from pretrain.training.callbacks import StepCallback
from pretrain.training.callbacks.checkpoints import Checkpoints, interruptible
from pretrain.training.callbacks.metrics import write
from pretrain.training.callbacks.samples import Writer
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.loggers.csv_table import has_figures
from pretrain.training.throughput import Throughput

NEEDLES = NeedleConfig(trials=2)  # of each length and depth: 30 texts while a model trains
COUNTS = ("pairs", "queries", "passages")  # of examples, the same in every score


def open_tasks(config: ScoresConfig, completes: bool) -> list[ExampleSet]:
    """Return the fixed examples that a run is scored on; `completes`: its model continues texts.

    Raises ConfigError for a task that a masked model cannot do, DataError for a file without examples.
    """
    if config.cloze and not completes:
        raise ConfigError(
            f"scores.cloze={config.cloze} completes passages, and this run trains a model to fill masks. "
            "Try scores.minimal_pairs or scores.multiple_choice."
        )
    tasks = [
        read_examples(task, path, config.max_examples, config.delimiter, key=f"scores.{task.name}")
        for task, path in config.files()
    ]
    distinct_names(tasks, "scores")
    return tasks


def open_vector_tasks(config: ScoresConfig) -> dict[str, SentencePairs | RetrievalSet]:
    """Return what the model's vectors are scored on: pairs of `scores.sts` by folder and file, sets by their folder.

    Raises DataError for a file that is no such table, ConfigError for two of the same name.
    """
    found = dict[str, SentencePairs | RetrievalSet]()
    for key in ("sts", "retrieval"):
        for path in getattr(config, key):
            parts = Path(path).expanduser().resolve()
            name = f"{parts.parent.name}-{parts.stem}" if key == "sts" else parts.name
            if name in found:
                raise ConfigError(
                    f"scores.{key} names two files called {name}, whose metrics would collide. Rename one."
                )
            read = read_retrieval_set(str(parts)) if key == "retrieval" else read_sentence_pairs(str(parts))
            found[name] = some_pairs(read, config.max_examples) if isinstance(read, SentencePairs) else read
    return found


def open_haystacks(config: ScoresConfig, run: RunConfig, tokenizer: Tokenizer) -> dict[str, Ints]:
    """Return the ids of the texts of `scores.needle` by the names of their files.

    Raises ConfigError for a model that is not causal and for two files of one name, and the errors of `open_haystack`.
    """
    if config.needle and not run.objective.causal:
        raise ConfigError(
            f"scores.needle={shown(config.needle)} asks a causal model for the number after a text, and "
            f"objective={run.objective.kind} trains none. Try scores.minimal_pairs or scores.multiple_choice."
        )
    found = dict[str, Ints]()
    for path in config.needle:
        name = f"needle-{Path(path).stem}"
        if name in found:
            raise ConfigError(f"scores.needle names two files called {name}, whose metrics would collide. Rename one.")
        found[name] = open_haystack(path, tokenizer, run.model.context_length, NEEDLES)
    return found


def check_scored(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raise DataError or ConfigError for an example or a text that is too long or too short for the run's context."""
    objective = config.objective
    for task in open_tasks(config.scores, objective.causal or objective.denoises):
        check_examples(task, tokenizer, config.model.context_length, objective.causal)
    open_haystacks(config.scores, config, tokenizer)


class Scores(StepCallback):
    """Logs `eval/<file>/<metric>` every n steps and at the end, without drawing the training's random numbers.

    Rank 0 scores, on a gathered copy if the model is sharded, while the others wait. A signal ends that at once. A
    resume scores a step that was saved but not yet scored.
    """

    def __init__(
        self, config: ScoresConfig, writer: Writer, throughput: Throughput, folder: Path, checkpoints: Checkpoints
    ) -> None:
        """Read the examples before the run starts; `folder` is the run's. Raises like `open_tasks`."""
        self.config = config
        self.checkpoints = checkpoints
        self.table = folder / TABLE
        self.writer = writer
        self.throughput = throughput
        objective = writer.config.objective
        self.tasks = open_tasks(config, objective.causal or objective.denoises)
        self.vector_tasks = open_vector_tasks(config)
        self.haystacks = open_haystacks(config, writer.config, writer.tokenizer)
        for task in self.tasks:
            check_examples(task, writer.tokenizer, writer.config.model.context_length, objective.causal)
        self._scored_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the step that a run resumes from, if it was due and is missing."""
        step = trainer.global_step
        due = self.writer.config.keeps_table and step > 0 and step % self.config.every_n_steps == 0
        if due and not has_figures(self.table, step, "eval/"):
            self._score_between_steps(trainer, pl_module)

    def on_step_end(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Score every n steps."""
        if trainer.global_step % self.config.every_n_steps == 0:
            self._score_between_steps(trainer, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the final weights, if the last step was not scored."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.global_step != self._scored_step:
            self._log(trainer, self._score(pl_module))

    def score_if_missing(self, trainer: L.Trainer, module: TrainingModule) -> None:
        """Score a finished run that was interrupted before its last scores."""
        step = trainer.global_step
        if self.writer.config.keeps_table and not has_figures(self.table, step, "eval/"):
            self._log(trainer, self._score(module))

    def _score_between_steps(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        with self.throughput.paused("scores"):
            self._log(trainer, self._score(module))
            self.checkpoints.agree_and_stop_if_asked(trainer, module)

    def _score(self, module: TrainingModule) -> dict[str, float] | None:
        """Return the metrics on rank 0; None on other ranks, and if a signal ended the scoring. A collective call."""
        model = module.model_with_loss.model
        gathered = self.writer.gathered_model(model)
        if rank() > 0:
            return None

        def score() -> dict[str, float]:
            with torch.compiler.set_stance("force_eager"):  # do not recompile the blocks for inference
                bound = estimate_of(self.writer.config.objective)
                found = score_tasks(gathered, self.writer.tokenizer, self.tasks, self.config.batch_tokens, bound)
                return found | self._of_vectors(gathered) | self._needles(gathered)

        return interruptible(module, score)

    def _of_vectors(self, model: LanguageModule) -> dict[str, float]:
        """Return how well the model's vectors rank sentence pairs and find passages, of each file."""
        was_training, objective, metrics = model.training, self.writer.config.objective, dict[str, float]()
        try:
            llm = LanguageModel(
                model, self.writer.tokenizer, fills_masks=objective.fills_masks, pooling=objective.embedding_pooling
            )
            for name, examples in self.vector_tasks.items():
                found = score_embeddings(llm.embed_beginnings, examples)
                metrics |= {f"eval/{name}/{metric}": value for metric, value in found.items() if metric not in COUNTS}
        finally:
            model.train(was_training)
        return metrics

    def _needles(self, model: LanguageModule) -> dict[str, float]:
        """Return the share of hidden numbers that the model finds, with its interval, of each text."""
        was_training, metrics = model.training, dict[str, float]()
        model.eval()
        try:
            for name, haystack in self.haystacks.items():
                scorer = Scorer(model, self.writer.tokenizer, batch_tokens=self.config.batch_tokens)
                found = score_needles(scorer, haystack, NEEDLES)
                shown_ones = ("accuracy", "accuracy_low", "accuracy_high")
                metrics |= {f"eval/{name}/{metric}": float(found[metric]) for metric in shown_ones}
        finally:
            model.train(was_training)
        return metrics

    def _log(self, trainer: L.Trainer, metrics: dict[str, float] | None) -> None:
        self._scored_step = trainer.global_step
        if metrics is not None:
            write(trainer, metrics, trainer.global_step)
