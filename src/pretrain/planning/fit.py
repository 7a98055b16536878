"""Settings that fit the memory of a device and compute the same: the global batch stays what it is."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from pretrain.parallel.config import ParallelConfig
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import Forecast, Place, forecast
from pretrain.training.config import Strategy


@dataclass(frozen=True)
class Candidate:
    """Settings to try, and what they are forecast to take."""

    config: PlanConfig
    forecast: Forecast

    @property
    def preference(self) -> tuple[bool, int, int, bool]:
        """What is smaller for faster settings: work done twice, collectives, small matrix products, gathering twice."""
        work = self.forecast.work
        sharing = [Strategy.single, Strategy.ddp, Strategy.fsdp].index(work.strategy)
        return work.activation_checkpointing, sharing, -work.rows, work.reshard_after_forward

    def words(self) -> str:
        """Return the settings to paste behind src/train.py."""
        work, parallel = self.forecast.work, self.config.parallel
        found = [f"batch_size={self.config.batch_size}", f"micro_batch_size={work.rows}"]
        found.append(f"parallel.activation_checkpointing={str(parallel.activation_checkpointing).lower()}")
        if work.ranks > 1:
            trainer = self.config.trainer
            found += [f"trainer={work.strategy.name}", f"trainer.devices={trainer.devices}"]
            found += [f"trainer.num_nodes={trainer.num_nodes}"] if trainer.num_nodes > 1 else []
            found += [f"trainer.accelerator={trainer.accelerator}"] if trainer.accelerator == "cpu" else []
        if work.sharded:
            found.append(f"parallel.reshard_after_forward={str(parallel.reshard_after_forward).lower()}")
        for setting in fields(ParallelConfig):  # what the search leaves as it is
            value = getattr(parallel, setting.name)
            if value != setting.default and setting.name not in ("activation_checkpointing", "reshard_after_forward"):
                found.append(f"parallel.{setting.name}={str(value).lower()}")
        return " ".join(found)


def candidates(config: PlanConfig, place: Place) -> list[Candidate]:
    """Return every combination of settings that leaves the losses of the run as they are, the preferred first."""
    found = [Candidate(variant, forecast(variant, place, simulate=False)) for variant in _variants(config)]
    return sorted(found, key=lambda candidate: candidate.preference)


def fit(config: PlanConfig, place: Place) -> Candidate | None:
    """Return the first candidate that fits, by the formulas and, where wanted, by the dry run; none if none does."""
    for candidate in candidates(config, place):
        if not candidate.forecast.fits:
            continue
        if not config.dry_run:
            return candidate
        checked = Candidate(candidate.config, forecast(candidate.config, place, simulate=True))
        if checked.forecast.fits:
            return checked
    return None


def smallest(config: PlanConfig, place: Place) -> Candidate:
    """Return the candidate that takes least memory."""
    return min(candidates(config, place), key=lambda candidate: candidate.forecast.peak)


def devices_that_fit(config: PlanConfig, place: Place, most: int = 4096) -> int | None:
    """Return the least power of two of devices over which the run fits when sharded; none up to `most`, if none does.

    Only numbers that divide the global batch are tried.
    """
    devices = 2 * config.trainer.ranks
    while devices <= most and config.batch_size % devices == 0:
        trainer = replace(config.trainer, strategy=Strategy.fsdp, devices=devices, num_nodes=1)
        if any(c.forecast.fits for c in candidates(replace(config, trainer=trainer, micro_batch_size=1), place)):
            return devices
        devices *= 2
    return None


def _variants(config: PlanConfig) -> Iterator[PlanConfig]:
    ranks = config.trainer.ranks
    sharings = [config.trainer.strategy] if ranks == 1 else [Strategy.ddp, Strategy.fsdp]
    for sharing in sharings:
        split = config.parallel.tensor_parallel if sharing is Strategy.fsdp else 1
        per_device = config.batch_size * split // ranks
        for rows in (rows for rows in range(1, per_device + 1) if per_device % rows == 0):
            for checkpointing in (False, True):
                for reshard in (True, False) if sharing is Strategy.fsdp else (True,):
                    parallel = _how(config.parallel, sharing, checkpointing, reshard)
                    trainer = replace(config.trainer, strategy=sharing)
                    yield replace(config, micro_batch_size=rows, trainer=trainer, parallel=parallel)


def _how(parallel: ParallelConfig, sharing: Strategy, checkpointing: bool, reshard: bool) -> ParallelConfig:
    """Return the settings of one variant; what only sharded models have is left out of the others."""
    if sharing is not Strategy.fsdp:
        parallel = replace(parallel, tensor_parallel=1, sequence_parallel=False, replicas=1, cpu_offload=False)
    if not checkpointing:
        parallel = replace(parallel, checkpoint_every_blocks=1, selective_checkpointing=False)
    return replace(parallel, activation_checkpointing=checkpointing, reshard_after_forward=reshard)
