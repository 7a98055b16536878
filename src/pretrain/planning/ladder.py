"""A ladder of runs: sizes times lengths, each as overrides of the command line; and the shape for a budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError, shown
from pretrain.models.choices import Parametrization
from pretrain.models.config import ModelConfig, TransformerConfig
from pretrain.models.size import count_parameters_without_weights
from pretrain.models.sizes import Shape, scaled
from pretrain.planning.config import LadderSize, ScaleConfig
from pretrain.planning.scaling import Optimum

_WIDTH_STEP = 32  # channels between the widths that are tried for a budget
_MAX_LAYERS, _MAX_WIDTH = 80, 8192


@dataclass(frozen=True)
class Cell:
    """A run of the ladder."""

    size: LadderSize
    steps: int
    words: tuple[str, ...]  # that make it of the run that was typed

    @property
    def name(self) -> str:
        """Its size and length, such as 2x64 for 1,000 steps."""
        return f"{self.size} for {self.steps:,} steps"


def cells_of(config: ScaleConfig, typed: Collection[str]) -> list[Cell]:
    """Return the runs of the ladder, smallest first; `typed` are the names of settings that stay as they are.

    Raises ConfigError for two lengths that are the same number of steps.
    """
    sizes = [LadderSize.read(size) for size in config.ladder.sizes]
    cells = []
    for size in sizes:
        lengths = lengths_of(config, size)
        found = [cell_of(config, size, tokens, typed) for tokens in lengths]
        if len({cell.steps for cell in found}) < len(found):
            a_step = config.batch_sizes().tokens(1)
            raise ConfigError(
                f"ladder.tokens or ladder.tokens_per_parameter: two of the lengths of {size} "
                f"({', '.join(f'{tokens:,.0f}' for tokens in lengths)} tokens) are the same number of steps of "
                f"{a_step:,} tokens. Try ladder.tokens=[{10 * a_step},{20 * a_step}]."
            )
        cells += found
    return cells


def operations_of(config: ScaleConfig, cell: Cell) -> float:
    """Return parameters times tokens of a run, a sixth of its operations (FLOPs), before it is trained.

    Where the tokenizer has no vocabulary of known size yet, it is taken as one token.
    """
    try:
        vocab_size = config.tokenizer.largest_vocabulary()
    except ConfigError:
        vocab_size = 1
    return float(parameters_of(config, cell.size, vocab_size)) * config.batch_sizes().tokens(cell.steps)


def lengths_of(config: ScaleConfig, size: LadderSize) -> list[float]:
    """Return the lengths of the runs of a size in tokens.

    Raises ConfigError where they follow from the parameters, and those from a vocabulary of unknown size.
    """
    ratios = config.ladder.tokens_per_parameter
    if not ratios:
        return [float(tokens) for tokens in config.ladder.tokens]
    try:
        vocab_size = config.tokenizer.largest_vocabulary()
    except ConfigError as error:
        raise ConfigError(
            f"ladder.tokens_per_parameter={ratios} takes a vocabulary of known size, to count parameters before the "
            f"first run, and tokenizer.kind={config.tokenizer.kind} has none. Try ladder.tokens=[1000000,2000000]."
        ) from error
    parameters = parameters_of(config, size, vocab_size)
    return [ratio * parameters for ratio in ratios]


def cell_of(config: ScaleConfig, size: LadderSize, tokens: float, typed: Collection[str]) -> Cell:
    """Return one run: shape, length and a learning rate that falls with the width; the schedule ends with the run."""
    model = with_size(config.model, size)
    sizes = config.batch_sizes()  # of a batch that grows at first
    steps = max(1, sizes.steps_within(round(tokens + sizes.tokens(1) / 2)))
    words = {
        f"model.{f.name}": getattr(model, f.name)
        for f in fields(model)
        if getattr(model, f.name) != getattr(config.model, f.name)
    }
    words |= {"model.n_layers": size.n_layers, "model.d_model": size.d_model, "trainer.max_steps": steps}
    words |= {
        f"trainer.{name}": None
        for name in ("max_tokens", "max_epochs", "max_time")
        if getattr(config.trainer, name) is not None
    }
    assert isinstance(config.model, TransformerConfig)
    scales_rates = config.model.parametrization is Parametrization.mup  # by the width itself, from the base width's
    if "optimizer.learning_rate" not in typed and not scales_rates:
        ratio = (config.model.d_model / size.d_model) ** config.ladder.rate_exponent
        words["optimizer.learning_rate"] = float(f"{config.optimizer.learning_rate * ratio:.3g}")
    if hasattr(config.schedule, "warmup_fraction") and not any(key.startswith("schedule.warmup") for key in typed):
        words["schedule.warmup_fraction"] = config.ladder.warmup_fraction
        if config.schedule.warmup_tokens is not None:
            words["schedule.warmup_tokens"] = None
    return Cell(size, steps, tuple(f"{key}={shown(value)}" for key, value in words.items()))


def with_size(model: ModelConfig, size: LadderSize) -> TransformerConfig:
    """Return a model of the same family in another shape.

    Raises ConfigError for a model that has no layers and width, and for a size that it cannot have.
    """
    if not isinstance(model, TransformerConfig):
        raise ConfigError(
            f"ladder.sizes scales layers and width, and model.kind={model.kind} is a model of another kind. "
            "Try model=gpt_nano."
        )
    shape = Shape(size.n_layers, size.d_model, model.context_length, 1)
    width = model.attention_head_dim
    try:
        return scaled(model, shape, head_width=width)
    except ConfigError as error:
        rule, multiple = str(error).partition(" Try ")[0], max(width, size.d_model // width * width)
        raise ConfigError(
            f"ladder.sizes or ladder.held_out has {size}, which is no size of this model: {rule} "
            f"Try {size.n_layers}x{multiple}: heads are {width} wide."
        ) from error


def parameters_of(config: RunConfig, size: LadderSize, vocab_size: int) -> int:
    """Return the parameters of the run's model in this size, for a tokenizer of `vocab_size` ids."""
    return count_parameters_without_weights(with_size(config.model, size), config.model.vocabulary(vocab_size))


def size_for(config: RunConfig, sizes: Sequence[LadderSize], optimum: Optimum, vocab_size: int) -> LadderSize:
    """Return layers and width with about the optimal parameters, as slender as the sizes of the ladder grow.

    Width over layers follows a line through those of the ladder, on logarithms of width. A width that the model's
    heads do not divide is left out.
    """
    widths = [math.log(size.d_model) for size in sizes]
    aspects = [math.log(size.d_model / size.n_layers) for size in sizes]
    mean, level = sum(widths) / len(widths), sum(aspects) / len(aspects)
    spread = sum((width - mean) ** 2 for width in widths)
    slope = sum((w - mean) * (a - level) for w, a in zip(widths, aspects, strict=True)) / spread if spread else 0.0
    best, least = sizes[-1], math.inf
    for width in range(_WIDTH_STEP, _MAX_WIDTH + 1, _WIDTH_STEP):
        aspect = math.exp(level + slope * (math.log(width) - mean))
        size = LadderSize(min(_MAX_LAYERS, max(1, round(width / aspect))), width)
        try:
            parameters = parameters_of(config, size, vocab_size)
        except ConfigError:  # no equal heads, such as 224 channels of a model with heads of 64
            continue
        distance = abs(math.log(parameters / optimum.parameters))
        if distance > least + 1.0:  # ever larger from here on
            break
        if distance < least:
            best, least = size, distance
    return best
