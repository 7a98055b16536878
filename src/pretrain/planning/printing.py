"""A forecast as text."""

from pretrain.data.config import DataConfig
from pretrain.data.prepare import check_files
from pretrain.errors import DataError
from pretrain.planning.config import PlanConfig
from pretrain.planning.forecast import CHARACTERS_PER_TOKEN, Forecast
from pretrain.planning.hardware import Hardware
from pretrain.planning.scaling import (
    BESIROGLU,
    HOFFMANN,
    LEAST_FITTED_FLOPS,
    TOKENS_PER_PARAMETER,
    data_warnings,
    twenty_per_parameter,
)
from pretrain.planning.units import count, duration, gib, percent
from pretrain.planning.workload import Workload
from pretrain.program import command
from pretrain.training.config import Precision

_WIDTH = 20


def describe(forecast: Forecast, config: PlanConfig) -> str:
    """Return a forecast as text: size, optimum, memory, time, checkpoints."""
    parts = [_size(forecast) + _data(forecast, config.data), _optimum(forecast), _memory(forecast)]
    parts += [_time(forecast, config), _checkpoints(forecast, config)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _line(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}} {text}"


def _size(forecast: Forecast) -> list[str]:
    work, cost = forecast.work, forecast.cost
    trained = f", {work.parameters - work.frozen_parameters:,} of them trained" if work.frozen else ""
    lines = ["Size", _line("parameters", f"{work.parameters:,} (vocabulary {work.vocab_size:,}){trained}")]
    per_row = f"{cost.flops_per_token * work.length:,.0f} per row of {work.length:,} tokens"
    lines.append(_line("FLOPs", f"{cost.flops_per_token:,.0f} per token, {per_row}, forward and backward:"))
    of_weights = "4 per frozen weight in a matmul, 6 per trained one" if work.frozen else "6 per weight in a matmul"
    lines.append(_line("", f"{of_weights} + 12 per channel of the heads and visible token, not halved"))
    lines.append(_line("", "if attention is causal (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, app. B)"))
    lines.append(_line("one step", f"{cost.tokens_per_step:,} tokens = {_shape(forecast)}"))
    if cost.steps is None or cost.tokens is None or cost.flops is None:
        return lines
    lines.append(_line("the run", f"{cost.steps:,} steps, {cost.tokens:,} tokens, {cost.flops:.3g} FLOPs"))
    return lines


def _data(forecast: Forecast, text: DataConfig) -> list[str]:
    data, planned = forecast.target.data, forecast.cost.tokens
    if data is None or data.tokens is None:
        try:
            check_files(text)
        except DataError as missing:  # as on another machine than that of the run, or by a misspelled path
            return [_line("data", f"not prepared here: {missing}")]
        return [_line("data", f"not prepared here: {command('prepare')} with the same settings prints its size")]
    size = f"{data.tokens:,} tokens"
    if data.characters is not None:
        size = (
            f"{data.characters:,} characters, not prepared: about {data.tokens:,} tokens to train on at "
            f"{CHARACTERS_PER_TOKEN:g} characters a token"
        )
    if planned is None:
        return [_line("data", size)]
    lines = [_line("data", f"{size}, read {planned / max(1, data.tokens):.2f} times")]
    return lines + [_line("", warning) for warning in data_warnings(forecast.work.parameters, data.tokens, planned)]


def _shape(forecast: Forecast) -> str:
    work = forecast.work
    parts = [f"{work.rows} rows x {work.length:,} tokens"]
    parts += [f"{work.accumulation} micro-batches"] if work.accumulation > 1 else []
    if work.parallel_dims.same_rows > 1:
        parts.append(f"{work.parallel_dims.data_ranks:,} data ranks ({work.ranks:,} devices: {_sharing(work)})")
    elif work.ranks > 1:
        parts.append(f"{work.ranks:,} devices ({_sharing(work)})")
    return " x ".join(parts)


def _sharing(work: Workload) -> str:
    """Return how devices share the model: the strategy, or replicas x shards x context x tensor parallel."""
    dims = work.parallel_dims
    parts = {
        "replicas": dims.replicas,
        "shards" if work.sharded else "copies": dims.shards // dims.context,
        "context parallel": dims.context,
        "tensor parallel": dims.tensor,
    }
    several = " x ".join(f"{size:,} {name}" for name, size in parts.items() if size > 1)
    return work.strategy.name if dims.replicas == dims.same_rows == 1 else several


def _optimum(forecast: Forecast) -> list[str]:
    tokens = forecast.cost.tokens
    if tokens is None or forecast.work.frozen:  # the laws are of training from the start
        return []
    parameters = forecast.work.parameters
    flops = 6.0 * parameters * tokens
    share = tokens / parameters
    lines = [f"Compute-optimal for C = 6 N D = {flops:.3g} FLOPs: this run has {share:.3g} tokens per parameter"]
    rows = [(law.name, law.optimum(flops), law.loss(parameters, tokens)) for law in (HOFFMANN, BESIROGLU)]
    simple = twenty_per_parameter(flops)
    rows.append((f"{TOKENS_PER_PARAMETER:.0f} tokens per parameter", simple, BESIROGLU.loss(parameters, tokens)))
    is_fitted = flops >= LEAST_FITTED_FLOPS
    for name, best, loss in rows:
        losses = f": loss {best.loss:.3f}; this run's {loss:.3f}" if is_fitted else ""
        line = f"{count(best.parameters)} parameters, {count(best.tokens)} tokens{losses}"
        lines.append(_line(name, "").rstrip().ljust(38) + line)
    if not is_fitted:  # the formulas would give losses above that of a guess
        lines.append(_line("", f"fitted to runs of {LEAST_FITTED_FLOPS:.0g} FLOPs and more: no loss of smaller ones"))
    return lines


