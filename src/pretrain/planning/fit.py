"""Search settings that fit the memory of a device at the same global batch size."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from pretrain.errors import ConfigError
from pretrain.parallel.config import ParallelConfig
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import Forecast, Target, forecast
from pretrain.planning.units import gib
from pretrain.training.config import Strategy

KEEPS_LOSSES = "same batch_size, so the same losses"
ESTIMATE_SLACK = 1.3  # a dry run checks estimates up to this multiple of the usable memory


@dataclass(frozen=True)
class Candidate:
    """Settings to try, with their forecast."""

    config: PlanConfig
    forecast: Forecast

    @property
    def preference(self) -> tuple[bool, int, int, bool]:
        """Sort key, smaller for faster settings: recomputation, collectives, matmul size, gathering twice."""
        work = self.forecast.work
        sharing = [Strategy.single, Strategy.ddp, Strategy.fsdp].index(work.strategy)
        return work.activation_checkpointing, sharing, -work.rows, work.reshard_after_forward

    def overrides(self) -> str:
        """Return the settings as overrides of src/train.py."""
        work, parallel = self.forecast.work, self.config.parallel
        settings = [f"batch_size={self.config.batch_size}", f"micro_batch_size={work.rows}"]
        settings.append(f"parallel.activation_checkpointing={str(parallel.activation_checkpointing).lower()}")
        if work.ranks > 1:
            trainer = self.config.trainer
            settings += [f"trainer={work.strategy.name}", f"trainer.devices={trainer.devices}"]
            settings += [f"trainer.num_nodes={trainer.num_nodes}"] if trainer.num_nodes > 1 else []
            settings += [f"trainer.accelerator={trainer.accelerator}"] if trainer.accelerator == "cpu" else []
        if work.sharded:
            settings.append(f"parallel.reshard_after_forward={str(parallel.reshard_after_forward).lower()}")
        for setting in fields(ParallelConfig):  # those that the search does not vary
            value = getattr(parallel, setting.name)
            if value != setting.default and setting.name not in ("activation_checkpointing", "reshard_after_forward"):
                settings.append(f"parallel.{setting.name}={str(value).lower()}")
        return " ".join(settings)


def candidates(config: PlanConfig, target: Target) -> list[Candidate]:
    """Return every combination of settings with the run's batch size, in order of preference."""
    every = [Candidate(variant, forecast(variant, target, simulate=False)) for variant in _variants(config)]
    return sorted(every, key=lambda candidate: candidate.preference)


def fit(config: PlanConfig, target: Target) -> Candidate | None:
    """Return the first candidate whose dry run fits (without dry runs: whose estimate fits), or None."""
    for candidate in candidates(config, target):
        estimated = candidate.forecast
        if not config.dry_run and estimated.fits:
            return candidate
        if config.dry_run and estimated.peak <= ESTIMATE_SLACK * estimated.usable_bytes:
            checked = Candidate(candidate.config, forecast(candidate.config, target, simulate=True))
            if checked.forecast.fits:
                return checked
    return None


def settings_that_fit(config: PlanConfig, target: Target) -> list[str]:
    """Return lines with settings that fit the device; if none do, with other remedies."""
    best = fit(config, target)
    if best is not None:
        lines = [f"Settings that fit ({_figures(best)}; {KEEPS_LOSSES})", f"  {best.overrides()}"]
        return lines + _dropout(config)
    least = min(candidates(config, target), key=lambda candidate: candidate.forecast.peak)
    lines = [
        f"No micro-batch, checkpointing or sharding fits {gib(least.forecast.usable_bytes)}: the smallest is "
        f"{_figures(least)}",
        f"  {least.overrides()}",
    ]
    devices = devices_that_fit(config, target)
    if devices is not None:
        lines += ["It would fit on more devices", f"  trainer=fsdp trainer.devices={devices}"]
        return lines + _dropout(config)
    shorter = config.model.context_length // 2
    return [
        *lines,
        "Try a smaller model, a device with more memory, or shorter rows",
        f"  model.context_length={shorter}",
    ]


def devices_that_fit(config: PlanConfig, target: Target, most: int = 4096) -> int | None:
    """Return the smallest power of two of devices on which the sharded run fits, up to `most`, or None.

    Numbers that do not divide the batch, or its first size where it grows, are left out.
    """
    devices = 2 * config.trainer.ranks
    while devices <= most and config.batch_size % devices == 0:
        trainer = replace(config.trainer, strategy=Strategy.fsdp, devices=devices, num_nodes=1)
        with suppress(ConfigError):  # a batch that grows, or replicas, may not be shared by so many
            sharded = replace(config, trainer=trainer, micro_batch_size=None)
            if any(candidate.forecast.fits for candidate in candidates(sharded, target)):
                return devices
        devices *= 2
    return None


def _figures(candidate: Candidate) -> str:
    return f"{gib(candidate.forecast.peak)}, {candidate.forecast.cost.tokens_per_s:,.0f} tokens/s"


def _dropout(config: PlanConfig) -> list[str]:
    """Return a note for a model with dropout, whose losses are similar, not equal."""
    if not (getattr(config.model, "dropout", 0) or getattr(config.model, "attention_dropout", 0)):
        return []
    return ["  dropout is drawn per micro-batch, so another micro_batch_size has another dropout mask"]


def _variants(config: PlanConfig) -> Iterator[PlanConfig]:
    ranks = config.trainer.ranks
    sharings = [config.trainer.strategy] if ranks == 1 else [Strategy.ddp, Strategy.fsdp]
    for sharing in sharings:
        split = config.parallel.tensor_parallel if sharing is Strategy.fsdp else 1
        per_device = config.batch_size * split * config.parallel.context_parallel // ranks
        for rows in (rows for rows in range(1, per_device + 1) if per_device % rows == 0):
            for checkpointing in (False, True):
                for reshard in (True, False) if sharing is Strategy.fsdp else (True,):
                    parallel = _parallel(config.parallel, sharing, checkpointing, reshard)
                    trainer = replace(config.trainer, strategy=sharing)
                    with suppress(ConfigError):  # a batch that grows is shared by fewer micro-batches
                        yield replace(config, micro_batch_size=rows, trainer=trainer, parallel=parallel)


def _parallel(parallel: ParallelConfig, sharing: Strategy, checkpointing: bool, reshard: bool) -> ParallelConfig:
    """Return the settings of one variant; settings of sharded models are reset if it is not sharded."""
    if sharing is not Strategy.fsdp:
        parallel = replace(parallel, tensor_parallel=1, sequence_parallel=False, replicas=1, cpu_offload=False)
    if not checkpointing:
        parallel = replace(parallel, checkpoint_every_blocks=1, selective_checkpointing=False)
    return replace(parallel, activation_checkpointing=checkpointing, reshard_after_forward=reshard)
