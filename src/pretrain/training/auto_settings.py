"""Resolve settings that are `auto`: device, precision, and whether to compile."""

from dataclasses import replace

import torch

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.kernels.block_gradient import TrialBlock
from pretrain.kernels.compile import can_compile, compiler
from pretrain.kernels.device import peak_flops_per_s
from pretrain.launch.rank import log
from pretrain.models.layers import use_half_stream
from pretrain.parallel.device import choose_device
from pretrain.parallel.precision import auto_precision, half_dtype
from pretrain.training.config import Precision

MIN_COMPILED_S = 300.0  # shortest run that is compiled by default: compiling takes up to a minute
MAX_GRADIENT_ERROR = 0.05  # of a compiled block, relative to its norm; 0.01 is usual in bf16


def resolve_auto_settings(config: RunConfig, text_tokens: int | None = None) -> RunConfig:
    """Return the settings with every `auto` resolved. Called once per run, so that all processes agree.

    `text_tokens` is the length of the training text, where it is known: of a run by epochs (`depends_on_text`).
    """
    device = choose_device(config.trainer)
    return resolve_compile(resolve_precision(config, device), device, text_tokens)


def depends_on_text(config: RunConfig, device: torch.device) -> bool:
    """Return whether the length of the text decides on compiling: of a run by epochs on a GPU."""
    return config.parallel.compile is None and device.type == "cuda" and config.trainer.max_epochs is not None


def resolve_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """Return the settings with fp32, bf16 or fp16 instead of an `auto` precision.

    A run saves its resolved precision, so a resume on another machine computes in the same one.
    """
    precision = config.trainer.precision
    if precision is Precision.auto:
        precision = auto_precision(device)
    optimizer = config.optimizer.resolved(bf16=precision is Precision.bf16)
    return replace(config, trainer=replace(config.trainer, precision=precision), optimizer=optimizer)


def resolve_compile(config: RunConfig, device: torch.device, text_tokens: int | None = None) -> RunConfig:
    """Return the settings with true or false as `parallel.compile`.

    Null compiles long runs on GPUs. A CPU compiles when asked, unless the gradient of a compiled block differs; each
    start checks that, as a resume may run on another machine. Raises ConfigError if the compiler is missing.
    """
    compiled = bool(config.parallel.compile)
    able = can_compile(device)
    if compiled and not able and device.type == "cuda":
        raise ConfigError(
            "parallel.compile=true needs Triton and a C compiler on a GPU, and one of them is missing. Install a "
            "compiler, or set the environment variable CC to yours. Try parallel.compile=null, which compiles only "
            "with a compiler."
        )
    if compiled and device.type == "mps":
        raise ConfigError(
            "parallel.compile=true compiles for CPUs and NVIDIA GPUs, and this run trains on an Apple GPU (mps). "
            "Try parallel.compile=false."
        )
    if compiled and not able:
        raise ConfigError(
            f"parallel.compile=true needs a C++ compiler on a CPU, and {compiler()} is missing. Install one, or set "
            "the environment variable CXX to yours. Try parallel.compile=false."
        )
    if config.parallel.compile is None:
        compiled = able and device.type == "cuda" and _is_long(config, device, text_tokens)
    elif compiled and device.type == "cpu" and config.parallel.tensor_parallel == 1:
        compiled = _compiles_correctly(config, device)
    return replace(config, parallel=replace(config.parallel, compile=compiled))


def _is_long(config: RunConfig, device: torch.device, text_tokens: int | None) -> bool:
    """Return whether the run takes at least MIN_COMPILED_S at a third of the device's peak FLOP/s."""
    trainer, model = config.trainer, config.model
    if config.parallel.tensor_parallel > 1:
        return False  # tensor parallelism compiles only if the settings ask for it
    steps = trainer.max_steps or -1
    tokens = [float(config.tokens_per_step() * steps)] if steps > 0 else []
    tokens += [float(trainer.max_tokens)] if trainer.max_tokens else []
    tokens += [trainer.max_epochs * text_tokens] if trainer.max_epochs and text_tokens else []
    peak, _ = peak_flops_per_s(device, half_dtype(trainer.precision))
    tokens_per_s = peak / 3 * trainer.ranks / model.training_flops_per_token(1)
    seconds = [limit / tokens_per_s for limit in tokens] + ([60.0 * trainer.max_time] if trainer.max_time else [])
    return min(seconds, default=float("inf")) >= MIN_COMPILED_S


def _compiles_correctly(config: RunConfig, device: torch.device) -> bool:
    """Return whether a block has the same gradient compiled and eager; log a warning if not."""
    shape = config.model.transformer
    if shape is None:
        return True
    rows, length = config.rows_per_micro_batch(), config.model.context_length
    half = half_dtype(config.trainer.precision)
    block = TrialBlock(shape, (rows, length), config.objective.causal, half, device)
    if config.trainer.half_residual_stream:
        use_half_stream(block.model)
    expected = block.gradient()
    block.compile()
    error = float((block.gradient() - expected).norm() / expected.norm())
    if error < MAX_GRADIENT_ERROR:
        return True
    log(
        f"warning: parallel.compile=false: the gradient of a compiled block differs by {error:.2g} of its norm, so "
        f"the compiler ({compiler()}) generates wrong code here."
    )
    return False