def memory_parts(forecast: Forecast) -> dict[str, int]:
    """Return the bytes on the fullest device by what they hold; their peak is `forecast.peak`."""
    estimate, counted = forecast.estimate, forecast.simulated or forecast.estimate
    selective = forecast.work.selective_checkpointing  # its activations are not saved by hooks, so not counted apart
    return {
        "weights": counted.weights,
        "gradients": counted.gradients,
        "optimizer": counted.optimizer,
        "average of weights": counted.average,
        "weights in 16 bits": counted.copies,
        "activations": estimate.activations if selective else counted.activations,
        "FSDP2's gathered": estimate.gathered,
        "DDP's buckets": estimate.buckets,
    }


def _memory(forecast: Forecast) -> list[str]:
    simulated = forecast.simulated
    rows = memory_parts(forecast) | {"peak": forecast.peak}
    device = "the fullest device" if forecast.work.ranks > 1 else "the device"
    how = "a coarse estimate: dry_run=true counts it"
    if simulated:
        how = f"counted by a dry run in {simulated.seconds:.1f} s"
    lines = [f"Memory of {device}, {how}"]
    lines += [_line(name, f"{gib(size):>12}") for name, size in rows.items() if size]
    if simulated and forecast.target.hardware.gpu:
        lines.append(_line("", "the dry run counts activations of CPU kernels; GPU kernels save less"))
    verdict = "fits" if forecast.fits else "does not fit"
    total = f"{gib(forecast.target.hardware.memory)} of {forecast.target.hardware.name}"
    lines.append(_line("", f"{verdict}: {gib(forecast.usable_bytes)} of {total} can be used"))
    if not forecast.target.hardware.gpu:
        lines.append(_line("", "on Linux start with MALLOC_MMAP_THRESHOLD_=1000000: without it glibc keeps freed"))
        lines.append(_line("", "memory, up to about the same amount again"))
    return lines


def _time(forecast: Forecast, config: PlanConfig) -> list[str]:
    cost, hardware = forecast.cost, forecast.target.hardware
    precision = forecast.work.precision
    peak = f"{hardware.flops_per_s(precision) / 1e12:,.4g} TFLOP/s in {precision.name}"
    how = f"{hardware.bytes_per_s / 1e9:.3g} GB/s" if hardware.bytes_per_s else f"an MFU of {percent(config.mfu)}"
    if hardware.exchanged_per_s:
        how += f", {hardware.exchanged_per_s / 1e9:.3g} GB/s between processes"
    lines = [f"Time on {cost.device_count:,} x {hardware.name}: {peak} ({hardware.source}), {how}"]
    lines += [_line("precision", note)] if (note := _precision_note(hardware, precision)) else []
    lines.append(_line("a step", duration(cost.step_s)))
    lines.append(_line("speed", f"{cost.tokens_per_s:,.0f} tokens/s"))
    if cost.seconds is None:
        return lines
    hours = cost.seconds / 3600 * cost.device_count
    lines.append(_line("the run", f"{duration(cost.seconds)}, {hours:,.3g} device hours"))
    if config.price_per_hour is None:
        lines.append(_line("cost", "set price_per_hour=... of one device"))
    else:
        lines.append(_line("cost", f"{hours * config.price_per_hour:,.2f} at {config.price_per_hour:g} an hour"))
    return lines


def _precision_note(hardware: Hardware, precision: Precision) -> str:
    """Return what to know of a precision on a GPU without tensor cores for bf16; empty on others."""
    if hardware.auto is not Precision.fp16 or precision is Precision.fp32:
        return ""
    if precision is Precision.bf16:
        return f"{hardware.name} has no tensor cores for bf16: trainer.precision=fp16 is faster"
    return f"fp16 with a loss scale, which trainer.precision=auto means here: {hardware.name} has no bf16"


def _checkpoints(forecast: Forecast, config: PlanConfig) -> list[str]:
    size, best, cost = forecast.checkpoint_bytes, forecast.save_interval_s, forecast.cost
    steps = max(1, round(best / cost.step_s))
    setting = f"checkpoint.every_n_steps={steps}"
    if cost.steps is not None and steps >= cost.steps:
        setting += " (the run is shorter: the checkpoint at its end is enough)"
    return [
        "Checkpoints",
        _line("size", f"{gib(size)} each; checkpoint.keep={config.checkpoint.keep} (0: all) are kept"),
        _line("best interval", f"{duration(best)}: {setting}"),
        _line(
            "",
            f"if written in {duration(forecast.checkpoint_s)} (storage_gb_per_s={config.storage_gb_per_s:g}) with "
            f"hours_between_failures={config.hours_between_failures:g} (Young 1974, "
            "https://doi.org/10.1145/361147.361115)",
        ),
    ]
