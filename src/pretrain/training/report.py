"""What a run prints at its end, and leaves in its folder."""

import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError, DataError, DivergenceError, printable
from pretrain.files.atomic_files import write_atomically
from pretrain.launch.run_folder import REPORT, finished_run
from pretrain.planning.cost import best_interval_s
from pretrain.training.divergence import named
from pretrain.training.lightning_module import NO_TARGET
from pretrain.training.validation import FEW_TARGETS, changes, too_few

_DAY_S = 86_400.0
_SCRIPTS = Path(__file__).resolve().parents[2]  # train.py, generate.py and the others
_PROMPTS = {"masked": "The quick [MASK] fox jumps over the lazy dog.", "classify": "A text to be classified."}


@dataclass(frozen=True)
class Report:
    """The figures of a finished run and the commands to type next."""

    folder: str
    steps: int
    tokens_seen: int
    parameters: int
    objective: str  # its kind
    validation: dict[str, float]  # without a figure for what had no target
    first_validation: dict[str, float]  # before the first step; empty where there was none
    tokens_per_s: float
    training_s: float  # in steps
    wall_s: float  # since the run began to set up
    waited_s: dict[str, float]  # what the steps had to wait for
    checkpoint_s: float  # that a step waits for a checkpoint
    skipped_steps: int
    excluded: list[str]  # rows to blame for spikes
    sample: str
    longer: str  # the settings that have the run go on, twice as long
    not_validated: dict[str, str] = field(default_factory=dict)  # why a source has no validation; a single one is ""
    validation_targets: dict[str, int] = field(default_factory=dict)  # predicted in the last validation, by source

    def save(self) -> None:
        """Write report.json into the run folder; what found nothing left to do leaves the run's own report there.

        A figure that there is none of, or that is no number, is null.
        """
        path = Path(self.folder) / REPORT
        if self.training_s or _steps_told(path) != self.steps:
            record = asdict(self)
            missing = [f"val/{name}/loss" if name else "val/loss" for name in self.not_validated]
            record["validation"] = dict.fromkeys(["val/loss", *missing]) | self.validation
            write_atomically(path, json.dumps(_with_nulls(record), indent=1, allow_nan=False).encode())

    def __str__(self) -> str:
        lines = ["", "Report", f"  run folder         {self.folder}"]
        lines += [f"  parameters         {self.parameters:,}"]
        done = "" if self.training_s else "; nothing was left to do"
        lines += [f"  trained            {self.steps:,} steps, {self.tokens_seen:,} tokens{done}"]
        if self.training_s:
            speed = f"{self.tokens_per_s:,.0f} tokens/s over {self.training_s:,.0f} s of training"
            lines += [f"  speed              {speed}"]
            lines += [f"  goodput            {self._goodput()}"]
        if self.checkpoint_s:
            lines += [f"  checkpoints        {self._checkpoints()}"]
        if self.skipped_steps:
            lines += [f"  skipped            {self.skipped_steps:,} steps"]
        if self.excluded:
            lines += [f"  left out           {named(self.excluded)} (rows to blame for spikes)"]
        lines += [f"  validation loss    {self._loss()}"]
        for key, label in (
            ("val/perplexity", "perplexity"),
            ("val/bits_per_byte", "bits per byte"),
            ("val/accuracy", "accuracy"),
            ("val/f1", "macro F1"),
        ):
            if key in self.validation:
                of_masks = self.objective == "masked" and label in ("perplexity", "accuracy")
                lines.append(f"  {'masked ' * of_masks + label:<18} {self.validation[key]:.4f}")
        lines += self._sources()
        lines += changes(self.first_validation, self.validation)
        if self.sample:
            lines += ["", "Sample", *(f"  {line}" for line in printable(self.sample).splitlines())]
        lines += ["", "Next", *(f"  {shlex.join(command)}" for command in self._commands())]
        return "\n".join(lines)

    def _commands(self) -> list[list[str]]:
        """Return what to type next, word by word: with the script that ran, and the one beside it."""
        script = Path(sys.argv[0])
        if script.suffix != ".py" or script.name == "__main__.py" or not script.is_file():  # a notebook, or a package
            script = _SCRIPTS / "train.py"
        beside = script.with_name("generate.py")
        generate = beside if beside.is_file() else _SCRIPTS / "generate.py"
        prompt = _PROMPTS.get(self.objective, "The")
        return [
            ["python", _from_here(generate), f"checkpoint={self.folder}", f"prompt={prompt}"],
            ["tensorboard", "--logdir", str(Path(self.folder).parent)],
            ["python", _from_here(script), f"resume={self.folder}", *self.longer.split()],
        ]

    def _loss(self) -> str:
        """Return the validation loss, and what it is not: of all sources, or of enough text to compare runs by it."""
        if "val/loss" not in self.validation:
            reasons = dict.fromkeys(self.not_validated.values())
            return "none" + (f": {'; '.join(reasons)}" if reasons else "")
        startup_warnings = []
        if self.not_validated:
            startup_warnings.append(f"of {', '.join(self.validation_targets)} alone")
        if self.validation_targets and sum(self.validation_targets.values()) < FEW_TARGETS:
            startup_warnings.append(too_few(sum(self.validation_targets.values())))
        return f"{self.validation['val/loss']:.4f}" + (f" ({'; '.join(startup_warnings)})" if startup_warnings else "")

    def _goodput(self) -> str:
        """Return which share of the time went into steps, and where the rest of it went."""
        rest = self.wall_s - self.training_s - sum(self.waited_s.values())
        parts = [f"{reason} {seconds:.1f} s" for reason, seconds in {**self.waited_s, "start and end": rest}.items()]
        return f"{self.training_s / max(1e-9, self.wall_s):.1%} of {self.wall_s:,.0f} s ({', '.join(parts)})"

    def _checkpoints(self) -> str:
        best = best_interval_s(self.checkpoint_s, _DAY_S)
        per_step_s = self.tokens_seen / max(1, self.steps) / max(1e-9, self.tokens_per_s)
        steps = f" (every {best / per_step_s:,.0f} steps)" if self.tokens_per_s else ""
        return f"{self.checkpoint_s:.2f} s each; at a failure a day, one in {best:,.0f} s{steps} loses least"

    def _sources(self) -> list[str]:
        """Return a line for each source of a mixture: `validation` holds its figures as val/<source>/<figure>."""
        found: dict[str, list[str]] = {}
        for key, value in self.validation.items():
            _, *source, figure = key.split("/")
            if source:
                found.setdefault(source[0], []).append(f"{figure.replace('_', ' ')} {value:.4f}")
        for source_name, figures in found.items():
            targets = self.validation_targets.get(source_name, FEW_TARGETS)
            figures += [too_few(targets)] if targets < FEW_TARGETS else []
        for source_name, reason in self.not_validated.items():
            if source_name:
                found[source_name] = [f"none: {reason}"]
        width = max([16, *map(len, found)])
        return [f"    {source:<{width}} {', '.join(figures)}" for source, figures in found.items()]


