"""Check the machine of the run: library versions, device, gradients of its kernels, disk space, checkpoint."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.checkpoint.read import PARTS, latest_run, open_checkpoint, run_meant_by_auto
from pretrain.checkpoint.remote import local_path
from pretrain.config.run import RunConfig
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.doctor.shrink import ROWS
from pretrain.interop.load import build_without_weights
from pretrain.kernels.compile import can_compile
from pretrain.kernels.device import device_name
from pretrain.models.lora import add_adapters
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.device import choose_device
from pretrain.parallel.parallelize import parallelize
from pretrain.parallel.precision import auto_precision, autocast, half_dtype
from pretrain.training.config import Precision

VERSIONS = {  # minimum, and upper bound (exclusive), as in pyproject.toml
    "torch": ("2.13", None),
    "lightning": ("2.6.6", None),
    "hydra-core": ("1.3.8", "1.4"),
    "omegaconf": ("2.3.1", "2.4"),
}
FP32_ERROR = 1e-3  # relative to the gradient norm
HALF_ERROR = 0.05  # 0.01 is usual


def versions(context: Context) -> CheckResult:
    """Check that the installed libraries have the versions that the project requires."""
    installed, wrong = [], []
    for name, (floor, ceiling) in VERSIONS.items():
        try:
            current = version(name)
        except PackageNotFoundError:
            current = "missing"
        required = f">={floor}" + (f",<{ceiling}" if ceiling else "")
        if not _fits(current, floor, ceiling):
            wrong.append(f"{name} {current}, but {required} is required: pip install '{name}{required}'")
        installed.append(f"{name} {current}")
    return CheckResult(not wrong, "; ".join(wrong) or f"Python {platform.python_version()}, {', '.join(installed)}")


def _fits(current: str, floor: str, ceiling: str | None) -> bool:
    """Return whether a version is at least `floor` and below `ceiling`; a missing library does not fit."""
    if current == "missing" or _release(current) < _release(floor):
        return False
    return ceiling is None or _release(current) < _release(ceiling)


def device(context: Context) -> CheckResult:
    """Check that the device of the settings exists; raise ConfigError if it does not."""
    chosen = choose_device(context.config.trainer)
    if chosen.type != "cuda":
        return CheckResult(True, f"{chosen.type}, {os.cpu_count()} cores")
    free, total = torch.cuda.mem_get_info(chosen)
    return CheckResult(True, f"{device_name(chosen)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def gradients(context: Context) -> CheckResult:
    """Compare gradients on the run's device, in its dtype and compiled as it is, with a float64 reference.

    The model is the small one, its rows are the user's. The reference is eager, on the CPU, with math attention.
    """
    config, device = context.config, context.device
    precision = config.trainer.precision
    precision = auto_precision(device) if precision is Precision.auto else precision
    half = half_dtype(precision)
    compiles = can_compile(device) and (
        device.type == "cuda" if config.parallel.compile is None else config.parallel.compile
    )
    model, reference = (ModelWithLoss(context.randomized_model(), context.build_objective()) for _ in range(2))
    model.to(device)
    parallelize(model, None, ParallelConfig(compile=compiles), half)
    with autocast(device.type, half):
        gradient = _gradient(model, context.batch(ROWS).to(device))
    with sdpa_kernel(SDPBackend.MATH):
        expected = _gradient(reference.double(), context.batch(ROWS))
    error = float((gradient - expected).norm() / expected.norm())
    limit = HALF_ERROR if half else FP32_ERROR
    return CheckResult(
        error <= limit,  # false for NaN
        f"{device.type}, {precision.name}{', compiled' if compiles else ''}: relative error {error:.1e} "
        f"(limit {limit:g}) over {expected.numel():,} weights",
    )


def _gradient(model_with_loss: ModelWithLoss, batch: Batch) -> Tensor:
    """Return the gradient of the mean loss with respect to all weights: float64 (parameters,), on the CPU."""
    loss, count = model_with_loss.train()(batch)
    (loss / count).backward()
    return torch.cat([p.grad.double().flatten().cpu() for p in model_with_loss.parameters() if p.grad is not None])


def disk_space(context: Context) -> CheckResult:
    """Check that the disk has space for the checkpoints that the run keeps, and one being written."""
    config = context.config
    size = checkpoint_bytes(context)
    copies = config.checkpoint.keep + 1 if config.checkpoint.keep else _checkpoints_written(config)
    folder = _nearest_existing(Path(config.paths.run_dir or config.paths.logs_dir))
    free = shutil.disk_usage(folder).free
    return CheckResult(
        size * copies <= free,
        f"{copies:,} checkpoints of {_in_units(size)} need {_in_units(size * copies)}; "
        f"free in {folder}: {_in_units(free)}",
    )


def checkpoint_bytes(context: Context) -> int:
    """Return the size in bytes of a checkpoint of the full-size model, as the run itself counts it at its start."""
    from pretrain.training.run_state import saved_numbers  # here: settings are checked before Lightning is loaded

    config = context.config
    model = build_without_weights(config.model, config.objective, context.prepared.tokenizer)
    with torch.device("meta"):
        add_adapters(model, config.lora)
    return 4 * saved_numbers(model, config)


def own_checkpoint(context: Context) -> CheckResult:
    """Verify the checkpoint that `resume` names; raise CheckpointError naming the damaged file."""
    named = context.config.resume
    if not named:
        raise NotApplicableError("resume=null names no checkpoint")
    paths = context.config.paths
    if named == "auto":
        folder = run_meant_by_auto(paths.run_dir, paths.logs_dir, context.config.name) or latest_run(paths.logs_dir)
    else:
        folder = local_path(named, paths.cache_dir)
    checkpoint = open_checkpoint(folder)
    tensors = sum(len(checkpoint.tensors(part)) for part in PARTS)
    return CheckResult(
        True, f"{checkpoint.folder} of step {checkpoint.step:,}: sha256 of every file, {tensors:,} tensors read"
    )


def _checkpoints_written(config: RunConfig) -> int:
    """Return the number of checkpoints of a run that keeps all of them; 2 if only `max_time` ends the run."""
    steps = config.max_steps()
    return 2 if steps is None else steps // config.checkpoint.every_n_steps + 1


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents, Path()) if path.is_dir())


def _release(text: str) -> tuple[int, ...]:
    """Return the first three numbers of a version: 2.13.0+cpu gives (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    return tuple([*numbers, 0, 0, 0][:3])


def _in_units(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
