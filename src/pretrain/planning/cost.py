"""Operations, time and checkpoint size of a run."""

import math
from dataclasses import dataclass, replace

from pretrain.data.batch_sizes import BatchSizes
from pretrain.models.size import training_flops_per_token
from pretrain.planning.estimate import block_bytes
from pretrain.planning.hardware import Hardware
from pretrain.planning.workload import FLOAT_BYTES, Workload


@dataclass(frozen=True)
class Growth:
    """Sizes of the steps of a run whose batch changes, seen from a step on."""

    sizes: BatchSizes
    before: int = 0  # steps of the run before the first one that is planned

    def tokens(self, steps: int) -> int:
        """Return the tokens that the first `steps` planned steps read, padding included."""
        return self.sizes.tokens(self.before + steps) - self.sizes.tokens(self.before)

    def steps_within(self, tokens: int) -> int:
        """Return the largest number of planned steps that read at most `tokens` tokens."""
        return self.sizes.steps_within(self.sizes.tokens(self.before) + tokens) - self.before


@dataclass(frozen=True)
class Cost:
    """Operations and time of a run."""

    flops_per_token: float  # forward and backward
    recomputed_flops_per_token: float  # by activation checkpointing, which utilization (MFU) does not count
    tokens_per_step: int
    steps: int | None  # None: the run has no limit
    step_s: float
    device_count: int
    growing: Growth | None = None  # of a batch that grows; None: all steps have one size

    @property
    def tokens(self) -> int | None:
        """Tokens read over the whole run, padding included."""
        if self.steps is None:
            return None
        return self.steps * self.tokens_per_step if self.growing is None else self.growing.tokens(self.steps)

    @property
    def flops(self) -> float | None:
        """Operations of the whole run."""
        return None if self.tokens is None else self.flops_per_token * self.tokens

    @property
    def tokens_per_s(self) -> float:
        """Speed of all devices together."""
        return self.tokens_per_step / self.step_s

    @property
    def seconds(self) -> float | None:
        """Time of all steps, without validations, checkpoints and samples."""
        return None if self.tokens is None else self.tokens / self.tokens_per_s


def cost_of(work: Workload, hardware: Hardware, mfu: float, max_steps: int | None, max_minutes: float | None) -> Cost:
    """Return the cost of a run of at most `max_steps` steps and `max_minutes` minutes on these devices.

    A GPU runs at the share `mfu` of its peak. The time of a CPU is a sum without overlap: matmuls at measured speed,
    bytes moved through memory (Williams et al. 2009, https://doi.org/10.1145/1498765.1498785), and bytes exchanged by
    its processes.
    """
    share = work.targets / work.tokens
    per_token = work.passes * training_flops_per_token(work.model, work.vocab_size, share, work.adapters)
    recomputed = work.passes * _recomputed(work)
    per_group = work.rows * work.length * work.accumulation  # tokens, each once
    flops = per_group * (per_token + recomputed) / (work.split * work.context)
    if hardware.bytes_per_s:
        step_s = flops / hardware.flops_per_s(work.precision) + bytes_moved(work) / hardware.bytes_per_s
        if hardware.exchanged_per_s:
            step_s += bytes_exchanged(work) / hardware.exchanged_per_s
    else:
        step_s = flops / (hardware.flops_per_s(work.precision) * mfu)
    by_clock = None if max_minutes is None else int(60 * max_minutes / step_s)
    steps = _first_limit(max_steps, by_clock)
    return Cost(per_token, recomputed, per_group * work.parallel_dims.data_ranks, steps, step_s, work.ranks)


def with_growth(cost: Cost, growth: Growth, max_steps: int | None, max_minutes: float | None) -> Cost:
    """Return the cost with steps of these sizes: a smaller one takes less time, so the clock allows more of them."""
    by_clock = None if max_minutes is None else growth.steps_within(int(60 * max_minutes * cost.tokens_per_s))
    return replace(cost, steps=_first_limit(max_steps, by_clock), growing=growth)


def _first_limit(max_steps: int | None, by_clock: int | None) -> int | None:
    if by_clock is None:
        return max_steps
    return max(1, by_clock) if max_steps is None else min(max_steps, max(1, by_clock))


