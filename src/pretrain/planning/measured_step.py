"""Measure the speed of a run's own training step on this machine."""

import time
from statistics import median

import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.kernels.device import synchronize
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer
from pretrain.parallel.mesh import global_norm, scale_by
from pretrain.parallel.precision import autocast, half_dtype
from pretrain.planning.dry_run import build_model_with_loss, zero_batch
from pretrain.planning.workload import Workload
from pretrain.process_state import generators_and_logs_restored

_STEPS = (2, 20)  # least, because the first is slow; most


def measured_tokens_per_s(config: RunConfig, work: Workload, device: torch.device, seconds: float = 1.5) -> float:
    """Return the tokens per second of training steps on random tokens, eager, on one device.

    The median of the steps that `seconds` allow, the first left out. Torch's generators stay as they were.
    """
    with generators_and_logs_restored():
        step_s = median(_step_times(config, work, device, seconds)[1:])
    return work.rows * work.length * work.accumulation / step_s


def _step_times(config: RunConfig, work: Workload, device: torch.device, seconds: float) -> list[float]:
    """Return the seconds of each step."""
    model_with_loss = build_model_with_loss(config, work, None).to_empty(device=device)
    model = model_with_loss.model
    assert isinstance(model, Transformer)
    model.tie()
    initialize(model, work.model, config.seed)
    optimizer = config.optimizer.build(model)
    batch = zero_batch(config, work).to(device)
    batch.tokens.random_(work.vocab_size)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _STEPS[0] or (time.perf_counter() < end and len(taken) < _STEPS[1]):
        started = time.perf_counter()
        for _ in range(work.accumulation):
            with autocast(device.type, half_dtype(work.precision) if work.autocasts else None):
                loss, count = model_with_loss(batch)
            (loss / count).backward()
        gradients: list[Tensor] = [p.grad for p in model_with_loss.parameters() if p.grad is not None]
        scale_by(gradients, 1.0 / global_norm(gradients))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken
