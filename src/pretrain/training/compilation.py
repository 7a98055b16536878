"""Resolve `parallel.compile`: on for long runs on GPUs; on CPUs when asked, if the compiler computes the same."""

from dataclasses import replace

import torch

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.kernels.block_gradient import TrialBlock
from pretrain.kernels.compile import can_compile, compiler
from pretrain.kernels.device import peak_flops_per_s
from pretrain.launch.rank import log
from pretrain.models.config import TransformerConfig
from pretrain.models.size import training_flops_per_token
from pretrain.training.config import Precision

LONG_S = 300.0  # of a run that is worth a try: compiling takes up to a minute
LARGEST_ERROR = 0.05  # of a compiled block's gradient; in bf16 one of a hundredth is usual


def resolve_compile(config: RunConfig, device: torch.device) -> RunConfig:
    """Return the settings with true or false as `parallel.compile`.

    Null compiles long runs on GPUs. A CPU compiles when asked, unless the gradient of a compiled block differs; each
    start checks that, as a resume may run on another machine. Raises ConfigError where the compiler is missing.
    """
    compiled = bool(config.parallel.compile)
    able = can_compile(device)
    if config.parallel.compile and not able and device.type == "cuda":
        raise ConfigError(
            "parallel.compile=true needs Triton and a C compiler on a GPU, and one of them is missing. Install a "
            "compiler or name yours by the environment variable CC. Try parallel.compile=null, which compiles where it "
            "can."
        )
    if config.parallel.compile and not able:
        raise ConfigError(
            f"parallel.compile=true needs a C++ compiler on a CPU, and {compiler()} is missing. Install one or "
            "name yours by the environment variable CXX. Try parallel.compile=false."
        )
    if config.parallel.compile is None:
        compiled = able and device.type == "cuda" and _is_long(config, device)
    elif compiled and device.type == "cpu" and config.parallel.tensor_parallel == 1:
        compiled = _computes_the_same(config, device)
    return replace(config, parallel=replace(config.parallel, compile=compiled))


def _is_long(config: RunConfig, device: torch.device) -> bool:
    """Return whether the run takes 5 minutes or more, by its limits, at a third of the device's peak FLOP/s."""
    trainer, model = config.trainer, config.model
    if not isinstance(model, TransformerConfig) or config.parallel.tensor_parallel > 1:
        return False  # split matrices are compiled where the settings say so
    bf16 = trainer.precision is Precision.bf16
    tokens = [float(config.batch_size * model.context_length * trainer.max_steps)] if trainer.max_steps > 0 else []
    tokens += [float(trainer.max_tokens)] if trainer.max_tokens else []
    pace = peak_flops_per_s(device, bf16)[0] / 3 * trainer.ranks / training_flops_per_token(model, 0)
    seconds = [each / pace for each in tokens] + ([60.0 * trainer.max_time] if trainer.max_time else [])
    return min(seconds, default=float("inf")) >= LONG_S


def _computes_the_same(config: RunConfig, device: torch.device) -> bool:
    """Return whether one block has the same gradient compiled and not; else print a warning."""
    if not isinstance(config.model, TransformerConfig):
        return True
    rows, length = config.rows_per_micro_batch(), config.model.context_length
    bf16 = config.trainer.precision is Precision.bf16
    block = TrialBlock(config.model, rows, length, config.objective.causal, bf16, device)
    expected = block.gradient()
    block.compile()
    error = float((block.gradient() - expected).norm() / expected.norm())
    if error < LARGEST_ERROR:
        return True
    log(
        f"warning: parallel.compile=false: compiled, a block's gradient is another one, off by {error:.2g} of its "
        f"norm: the compiler ({compiler()}) makes wrong code here."
    )
    return False
