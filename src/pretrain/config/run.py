"""All settings of a training run in one dataclass."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from omegaconf import MISSING

from pretrain.config.registry import typed_callbacks, typed_loggers, with_typed_sources
from pretrain.config.setting import Settings, plugins_setting, setting
from pretrain.data.batch_sizes import BatchSizes, StepSize
from pretrain.data.config import (
    DataConfig,
    MixtureConfig,
    Mode,
    TokenizerConfig,
)
from pretrain.data.fine_tuning_config import ChatConfig, LabeledTextConfig, PairsConfig, RelatedTextsConfig
from pretrain.errors import ConfigError
from pretrain.evaluation.config import ScoresConfig
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.lora_config import LoraConfig
from pretrain.models.sizes import Size
from pretrain.objectives.config import CausalConfig, ObjectiveConfig
from pretrain.objectives.fine_tuning_config import ClassifyConfig, ContrastiveConfig, PooledConfig, RegressConfig
from pretrain.optim.config import OptimizerConfig
from pretrain.optim.schedules import ScheduleConfig
from pretrain.parallel.config import ParallelConfig, ParallelDims, build_parallel_dims
from pretrain.training.config import (
    CheckpointConfig,
    DivergenceConfig,
    EmaConfig,
    LoggingConfig,
    PathsConfig,
    SampleConfig,
    StorageConfig,
    TrainerConfig,
)

MAX_SEED = 2**32 - 1  # of NumPy's global generator, which a run seeds beside those of Python and torch
AUTO = "auto"  # a micro_batch_size that the run's first start replaces by a number
MAX_TOKENS_PER_STEP = 1 << 28  # a step of the largest runs reads a quarter of it


@dataclass
class RunConfig(Settings):
    """Everything a training run depends on."""

    name: str = setting("", "Name of the run's folder below paths.logs_dir; empty: model and data.")
    notes: str = setting("", "Text about the run, kept in its folder and by its loggers.")
    tags: list[str] = setting(default_factory=list, about="Words to find the run by, kept as notes are.")
    size: Size | None = setting(
        None, "Shape of the model, of its preset's family: auto fits text, machine and time; null: that of the "
        "preset.",
    )  # fmt: skip
    time: float | None = setting(
        None, "With size: the time that the training may take; null: 10 minutes.", bounds="(0.0, inf)", unit="minutes",
        example=10,
    )  # fmt: skip
    seed: int = setting(0, "Seed of weights, order of rows, masks and dropout.", bounds=f"[0, {MAX_SEED}]")
    batch_size: int = setting(
        16, "Rows of one optimizer step, over all devices and micro-batches.", bounds=f"[1, {1 << 20}]", unit="rows"
    )
    micro_batch_size: int | str | None = setting(
        None, "Rows of a forward pass on a device; null: all of its step; auto: what a GPU holds.", unit="rows"
    )
    batch_warmup_tokens: int | None = setting(
        None, "Tokens over which the batch grows, linearly in tokens, from batch_warmup_rows to batch_size.",
        bounds="[1, inf)", unit="tokens", example=1000000,
    )  # fmt: skip
    batch_warmup_rows: int | None = setting(
        None, "Rows of the first step; the batch grows by as many at a time.", bounds=f"[1, {1 << 20}]", unit="rows",
        example=4,
    )  # fmt: skip
    stages: dict[str, Any] = setting(
        default_factory=dict,
        about="Parts of the run by name, in order: until_steps, until_tokens or until_fraction, and what each changes.",
    )
    resume: str | None = setting(
        None, "Continue a run exactly: a run folder, one of its checkpoints, or auto for the newest run of this name."
    )
    init_from: str | None = setting(
        None, "Start a new run from the weights of a run, a checkpoint, a Hugging Face folder or name."
    )
    branch: str | None = setting(
        None, "Start a new run from a checkpoint of a run with schedule=wsd, and decay at once; with cooldown."
    )
    cooldown: float | None = setting(
        None, "Steps of the decay of a branch, or, below 1, its part of all steps.", bounds="(0.0, inf)",
        unit="optimizer steps", example=0.2,
    )  # fmt: skip
    allow_change: list[str] = setting(
        default_factory=list, about="Settings that may differ from those of resume or init_from."
    )
    plugins: list[str] = plugins_setting()
    data: DataConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    objective: ObjectiveConfig = MISSING
    model: ModelConfig = MISSING
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # config/named_entries.py types the entries of both
    callbacks: dict[str, Any] = setting(
        default_factory=dict, about="Callbacks by name: kind and the kind's own settings, or class_path and init_args."
    )
    loggers: dict[str, Any] = setting(
        default_factory=dict, about="Loggers by name: kind and the kind's own settings, or class_path and init_args."
    )
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.data = with_typed_sources(self.data)
        self.callbacks, self.loggers = typed_callbacks(self.callbacks), typed_loggers(self.loggers)
        _check_tokens_per_step(self)
        if self.trainer.devices != -1:  # else a machine has as many as it has
            self.parallel_dims()
        self.accumulation_steps()
        _check_batch_warmup(self)
        _check_fine_tuning(self)
        _check_lora(self)
        _check_context(self)
        _check_epochs(self)
        _check_size(self)
        if self.trainer.max_tokens is not None:
            self.max_steps()
        _check_branch(self)
        if self.resume and self.resume != "auto" and self.init_from:
            raise ConfigError(
                f"resume={self.resume} continues a run and init_from={self.init_from} starts a new one: give only one, "
                "or resume=auto, which starts by init_from where there is nothing to resume."
            )
        if self.stages:
            from pretrain.config.stages import check_stages  # here: it makes settings of this class

            self.stages = check_stages(self)

    @property
    def keeps_table(self) -> bool:
        """Whether the run writes metrics.csv."""
        return any(logger.keeps_table for logger in self.loggers.values())

    def parallel_dims(self) -> ParallelDims:
        """Return the shape of the run's device mesh."""
        return build_parallel_dims(self.parallel, self.trainer, self.model)

    def accumulation_steps(self) -> int:
        """Return the number of micro-batches of one optimizer step on each device."""
        ranks = max(1, self.trainer.ranks // (self.parallel.tensor_parallel * self.parallel.context_parallel))
        given, of_device = self.micro_batch_size, max(1, self.batch_size // ranks)
        if isinstance(given, str) and given != AUTO:
            raise ConfigError(
                f"micro_batch_size={given} is neither a number of rows nor auto. Try micro_batch_size={of_device}."
            )
        if isinstance(given, int) and given < 1:
            raise ConfigError(f"micro_batch_size={given} is below 1. Try micro_batch_size={of_device}.")
        micro = given if isinstance(given, int) else of_device
        unit = micro * ranks
        if self.batch_size % unit:
            below = self.batch_size // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise ConfigError(
                f"batch_size={self.batch_size} is not a whole number of micro-batches: one holds {unit} rows "
                f"(micro_batch_size={micro} x {ranks} devices). Nearest that fit: {near}."
            )
        return self.batch_size // unit

    def batch_sizes(self) -> BatchSizes:
        """Return the batch sizes of a run that has these settings from its first step on."""
        sizes = self.step_sizes()
        return BatchSizes.constant(sizes[0][1]).planned(0, sizes)

    def step_sizes(self) -> list[tuple[int, StepSize]]:
        """Return the size of a step with the tokens after which it holds, from 0: several while the batch grows."""
        largest, smallest = self.step_size(), self.batch_warmup_rows
        if smallest is None or self.batch_warmup_tokens is None:
            return [(0, largest)]
        sizes = []
        for rows in self.warmup_batches():
            tokens = self.batch_warmup_tokens * (rows - smallest) // (self.batch_size - smallest)
            sizes.append((tokens, replace(largest, batch_size=rows, tokens_per_step=rows * self.model.context_length)))
        return [*sizes, (self.batch_warmup_tokens, largest)]

    def warmup_batches(self) -> list[int]:
        """Return the batch sizes on the way to `batch_size`; [] where the batch does not grow."""
        smallest = self.batch_warmup_rows
        return [] if smallest is None else list(range(smallest, self.batch_size, smallest))

    def max_steps(self, batch_sizes: BatchSizes | None = None, rows_per_epoch: int | None = None) -> int | None:
        """Return the step at which the run ends by `trainer.max_steps`, `max_tokens` or `max_epochs`; None: at no step.

        `batch_sizes` are those of the run so far; None: always this one. `rows_per_epoch` is known once the text is
        prepared; before that, and for a stream, epochs set no limit.
        """
        trainer, tokens = self.trainer, self.trainer.max_tokens
        if tokens is not None and tokens < self.tokens_per_step():
            raise ConfigError(
                f"trainer.max_tokens={tokens} is less than one step reads ({self.batch_size} rows of "
                f"{self.model.context_length} tokens). Try trainer.max_tokens={1000 * self.tokens_per_step()}."
            )
        sizes, by_epochs = batch_sizes or self.batch_sizes(), None
        by_tokens = None if tokens is None else sizes.steps_within(tokens)
        if trainer.max_epochs is not None and rows_per_epoch is not None:
            rows = Fraction(str(trainer.max_epochs)) * rows_per_epoch  # exact: 0.1 x 30 rows are 3
            by_epochs = sizes.steps_reading(math.ceil(rows))
        by_steps = None if trainer.max_steps == -1 else trainer.max_steps  # None, too, before the rule has decided
        limits = [limit for limit in (by_steps, by_tokens, by_epochs) if limit]
        return min(limits, default=None)

    def warmup_steps(self, batch_sizes: BatchSizes | None = None, max_steps: int | None = None) -> int:
        """Return the optimizer steps of the warm-up; `batch_sizes` as for `max_steps`, which is the run's length."""
        tokens = self.schedule.warmup_tokens
        if tokens is None:
            return self.schedule.warmup_of(max_steps)
        return (batch_sizes or self.batch_sizes()).steps_to(tokens)

    def step_size(self) -> StepSize:
        """Return the rows and tokens of one optimizer step, with a hash of the order of rows."""
        sources = self.data.sources if isinstance(self.data, MixtureConfig) else {}
        parts = {name: [source.weight, source.epochs] for name, source in sources.items()}
        order = json.dumps([self.seed, self.model.context_length, self.data.packing.name, parts], sort_keys=True)
        digest = hashlib.sha256(order.encode()).hexdigest()[:16]
        return StepSize(self.batch_size, self.tokens_per_step(), digest)

    def tokens_per_step(self) -> int:
        """Return the tokens of one optimizer step, padding included."""
        return self.batch_size * self.model.context_length

    def rows_per_micro_batch(self) -> int:
        """Return the rows of one forward pass on one device."""
        return self.batch_size // (self.accumulation_steps() * self.parallel_dims().data_ranks)


def _check_tokens_per_step(config: RunConfig) -> None:
    rows, length = config.batch_size, config.model.context_length
    if rows * length > MAX_TOKENS_PER_STEP:
        raise ConfigError(
            f"batch_size={rows} rows of model.context_length={length} are {rows * length} tokens in one step, above "
            f"{MAX_TOKENS_PER_STEP}, more than any run needs. Try "
            f"batch_size={max(1, MAX_TOKENS_PER_STEP // length // 256)}."
        )


def _check_batch_warmup(config: RunConfig) -> None:
    """Raise ConfigError for a warm-up of the batch whose sizes cannot be shared between micro-batches."""
    rows, tokens = config.batch_warmup_rows, config.batch_warmup_tokens
    if rows is None and tokens is None:
        return
    if rows is None or tokens is None:
        given, missing = ("batch_warmup_rows", "batch_warmup_tokens=1000000")
        if rows is None:
            given, missing = "batch_warmup_tokens", f"batch_warmup_rows={max(1, config.batch_size // 4)}"
        raise ConfigError(
            f"{given}={getattr(config, given)} is half of a warm-up of the batch: it needs the size to begin with and "
            f"the tokens that it takes. Try {given}={getattr(config, given)} {missing}."
        )
    unit = config.batch_size // config.rows_per_micro_batch() if config.trainer.devices != -1 else 1
    if rows >= config.batch_size or rows % unit:
        near = f"batch_warmup_rows={max(unit, min(rows, config.batch_size - 1) // unit * unit)}"
        if unit >= config.batch_size:
            near = f"batch_size={4 * unit} batch_warmup_rows={unit}"
        raise ConfigError(
            f"batch_warmup_rows={rows} must be below batch_size={config.batch_size} and a multiple of {unit}, the "
            f"micro-batches of a step on all devices, which are smaller during the warm-up. Try {near}."
        )


def _check_epochs(config: RunConfig) -> None:
    """Raise ConfigError for `trainer.max_epochs` where a pass over the training rows is not defined."""
    epochs, data = config.trainer.max_epochs, config.data
    if epochs is None:
        return
    if data.mode is Mode.stream:
        raise ConfigError(
            f"trainer.max_epochs={epochs:g} counts passes over all rows, and data.mode=stream trains before it knows "
            "how many there are. Try data.mode=prepare, or trainer.max_tokens=1000000000 instead."
        )
    if isinstance(data, MixtureConfig):
        raise ConfigError(
            f"trainer.max_epochs={epochs:g} counts passes over one corpus, and each source of a mixture is read at a "
            "pace of its own. Try trainer.max_steps=1000, or trainer.max_tokens=1000000."
        )


def _check_size(config: RunConfig) -> None:
    """Raise ConfigError for a `size` where a model's shape cannot be chosen, and for a `time` without a size."""
    if config.size is None:
        if config.time is not None:
            raise ConfigError(
                f"time={config.time:g} is the time of a run whose size is chosen for it, and size is not given. "
                f"Try size=auto time={config.time:g}, or trainer.max_time={config.time:g} for this model."
            )
        return
    reason = None
    if config.init_from:
        reason = f"init_from={config.init_from} has a shape already"
    elif not isinstance(config.model, TransformerConfig):
        reason = f"model.kind={config.model.kind} is not scaled, only transformers"
    elif isinstance(config.objective, ClassifyConfig | RegressConfig):
        reason = f"objective={config.objective.kind} fine-tunes a model that has a shape"
    if reason:
        raise ConfigError(f"size={config.size.name} chooses the shape of a new model, and {reason}. Try size=null.")


def _check_lora(config: RunConfig) -> None:
    """Raise ConfigError for adapters without a base, or with devices that split the matrices."""
    rank = config.lora.rank
    if not rank:
        return
    if not config.init_from and not config.resume:
        raise ConfigError(
            f"lora.rank={rank} trains adapters of a trained base, and init_from names none. "
            "Try init_from=<a run, a Hugging Face folder or a hub name>, or lora.rank=0."
        )
    if config.parallel.tensor_parallel > 1:
        raise ConfigError(
            f"parallel.tensor_parallel={config.parallel.tensor_parallel} splits the matrices, and lora.rank={rank} "
            "needs them in one piece. Try parallel.tensor_parallel=1, with trainer.strategy=fsdp."
        )


def _check_context(config: RunConfig) -> None:
    """Raise ConfigError where devices split rows that the objective needs in one piece."""
    devices = config.parallel.context_parallel
    if devices > 1 and isinstance(config.objective, PooledConfig):
        raise ConfigError(
            f"parallel.context_parallel={devices} splits the positions of a row, and "
            f"objective={config.objective.kind} pools those of whole texts. Try parallel.context_parallel=1."
        )


def _check_fine_tuning(config: RunConfig) -> None:
    """Raise ConfigError for an objective that does not fit the annotations of the data."""
    data, objective = config.data, config.objective
    if isinstance(objective, ContrastiveConfig) or isinstance(data, RelatedTextsConfig):
        _check_contrastive(config)
    elif isinstance(objective, ClassifyConfig | RegressConfig):
        _check_labels(config, objective)
    elif isinstance(data, LabeledTextConfig):
        raise ConfigError(
            f"data.kind=labeled has labels, and objective={objective.kind} does not predict them. "
            "Try objective=classify, or data=text_files for the texts alone."
        )
    elif not isinstance(objective, CausalConfig) and not objective.denoises:
        for name, part in data.parts().items() if isinstance(data, DataConfig) else ():
            if isinstance(part, PairsConfig | ChatConfig):
                raise ConfigError(
                    f"data.{f'sources.{name}.' if name else ''}kind={part.kind} trains a causal model on responses, "
                    f"and objective={objective.kind} fills masks. Try objective=causal, from a causal base, or "
                    "objective=diffusion, from one of its kind."
                )


def _check_labels(config: RunConfig, objective: ClassifyConfig | RegressConfig) -> None:
    """Raise ConfigError unless the data have the labels, or the numbers, that the objective predicts."""
    data, predicted = config.data, "numbers" if isinstance(objective, RegressConfig) else "labels"
    if not isinstance(data, LabeledTextConfig):
        raise ConfigError(
            f"objective={objective.kind} predicts {predicted} of texts, and data.kind={data.kind} has none. "
            "Try data=labeled data.path=<lines of text, tab, label>."
        )
    if data.numeric_labels is not isinstance(objective, RegressConfig):
        numeric = str(data.numeric_labels).lower()
        raise ConfigError(
            f"objective={objective.kind} predicts {predicted}, and data.numeric_labels={numeric}. "
            + (
                "Try objective=regress, or data.numeric_labels=false, which takes each number for a class."
                if data.numeric_labels
                else "Try data.numeric_labels=true, or objective=classify."
            )
        )
    if config.scores.every_n_steps:
        raise ConfigError(
            f"scores.every_n_steps={config.scores.every_n_steps} scores probabilities of tokens, and "
            f"objective={objective.kind} trains a model without them. Try scores.every_n_steps=0."
        )


def _check_branch(config: RunConfig) -> None:
    """Raise ConfigError for a branch without its cool-down, and for one beside another start."""
    branch, cooldown = config.branch, config.cooldown
    if (branch is None) is not (cooldown is None):
        given = f"branch={branch}" if cooldown is None else f"cooldown={cooldown:g}"
        other = "cooldown=0.2" if cooldown is None else "branch=logs/a/checkpoints/step-00001000"
        raise ConfigError(f"{given} needs the other of branch and cooldown. Add {other}.")
    if cooldown is not None and cooldown >= 1.0 and cooldown != round(cooldown):
        raise ConfigError(f"cooldown={cooldown:g} is neither a whole number of steps nor below 1. Try cooldown=0.2.")
    if branch is not None and config.resume == "auto" and not config.paths.run_dir:
        raise ConfigError(
            "branch with resume=auto needs the folder of the branch, or it would find the run that it leaves. "
            "Add paths.run_dir=logs/branch."
        )


def _check_contrastive(config: RunConfig) -> None:
    """Raise ConfigError unless objective, data and the rest suit a contrastive fine-tuning."""
    data, objective = config.data, config.objective
    if not isinstance(data, RelatedTextsConfig):
        raise ConfigError(
            f"objective=contrastive learns from texts that belong together, and data.kind={data.kind} has none. "
            "Try data=related data.path=<lines of JSON with anchor and positive>."
        )
    if not isinstance(objective, ContrastiveConfig):
        raise ConfigError(
            f"data.kind=related has texts that belong together, and objective={objective.kind} does not learn from "
            "them. Try objective=contrastive, or data=text_files for the texts alone."
        )
    width = getattr(config.model, "d_model", None)
    if width is not None and any(size >= width for size in objective.dimensions):
        raise ConfigError(
            f"objective.dimensions={objective.dimensions} must each be below model.d_model={width}, which is always "
            f"trained. Try objective.dimensions=[{max(1, width // 2)}]."
        )
    if config.parallel.tensor_parallel > 1:
        raise ConfigError(
            f"parallel.tensor_parallel={config.parallel.tensor_parallel} gives several processes the same rows, and "
            "objective=contrastive compares the rows of all. Try parallel.tensor_parallel=1."
        )
    if config.scores.every_n_steps and config.scores.predicts_tokens:
        raise ConfigError(
            f"scores.every_n_steps={config.scores.every_n_steps} scores probabilities of tokens, and "
            "objective=contrastive does not train them. Try scores.every_n_steps=0, or scores.sts and "
            "scores.retrieval alone."
        )