def _recomputed(work: Workload) -> float:
    """Return the operations per token of recomputing blocks: their forward pass, a third of their training.

    Selective checkpointing recomputes no matmul.
    """
    if work.selective_checkpointing:
        return 0.0
    of_blocks = training_flops_per_token(work.model, work.vocab_size, 0.0)
    return work.checkpointed_blocks / work.model.n_layers * of_blocks / 3.0


def bytes_moved(work: Workload) -> float:
    """Return the bytes that one step moves on one device outside of matmuls.

    An activation is written forward and read backward, its gradient written and read. The optimizer reads gradient,
    weight and moments, and writes all but the gradient; norm and clipping read and write the gradient. Logits are
    read or written about five times. FSDP2 copies gathered weights out of a buffer, and gradients into one.
    """
    per_micro_batch = 4.0 * work.model.n_layers * block_bytes(work)
    per_micro_batch += 5.0 * work.targets * work.vocabulary_held * FLOAT_BYTES
    per_micro_batch += 4.0 * work.tokens_between * work.model.d_model * work.stream_bytes
    if work.sharded:
        per_micro_batch += 2.0 * (_gathered(work) + FLOAT_BYTES * _numbers(work))
    local = sum(work.local_size(name) for name in work.shapes)
    return work.accumulation * per_micro_batch + 10.0 * FLOAT_BYTES * local


def bytes_exchanged(work: Workload) -> float:
    """Return the bytes that one device receives from the others in a step.

    In a ring of n devices each receives (n - 1) / n of an array to gather or to reduce it, and twice that for both
    (Thakur et al. 2005, https://doi.org/10.1177/1094342005051521). FSDP2 gathers blocks forward and backward and the
    rest once, and reduces gradients; replicas reduce their shards; tensor parallelism sums twice per block and
    direction; context parallelism gathers keys and values in every forward pass of a block, and reduces their
    gradients.
    """
    parallel_dims, model, numbers = work.parallel_dims, work.model, _numbers(work)
    if not work.sharded:
        return 2.0 * _ring_share(parallel_dims.ranks) * FLOAT_BYTES * numbers + work.accumulation * _of_rows(work)
    per_micro_batch = _ring_share(parallel_dims.shards) * (_gathered(work) + FLOAT_BYTES * numbers)
    per_micro_batch += 8.0 * _ring_share(work.split) * model.n_layers * work.tokens * model.d_model * work.stream_bytes
    per_micro_batch += _of_rows(work)
    of_replicas = 2.0 * _ring_share(parallel_dims.replicas) * FLOAT_BYTES * numbers / parallel_dims.shards
    return work.accumulation * per_micro_batch + of_replicas


def _of_rows(work: Workload) -> float:
    """Return the bytes of keys and values, and of their gradients, that a micro-batch exchanges."""
    row = 2 * work.tokens * work.context * work.model.kv_heads * work.model.attention_head_dim // work.split
    passes = 2 * work.model.n_layers + work.checkpointed_blocks
    return _ring_share(work.context) * passes * row * work.compute_bytes


def _numbers(work: Workload) -> int:
    """Return how many parameters a device computes with, after gathering."""
    return sum(math.prod(work.gathered_shape(name)) for name in work.shapes)


def _gathered(work: Workload) -> float:
    """Return the bytes of weights that a micro-batch gathers: blocks twice if they are resharded after forward."""
    blocks = sum(math.prod(work.gathered_shape(name)) for name in work.shapes if name.startswith("blocks."))
    backward = blocks if work.reshard_after_forward else 0
    return float((2 if work.half else FLOAT_BYTES) * (_numbers(work) + backward))


def _ring_share(devices: int) -> float:
    return (devices - 1) / devices


def checkpoint_bytes(work: Workload) -> int:
    """Return the bytes of one checkpoint on disk: float32 weights, their average if any, and optimizer state."""
    matrices = sum(math.prod(work.shapes[name]) for name in work.matrices)
    return FLOAT_BYTES * ((3 + work.averaged) * work.parameters - 2 * work.frozen_parameters - matrices)


def best_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """Return the seconds between checkpoints that minimize the time of writing them and of repeating lost work.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval",
    https://doi.org/10.1145/361147.361115; Daly 2006, https://doi.org/10.1016/j.future.2004.11.016, adds higher orders.
    """
    return math.sqrt(2.0 * checkpoint_s * between_failures_s)
