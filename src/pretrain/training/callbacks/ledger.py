"""A ledger of what the run read, step by step, comparable bit for bit."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from pretrain.errors import CheckpointError
from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import Count, read_record
from pretrain.files.untrusted_files import parse_json
from pretrain.launch.run_folder import lines_of, opened_to_append
from pretrain.training.lightning_module import TrainingModule
from pretrain.training.step_outcomes import StepOutcome


@dataclass(frozen=True)
class LedgerLine:
    """One step of a ledger."""

    step: Count
    samples: list[Count] = field(default_factory=list)
    loss: str | None = None  # a hexadecimal float; None for a step without targets
    skipped_steps: Count = 0


class Ledger(Callback):
    """Appends a JSON line per step: its number, its sample indices, its exact loss.

    The loss is in nats per target over all processes, as a hexadecimal float; null for a step without targets. A
    resume first drops lines beyond its step, so that a killed and resumed run has the ledger of an uninterrupted one.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        self.resumed_at = resumed_at
        self._skipped_steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop lines of steps that will be repeated; from now on write one for each step."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainingModule)
        self.drop_later_lines()
        self._skipped_steps = pl_module.skipped_steps
        pl_module.outcomes.listeners.insert(0, self.write)  # before the counter, which may end the run

    def drop_later_lines(self) -> None:
        """Drop lines beyond the step of the resume, and a half-written last line."""
        lines = [line for line in read_lines(self.path) if line["step"] <= self.resumed_at]
        write_atomically(self.path, "".join(_text(line) for line in lines).encode())  # a kill here loses nothing

    def write(self, outcome: StepOutcome) -> None:
        """Append the line of a step."""
        self._skipped_steps += bool(outcome.skipped_because)
        line = {
            "step": outcome.step,
            "samples": sorted(outcome.samples.tolist()),
            "loss": None if math.isnan(outcome.loss) else outcome.loss.hex(),
            "skipped_steps": self._skipped_steps,
        }
        with opened_to_append(self.path) as file:
            file.write(_text(line))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ledger, except a half-written last one; [] if there is no file.

    Raises CheckpointError if a line before the last is damaged.
    """
    lines: list[dict[str, Any]] = []
    problem: str | None = None
    for text in lines_of(path):
        if problem is not None:
            raise CheckpointError(
                f"{path} is damaged in line {len(lines) + 1}: {problem}. Move it away; the run starts a new one."
            )
        try:
            record = parse_json(text)
            read_record(LedgerLine, record, "it")
            lines.append(record)
        except ValueError as error:
            problem = str(error)
    return lines


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"
