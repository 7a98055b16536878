"""size=auto: the largest shape whose compute-optimal run fits the text, the machine and the time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

from pretrain.config.run import RunConfig
from pretrain.data.prepare import Prepared
from pretrain.errors import ConfigError
from pretrain.models.choices import Parametrization
from pretrain.models.config import TransformerConfig
from pretrain.models.sizes import SHAPES, Size, scaled
from pretrain.parallel.device import choose_device
from pretrain.planning.config import Device, PlanConfig
from pretrain.planning.forecast import Forecast, PreparedData, Target, forecast
from pretrain.planning.hardware import hardware_of, precision_of
from pretrain.planning.length_rule import CHINCHILLA, REPEATED, length_by_rule, steps_of_text, tokens_of
from pretrain.planning.measured_step import measured_tokens_per_s
from pretrain.planning.scaling import MAX_USEFUL_EPOCHS, TOKENS_PER_PARAMETER
from pretrain.planning.workload import workload_of

DEFAULT_MINUTES = 10.0
_PAUSES = 0.9  # part of the time that is left for steps: validations, samples and checkpoints take the rest


@dataclass(frozen=True)
class Candidate:
    """One size, with what its training takes on this machine."""

    size: Size
    config: PlanConfig
    forecast: Forecast
    tokens_per_s: float

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.forecast.work.parameters

    @property
    def optimal_tokens(self) -> float:
        """Tokens of a compute-optimal run (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556)."""
        return TOKENS_PER_PARAMETER * self.parameters

    def tokens_in(self, minutes: float) -> float:
        """Return the tokens that training reads in this time, with its pauses."""
        return _PAUSES * 60.0 * minutes * self.tokens_per_s


def size_run(config: RunConfig, prepared: Prepared, typed: Mapping[str, str]) -> tuple[RunConfig, list[str]]:
    """Return the settings with the numbers that `size` and `time` stand for, and lines that say what and why.

    `typed` are the settings by name that stay as they are. The training ends after `time`, or after four passes.
    """
    planned = PlanConfig(**{f.name: getattr(config, f.name) for f in fields(RunConfig)})
    tokens = tokens_of(prepared)
    hardware = hardware_of(planned)
    target = Target(
        hardware, precision_of(planned, hardware), prepared.tokenizer.vocab_size,
        PreparedData(prepared.tokenizer.vocab_size, tokens),
    )  # fmt: skip
    chosen, lines = choose(planned, target, typed)
    sized = with_length(chosen.config, tokens, typed)
    return RunConfig(**{f.name: getattr(sized, f.name) for f in fields(RunConfig)}), lines


def fit_to_text(config: PlanConfig, target: Target, typed: Mapping[str, str]) -> tuple[PlanConfig, list[str]]:
    """Return a plan with the shape and length that the run would get from `size` and `trainer.max_steps=null`, and why.

    Epochs become steps. Text that is not prepared sets no limit.
    """
    tokens = target.data.tokens if target.data else None
    lines: list[str] = []
    if config.size is not None:
        chosen, lines = choose(config, target, typed)
        config = with_length(chosen.config, tokens, typed)
    trainer = config.trainer
    if trainer.max_steps is None:
        parameters = workload_of(config, target.vocab_size, target.precision, target.hardware.gpu).parameters
        steps, line = length_by_rule(config, parameters, tokens)
        config, lines = replace(config, trainer=replace(trainer, max_steps=steps)), [*lines, line]
    elif trainer.max_epochs is not None and tokens is not None:
        by_epochs = config.max_steps(rows_per_epoch=-(-tokens // config.model.context_length))
        config = replace(config, trainer=replace(trainer, max_steps=by_epochs))
    return config, lines


def choose(config: PlanConfig, target: Target, typed: Mapping[str, str]) -> tuple[Candidate, list[str]]:
    """Return the size of a run, and lines that say what was chosen and why.

    Of `size=auto`, the largest whose 20 tokens a parameter are at most four passes over the text and are read within
    `time`; else nano. A size that was named is taken as it is. Raises ConfigError where the time was typed twice.
    """
    size = config.size or Size.auto
    if {"time", "trainer.max_time"} <= typed.keys() and config.time and config.trainer.max_time:
        raise ConfigError(
            f"time={config.time:g} and trainer.max_time={config.trainer.max_time:g} both say how long the run of a "
            f"chosen size may take. Give only one, such as time={config.time:g}."
        )
    minutes = config.trainer.max_time if "trainer.max_time" in typed else config.time
    minutes = minutes or DEFAULT_MINUTES
    config = replace(config, time=minutes)
    speed = partial(_speed, target=target)
    if size is not Size.auto:
        chosen = _candidate(size, config, target, typed, speed)
    else:
        chosen = _largest_that_fits(config, target, typed, speed)
    return chosen, _explain(config, chosen, target)


Speed = Callable[[PlanConfig, Forecast], float]


def _largest_that_fits(config: PlanConfig, target: Target, typed: Mapping[str, str], speed: Speed) -> Candidate:
    """Return the largest size with enough text, memory and time; nano where none has.

    Sizes that the forecast rules out by far are not measured.
    """
    assert config.time is not None
    for size in reversed(SHAPES):
        rough = _candidate(size, config, target, typed, lambda _, planned: planned.cost.tokens_per_s)
        wanted = rough.optimal_tokens
        if wanted > _readable(target) or wanted > 2.0 * rough.tokens_in(config.time) or not rough.forecast.fits:
            continue
        chosen = _candidate(size, config, target, typed, speed)
        if wanted <= chosen.tokens_in(config.time):
            return chosen
    return _candidate(Size.nano, config, target, typed, speed)


def _candidate(size: Size, config: PlanConfig, target: Target, typed: Mapping[str, str], speed: Speed) -> Candidate:
    sized = with_shape(config, size, typed)
    planned = forecast(sized, target, simulate=False)
    while not planned.fits and "micro_batch_size" not in typed and planned.work.rows % 2 == 0:
        sized = replace(sized, micro_batch_size=planned.work.rows // 2)
        planned = forecast(sized, target, simulate=False)
    return Candidate(size, sized, planned, speed(sized, planned))


def with_shape(config: PlanConfig, size: Size, typed: Mapping[str, str]) -> PlanConfig:
    """Return the settings with the shape of a size, its batch, and a learning rate that falls with the width.

    The rate is that of the preset, times the ratio of the widths (Yang et al. 2022, https://arxiv.org/abs/2203.03466,
    for Adam's matrices; experiment=novels_small found it at 192 channels). What was typed stays, and muP
    scales the rate by itself.
    """
    shape, model, ranks = SHAPES[size], config.model, max(1, config.parallel_dims().data_ranks)
    assert isinstance(model, TransformerConfig)
    names = {key.removeprefix("model.") for key in typed if key.startswith("model.")}
    new_model = scaled(model, shape, names)
    rate = config.optimizer.learning_rate
    if "optimizer.learning_rate" not in typed and new_model.parametrization is not Parametrization.mup:
        rate = float(f"{rate * model.d_model / new_model.d_model:.2g}")
    if not typed.keys() & {"batch_warmup_rows", "batch_warmup_tokens"}:  # a recipe's grows to the recipe's own batch
        config = replace(config, batch_warmup_rows=None, batch_warmup_tokens=None)
    batch = config.batch_size if "batch_size" in typed else -(-shape.batch_size // ranks) * ranks
    micro = config.micro_batch_size if typed.keys() & {"batch_size", "micro_batch_size"} else None
    optimizer = replace(config.optimizer, learning_rate=rate)
    return replace(config, model=new_model, optimizer=optimizer, batch_size=batch, micro_batch_size=micro)


def with_length(config: PlanConfig, tokens: int | None, typed: Mapping[str, str]) -> PlanConfig:
    """Return the settings with plain limits instead of `size` and `time`: the time, and four passes over the text."""
    steps = steps_of_text(tokens, config.batch_sizes()) or -1
    own = typed.keys() & {"trainer.max_steps", "trainer.max_tokens", "trainer.max_epochs"}
    trainer = replace(config.trainer, max_time=config.time, max_steps=config.trainer.max_steps if own else steps)
    return replace(config, trainer=trainer, size=None, time=None)


def _readable(target: Target) -> float:
    """Return the tokens of four passes over the text; infinite for a stream and for text that is not prepared."""
    tokens = target.data.tokens if target.data else None
    return float("inf") if tokens is None else MAX_USEFUL_EPOCHS * tokens


def _speed(config: PlanConfig, planned: Forecast, target: Target) -> float:
    """Return the tokens per second of a run: measured where it would train here on one device, else forecast."""
    here = config.device in (Device.auto, Device.cpu) and config.trainer.ranks == 1
    accelerator = "auto" if target.hardware.gpu else "cpu"
    device = choose_device(replace(config.trainer, accelerator=accelerator))
    if not here or (target.hardware.gpu and device.type == "cpu"):  # the GPU is another machine's
        return planned.cost.tokens_per_s
    return measured_tokens_per_s(config.run_config(), planned.work, device)


def _explain(config: PlanConfig, chosen: Candidate, target: Target) -> list[str]:
    """Return what was chosen and why, in a few lines."""
    assert config.size is not None
    assert config.time is not None
    minutes, sized, model = config.time, chosen.config, chosen.config.model
    assert isinstance(model, TransformerConfig)
    in_time, readable = chosen.tokens_in(minutes), _readable(target)
    lines = [
        f"size={config.size.name} time={minutes:g}: {chosen.size.name}, {chosen.parameters:,} parameters: "
        f"model.n_layers={model.n_layers} model.d_model={model.d_model} model.n_heads={model.n_heads} "
        f"model.context_length={model.context_length} batch_size={sized.batch_size} "
        f"optimizer.learning_rate={sized.optimizer.learning_rate:g}",
        f"  {TOKENS_PER_PARAMETER:.0f} tokens a parameter ({CHINCHILLA}) are {chosen.optimal_tokens:,.0f} tokens; "
        f"{minutes:g} minutes at {chosen.tokens_per_s:,.0f} tokens/s allow about {in_time:,.0f}",
    ]
    if readable < float("inf"):
        lines.append(
            f"  {MAX_USEFUL_EPOCHS:.0f} passes over the text ({REPEATED}) are {readable:,.0f} tokens: "
            + ("the run ends with them" if readable < in_time else f"the run ends after {minutes:g} minutes")
        )
    if config.size is Size.auto and chosen.optimal_tokens > min(in_time, readable):
        lack = "text" if readable < in_time else "time"
        lines.append(f"  the smallest size, which more {lack} would train better")
    return lines
