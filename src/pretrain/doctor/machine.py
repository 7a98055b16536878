"""The machine of the run: versions of the libraries, device, gradients by its kernels, disk space, checkpoint."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pretrain.checkpoint.read import latest_run, open_checkpoint, run_meant_by_auto
from pretrain.config.run import RunConfig
from pretrain.doctor.check import CheckResult, NotApplicableError
from pretrain.doctor.context import Context
from pretrain.doctor.shrink import ROWS
from pretrain.interop.load import build_without_weights
from pretrain.kernels.compile import can_compile
from pretrain.kernels.device import bf16_is_fast
from pretrain.objectives.batch import Batch
from pretrain.objectives.objective import ModelWithLoss
from pretrain.parallel.config import ParallelConfig
from pretrain.parallel.parallelize import parallelize
from pretrain.training.auto_settings import choose_device
from pretrain.training.config import Precision

VERSIONS = {  # at least the first, below the second; those of pyproject.toml
    "torch": ("2.13", None),
    "lightning": ("2.6.6", None),
    "hydra-core": ("1.3.8", "1.4"),
    "omegaconf": ("2.3.1", "2.4"),
}
FP32_ERROR = 1e-3  # of a gradient's norm
BF16_ERROR = 0.05  # 0.01 is usual


def versions(context: Context) -> CheckResult:
    """Check that the libraries are the versions that the project is tested with, or later."""
    found, wrong = [], []
    for name, (floor, ceiling) in VERSIONS.items():
        try:
            own = version(name)
        except PackageNotFoundError:
            own = "missing"
        wanted = f">={floor}" + (f",<{ceiling}" if ceiling else "")
        fits = own != "missing" and _parts(own) >= _parts(floor) and not (ceiling and _parts(own) >= _parts(ceiling))
        found.append(f"{name} {own}")
        wrong += [] if fits else [f"{name} {own}, where {wanted} is needed: pip install '{name}{wanted}'"]
    return CheckResult(not wrong, "; ".join(wrong) or f"Python {platform.python_version()}, {', '.join(found)}")


def device(context: Context) -> CheckResult:
    """Check that the device of the settings exists; raises ConfigError where it does not."""
    chosen = choose_device(context.config.trainer)
    if chosen.type != "cuda":
        return CheckResult(True, f"{chosen.type}, {os.cpu_count()} cores")
    free, total = torch.cuda.mem_get_info(chosen)
    name = torch.cuda.get_device_name(chosen)
    return CheckResult(True, f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def gradients(context: Context) -> CheckResult:
    """Compare gradients by the run's device, number format and compiler with float64 ones by plain operators.

    The model is the small one, its rows are the user's. Plain: eager, on the CPU, attention by matmuls.
    """
    config, device = context.config, context.device
    wanted = config.trainer.precision
    bf16 = wanted is Precision.bf16 or (wanted is Precision.auto and bf16_is_fast(device))
    compiles = can_compile(device) and (
        device.type == "cuda" if config.parallel.compile is None else config.parallel.compile
    )
    fast, plain = (ModelWithLoss(context.randomized_model(), context.build_objective()) for _ in range(2))
    fast.to(device)
    parallelize(fast, None, ParallelConfig(compile=compiles), bf16)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = _gradient(fast, context.batch(ROWS).to(device))
    with sdpa_kernel(SDPBackend.MATH):
        expected = _gradient(plain.double(), context.batch(ROWS))
    error = float((found - expected).norm() / expected.norm())
    limit = BF16_ERROR if bf16 else FP32_ERROR
    return CheckResult(
        error <= limit,  # false for NaN
        f"{device.type}, {'bf16' if bf16 else 'fp32'}{', compiled' if compiles else ''}: off by {error:.1e} of their "
        f"norm (at most {limit:g}), over {expected.numel():,} weights",
    )


def _gradient(model_with_loss: ModelWithLoss, batch: Batch) -> Tensor:
    """Return the gradient of the mean loss over all weights, float64 (parameters,), on the CPU."""
    loss, count = model_with_loss.train()(batch)
    (loss / count).backward()
    return torch.cat([p.grad.double().flatten().cpu() for p in model_with_loss.parameters() if p.grad is not None])


def disk_space(context: Context) -> CheckResult:
    """Check that the checkpoints that the run keeps, and one being written, fit on its disk."""
    config = context.config
    each = checkpoint_bytes(context)
    copies = config.checkpoint.keep + 1 if config.checkpoint.keep else _checkpoints_written(config)
    folder = _existing(Path(config.paths.run_dir or config.paths.logs_dir))
    free = shutil.disk_usage(folder).free
    return CheckResult(
        each * copies <= free,
        f"{copies:,} checkpoints of {_size(each)} need {_size(each * copies)}; free in {folder}: {_size(free)}",
    )


def checkpoint_bytes(context: Context) -> int:
    """Return the bytes of the user's full-size weights and optimizer state, in 32 bits."""
    config = context.config
    model = build_without_weights(config.model, config.objective, context.prepared.tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 4 * (parameters + config.optimizer.state_numbers(model))


def own_checkpoint(context: Context) -> CheckResult:
    """Verify the checkpoint that `resume` names; raises CheckpointError naming what is damaged."""
    named = context.config.resume
    if not named:
        raise NotApplicableError("resume=<run folder> names none")
    folder = Path(named)
    if named == "auto":
        paths = context.config.paths
        meant = run_meant_by_auto(paths.run_dir, paths.logs_dir, context.config.name)
        folder = meant or latest_run(paths.logs_dir)
    found = open_checkpoint(folder)
    tensors = sum(len(found.tensors(part)) for part in ("model", "optimizer", "random"))
    return CheckResult(True, f"{found.folder} of step {found.step:,}: sha256 of every file, {tensors:,} tensors read")


def _checkpoints_written(config: RunConfig) -> int:
    """Return the number of checkpoints of a run that keeps all, from its steps; 2 where only the clock ends it."""
    steps = config.max_steps()
    return 2 if steps is None else steps // config.checkpoint.every_n_steps + 1


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents, Path()) if path.is_dir())


def _parts(text: str) -> tuple[int, ...]:
    """Return the numbers of a release, three of them: 2.13.0+cpu gives (2, 13, 0)."""
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(number) for number in release[0].split(".")] if release else []
    return tuple([*numbers, 0, 0, 0][:3])


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
