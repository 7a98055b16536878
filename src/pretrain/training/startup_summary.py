"""What a run says before its first step: what it is about to do, and what speaks against it."""

import os
import platform
from collections.abc import Mapping

import torch

from pretrain.config.run import RunConfig
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.models.transformer import Transformer
from pretrain.planning.scaling import data_warnings, source_warnings
from pretrain.training.config import Precision
from pretrain.training.datamodule import TextDataModule
from pretrain.training.fine_tuning import pairs_left_out
from pretrain.training.learning_rate import shortened_decay
from pretrain.training.run_length import run_length
from pretrain.training.validation import validation_warnings

WAITS = "; the first step and the first validation wait for the compiler, up to a few minutes"


def startup_summary(
    config: RunConfig, model: Transformer, data: TextDataModule, device: torch.device, precision: Precision
) -> str:
    """Return one line: the model, the machine, the length of the run and its data."""
    parameters, stream = sum(parameter.numel() for parameter in model.parameters()), data.train_stream
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    threads = f", {torch.get_num_threads()} threads of {os.cpu_count()}" if device.type == "cpu" else ""
    ranks = config.trainer.ranks
    shared = f" by {ranks} processes ({config.trainer.strategy.name})" if ranks > 1 else ""
    shares = ", ".join(f"{name} {float(share):.1%}" for name, share in stream.shares.items() if name)
    return (
        f"training {config.name or 'a model'} ({parameters:,} parameters, {config.objective.kind}) on {device.type} "
        f"({name}{threads}) in {precision.name}{shared}: {run_length(config, batch_sizes=data.batch_sizes)} of "
        f"{config.batch_size} rows x {config.model.context_length} tokens, "
        f"{sum(stream.tokens().values()):,} tokens of data"
        + (" so far" if stream.is_open() else "")
        + (f" ({shares})" if shares else "")
        + (WAITS if config.parallel.compile else "")
    )


def startup_warnings(
    config: RunConfig, model: Transformer, data: TextDataModule, without_validation: Mapping[str, str]
) -> list[str]:
    """Return a sentence with the figures for each doubt about the plan; of a corpus still being read, few.

    `without_validation` is what `not_validated` returns.
    """
    steps, warmup = config.max_steps(data.batch_sizes), config.warmup_steps(data.batch_sizes)
    found = []
    fine_tunes = isinstance(config.data, AnnotatedConfig)  # a model far larger than its data, which it reads often
    if not data.train_stream.is_open() and not fine_tunes:
        rows = data.batch_sizes.samples(steps or 0)  # by the clock nobody knows how many
        tokens = data.train_stream.tokens()
        epochs = {name: times for name, times in data.train_stream.epochs(rows).items() if name}
        parameters = sum(p.numel() for p in model.parameters())
        found += data_warnings(parameters, sum(tokens.values()), data.batch_sizes.tokens(steps or 0))
        found += source_warnings(epochs, tokens)
    if steps is not None and warmup >= steps:
        found.append(f"the warm-up takes {warmup:,} steps and the run {steps:,}: its learning rate never comes down.")
    elif steps is not None and (shorter := shortened_decay(config, steps, warmup)):
        found.append(shorter)
    return found + pairs_left_out(data) + validation_warnings(without_validation, data.validation_streams)