def _from_here(path: Path) -> str:
    """Return a path as it is typed in this folder."""
    here = path.absolute()
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _with_nulls(value: Any) -> Any:
    """Return a record with None in the place of each number that is not finite, for JSON has none of those."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _steps_told(path: Path) -> int | None:
    """Return the steps of an earlier report; none where there is no whole one."""
    try:
        found = finished_run(path.parent)
    except CheckpointError:
        return None
    return None if found is None else found.steps


def check_outcome(steps: int, skipped: int, skipped_because: str, figures: Mapping[str, float]) -> None:
    """Raise where a run must not end as a success.

    `steps` are those that this process has taken, `skipped` how many of them left the weights as they were, and
    `figures` those of the last validation. Raises DivergenceError where all steps were skipped for their loss or
    gradient or a figure is no finite number, DataError where no step had a token to predict.
    """
    if steps and skipped >= steps:
        what = f"the run has learned nothing: each of its {steps:,} steps was skipped, the last one because"
        if skipped_because == NO_TARGET:
            raise DataError(
                f"{what} {skipped_because}. Look at them: python src/prepare.py inspect step=1; a tokenizer that does "
                "not know the text's characters leaves nothing to predict. Try tokenizer=bpe, or tokenizer=bytes."
            )
        raise DivergenceError(f"{what} {skipped_because}. Try a lower optimizer.learning_rate.")
    wrong = [name for name, value in figures.items() if not math.isfinite(value)]
    if wrong:
        raise DivergenceError(
            f"the run has ended, and {wrong[0]} of its last validation is {figures[wrong[0]]}, which is no figure. "
            "Go back to an earlier checkpoint, or start anew with a lower optimizer.learning_rate."
        )
