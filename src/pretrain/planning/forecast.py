"""Forecast a run: its memory, cost and checkpoints on a target device."""

from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.config.run import RunConfig
from pretrain.data.config import DataConfig
from pretrain.data.prepare import find_prepared
from pretrain.errors import DataError
from pretrain.models.choices import Norm
from pretrain.planning.config import PlanConfig
from pretrain.planning.cost import Cost, Growth, best_interval_s, checkpoint_bytes, cost_of, with_growth
from pretrain.planning.dry_run import Simulated, dry_run
from pretrain.planning.estimate import Memory, estimate_memory
from pretrain.planning.hardware import Hardware, hardware_of, precision_of
from pretrain.planning.workload import FLOAT_BYTES, Workload, workload_of
from pretrain.training.config import Precision

CHARACTERS_PER_TOKEN = 4.0  # of English with tens of thousands of tokens: a rule of thumb for text without a tokenizer
MARGIN = 0.92  # usable share of a device's memory: fragmentation and buffers of collectives take the rest


@dataclass(frozen=True)
class PreparedData:
    """A prepared corpus in the cache, or a curated one of which the manifest says how large it is."""

    vocab_size: int  # of its tokenizer
    tokens: int | None  # to train on; None for a stream
    characters: int | None = None  # of the manifest, from which `tokens` is estimated; None: they were counted


@dataclass(frozen=True)
class Target:
    """The device and data of a plan, measured and looked up once."""

    hardware: Hardware
    precision: Precision  # resolved
    vocab_size: int
    data: PreparedData | None


@dataclass(frozen=True)
class Forecast:
    """A run on a target."""

    target: Target
    work: Workload
    estimate: Memory
    cost: Cost
    checkpoint_bytes: int
    checkpoint_s: float
    save_interval_s: float  # minimizes the expected loss of time
    simulated: Simulated | None  # None without a dry run

    @property
    def peak(self) -> int:
        """Peak bytes on one device: of the dry run plus DDP's buckets, or of the estimate without one.

        A GPU's RMS norm saves its input once; the CPU's, which the dry run executes, also saves a float32 copy.
        """
        if self.simulated is None:
            return self.estimate.peak
        work = self.work
        copies = 0
        if work.gpu and work.model.norm is Norm.rms:
            blocks = work.model.n_layers - work.checkpointed_blocks
            copies = (2 * blocks + 1) * work.tokens_between * work.model.d_model * FLOAT_BYTES
        return self.simulated.peak + self.estimate.buckets - copies

    @property
    def usable_bytes(self) -> int:
        """Bytes of one device for tensors; processes on a CPU share the machine's memory."""
        hardware = self.target.hardware
        memory = hardware.memory if hardware.gpu else hardware.memory // self.work.ranks
        return max(0, int(MARGIN * (memory - hardware.reserved)))

    @property
    def fits(self) -> bool:
        """Whether the peak is within the usable bytes."""
        return self.peak <= self.usable_bytes


def target_of(config: PlanConfig) -> Target:
    """Return the target of a run; measuring this machine's CPU takes some seconds.

    Raises ConfigError if the size of the vocabulary is unknown.
    """
    data = find_data(config)
    vocab_size = config.vocab_size or (data.vocab_size if data else config.tokenizer.largest_vocabulary())
    hardware = hardware_of(config)
    return Target(hardware, precision_of(config, hardware), vocab_size, data or _by_characters(config, vocab_size))


def with_text_of(config: PlanConfig, target: Target, trained_on: DataConfig) -> Target:
    """Return the target with the text of `config`, a stage of a run that reads another text than the run.

    `trained_on` is the text of the run, from which a tokenizer that is trained learns.
    """
    return replace(target, data=find_data(config, trained_on) or _by_characters(config, target.vocab_size))


def _by_characters(config: RunConfig, vocab_size: int) -> PreparedData | None:
    """Return about what a corpus holds by what its manifest says; None where nothing does."""
    characters = _known_characters(config)
    if characters is None:
        return None
    tokens = int(characters / CHARACTERS_PER_TOKEN * (1.0 - config.data.validation_fraction))
    return PreparedData(vocab_size, tokens, characters)


def forecast(config: PlanConfig, target: Target, simulate: bool, growth: Growth | None = None) -> Forecast:
    """Return the forecast of a run; `simulate` adds the dry run. Raises ConfigError like `workload_of`.

    `growth` are the sizes of its steps where it is a part of a run; None: they follow from the settings.
    """
    work = workload_of(config, target.vocab_size, target.precision, target.hardware.gpu)
    size = checkpoint_bytes(work)
    write_s = size / (1e9 * config.storage_gb_per_s)
    limits = config.max_steps(), config.trainer.max_time
    cost = cost_of(work, target.hardware, config.mfu, *limits)
    if growth is None and config.batch_warmup_rows:
        growth = Growth(config.batch_sizes())
    return Forecast(
        target=target,
        work=work,
        estimate=estimate_memory(work),
        cost=cost if growth is None else with_growth(cost, growth, *limits),
        checkpoint_bytes=size,
        checkpoint_s=write_s,
        save_interval_s=best_interval_s(write_s, 3600 * config.hours_between_failures),
        simulated=dry_run(config.run_config(), work) if simulate else None,
    )


def _known_characters(config: RunConfig) -> int | None:
    try:
        return config.data.known_characters()
    except DataError:  # a plan may be made on a machine without the text
        return None


def find_data(config: RunConfig, trained_on: DataConfig | None = None) -> PreparedData | None:
    """Return the corpus of a run or a stage from the cache; None if it is not prepared or its text is not here.

    `trained_on`: as of `prepare`.
    """
    try:
        prepared = find_prepared(config.data, config.tokenizer, Path(config.paths.cache_dir), trained_on)
    except DataError:  # the same
        return None
    if prepared is None:
        return None
    tokens = sum(store.n_tokens for store in prepared.train.values()) if prepared.train else None
    return PreparedData(prepared.tokenizer.vocab_size, tokens)
