"""What the run read, step by step, in a form that can be compared to the bit."""

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


@dataclass(frozen=True)
class LedgerLine:
    """What a run read in one step."""

    step: Count
    samples: list[Count] = field(default_factory=list)
    loss: str | None = None  # as C writes floats in base 16; none of a step without targets
    skipped_steps: Count = 0


class Ledger(Callback):
    """Appends a line of JSON for each step: its number, the places of its rows in the stream, its exact loss.

    The loss is in nats per target over all processes, as C writes floats in base 16; null where it is no number, as of
    a step without targets. A resume first drops lines beyond the step it goes on from, so that the ledger of a run that
    was killed is that of one that was not.
    """

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        self.resumed_at = resumed_at

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what will be done again, and what a kill left half written."""
        if trainer.is_global_zero:
            lines = [line for line in read_lines(self.path) if line["step"] <= self.resumed_at]
            write_atomically(self.path, "".join(_text(line) for line in lines).encode())  # a kill here loses nothing

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step that has ended."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainingModule)
        line = {
            "step": trainer.global_step,
            "samples": pl_module.step_samples,
            "loss": None if math.isnan(pl_module.step_loss) else pl_module.step_loss.hex(),
            "skipped_steps": pl_module.skipped_steps,
        }
        with opened_to_append(self.path) as file:
            file.write(_text(line))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ledger, without a last one that was only half written; none where there is no file.

    Raises CheckpointError where a line before the last is damaged.
    """
    found: list[dict[str, Any]] = []
    problem: str | None = None
    for text in lines_of(path):
        if problem is not None:
            raise CheckpointError(
                f"{path} is damaged in line {len(found) + 1}: {problem}. Move it away, and the run begins a new one."
            )
        try:
            record = parse_json(text)
            read_record(LedgerLine, record, "it")
            found.append(record)
        except ValueError as error:
            problem = str(error)
    return found


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"
