"""The report of a plan: memory by part, time and cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config.changed_settings import about
from pretrain.config.serialize import flat, to_dict
from pretrain.errors import ConfigError
from pretrain.files.atomic_files import write_atomically
from pretrain.planning.units import count, duration, gib
from pretrain.reports.chart import WIDE, Bar, Look, stacked_bar
from pretrain.reports.page import Page, card, code, number, table, verbatim

if TYPE_CHECKING:
    from pretrain.planning.config import PlanConfig
    from pretrain.planning.forecast import Forecast

_OF_THE_SHAPE = ("model.", "objective.kind", "batch_size", "optimizer.kind", "trainer.max_", "trainer.precision")


def write_plan(path: Path, forecast: Forecast, config: PlanConfig, text: str) -> None:
    """Write the report of a plan, of which `text` is what the command prints.

    Raises ConfigError if the file cannot be written.
    """
    try:
        write_atomically(path, plan_page(forecast, config, text).encode())
    except OSError as error:
        raise ConfigError(f"report={path} cannot be written: {error.strerror}. Try report=plan.html.") from error


def plan_page(forecast: Forecast, config: PlanConfig, text: str) -> str:
    """Return the report of a plan as HTML."""
    work, cost, hardware = forecast.work, forecast.cost, forecast.target.hardware
    title = f"Plan of {config.name or 'a run'} on {cost.device_count:,} x {hardware.name}"
    page = Page(
        title, "What the run takes, without training", ("fits", True) if forecast.fits else ("does not fit", False)
    )
    page.tiles = [
        (count(work.parameters), "parameters"),
        (gib(forecast.peak), f"peak memory of a device, of {gib(forecast.usable_bytes)} that can be used"),
        (f"{cost.tokens_per_s:,.0f}", "tokens/s"),
    ]
    if cost.seconds is not None and cost.tokens is not None:
        page.tiles += [(count(cost.tokens), "tokens"), (duration(cost.seconds), "in steps")]
        hours = cost.seconds / 3600 * cost.device_count
        page.tiles.append((f"{hours:,.3g}", "device hours"))
        if config.price_per_hour is not None:
            page.tiles.append((f"{hours * config.price_per_hour:,.2f}", f"cost, at {config.price_per_hour:g} an hour"))
    page.add("Memory of a device", card(*_memory(forecast)))
    page.add("Time", card(_time(forecast)))
    settings = [(key, value) for key, value in flat(to_dict(config.run_config())) if key.startswith(_OF_THE_SHAPE)]
    record = to_dict(config.run_config())
    rows = [[code(key), code(value), about(key, record)] for key, value in settings]
    page.add("Settings", card(table(["setting", "value", "what it is"], rows, stacks=True)))
    page.add("In words", verbatim(text))
    return page.render()


def _memory(forecast: Forecast) -> list[str]:
    """Return one bar of the parts, with what is left of the peak and the limit of the device."""
    from pretrain.planning.printing import memory_parts  # here: it loads torch, which no other report needs

    parts = memory_parts(forecast)
    rest = forecast.peak - sum(parts.values())
    if rest > 0:
        parts["for a moment, at the peak"] = rest
    bars = [Bar(name, float(size), gib(size)) for name, size in parts.items()]
    limit = (float(forecast.usable_bytes), f"{gib(forecast.usable_bytes)} can be used")
    drawn = []
    for kind, width in (("wide", WIDE), ("narrow", 400)):
        drawn.append(f'<div class="{kind}">{stacked_bar(bars, Look("Memory by part", width=width), limit)}</div>')
    return drawn


def _time(forecast: Forecast) -> str:
    cost = forecast.cost
    rows = [
        ["a step", number(duration(cost.step_s)), f"{cost.tokens_per_step:,} tokens"],
        ["a checkpoint", number(duration(forecast.checkpoint_s)), gib(forecast.checkpoint_bytes)],
        ["between checkpoints, at best", number(duration(forecast.save_interval_s)), "loses least at a failure"],
    ]
    if cost.seconds is not None and cost.steps is not None:
        rows.append(["all steps", number(duration(cost.seconds)), f"{cost.steps:,} steps"])
    return table(["", "time", ""], rows)
