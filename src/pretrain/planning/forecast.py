"""All that can be said of a run before it starts, as one record."""

from dataclasses import dataclass, replace

from pretrain.planning.config import PlanConfig
from pretrain.planning.cost import Cost, best_interval_s, checkpoint_bytes, cost_of
from pretrain.planning.data_at_hand import DataAtHand, data_at_hand
from pretrain.planning.dry_run import Simulated, dry_run
from pretrain.planning.hardware import Hardware, block_flops_per_s, hardware_of, uses_bf16
from pretrain.planning.memory import Memory, memory_of
from pretrain.planning.vocabulary import vocab_size_of
from pretrain.planning.workload import Workload, workload_of

MARGIN = 0.92  # of what a device has: the rest goes to an allocator's fragments and to buffers of collectives


@dataclass(frozen=True)
class Place:
    """Where a run is to happen, found out once: speeds are measured for it, files looked for."""

    hardware: Hardware
    bf16: bool
    vocab_size: int
    data: DataAtHand | None


@dataclass(frozen=True)
class Forecast:
    """A run on a kind of device."""

    place: Place
    work: Workload
    memory: Memory
    cost: Cost
    checkpoint_bytes: int
    checkpoint_s: float
    save_interval_s: float  # that loses least
    simulated: Simulated | None  # none where it was not asked for

    @property
    def peak(self) -> int:
        """The most bytes on one device: as simulated, and corrected by what the formulas say of other kernels.

        By the formulas alone where nothing was simulated.
        """
        if self.simulated is None:
            return self.memory.peak
        as_simulated = memory_of(replace(self.work, gpu=False)).peak - self.memory.buckets
        return max(self.simulated.peak, self.simulated.peak + self.memory.peak - as_simulated)

    @property
    def usable(self) -> int:
        """The bytes of one device that tensors may take; the processes on processors share the machine's."""
        hardware = self.place.hardware
        each = hardware.memory if hardware.gpu else hardware.memory // self.work.ranks
        return max(0, int(MARGIN * (each - hardware.reserved)))

    @property
    def fits(self) -> bool:
        """Whether the run can be expected not to run out of memory."""
        return self.peak <= self.usable


def place_of(config: PlanConfig) -> Place:
    """Return where the run is to happen; for a processor this measures for some seconds.

    Raises ConfigError where the size of the vocabulary is not known, and for a model that is not a Transformer of ours.
    """
    data = data_at_hand(config)
    known = config.vocab_size or (data.vocab_size if data else None)
    vocab_size = known or vocab_size_of(config.tokenizer)
    hardware = hardware_of(config)
    bf16 = uses_bf16(config, hardware)
    if not hardware.gpu:
        workload_of(config, vocab_size, bf16)  # refuses what cannot be planned, before it is measured
        hardware = replace(hardware, block_flops_per_s=block_flops_per_s(config, hardware, bf16))
    return Place(hardware, bf16, vocab_size, data)


def forecast(config: PlanConfig, place: Place, simulate: bool) -> Forecast:
    """Return the forecast of a run; raises ConfigError where the settings leave open what must be known."""
    work = workload_of(config, place.vocab_size, place.bf16, place.hardware.gpu)
    size = checkpoint_bytes(work)
    write_s = size / (1e9 * config.storage_gb_per_s)
    return Forecast(
        place=place,
        work=work,
        memory=memory_of(work),
        cost=cost_of(work, place.hardware, config.mfu, config.max_steps(), config.trainer.max_time),
        checkpoint_bytes=size,
        checkpoint_s=write_s,
        save_interval_s=best_interval_s(write_s, 3600 * config.hours_between_failures),
        simulated=dry_run(config.run_config(), work) if simulate else None,
    )
