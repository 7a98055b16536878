"""The report of a finished run, printed and saved as report.json, and whether the run is a success."""

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
from pretrain.launch.run_folder import PAGE, REPORT, finished_run
from pretrain.planning.cost import best_interval_s
from pretrain.program import SCRIPTS, command, is_installed
from pretrain.training.divergence import named
from pretrain.training.step_outcomes import NO_TARGET, OVERFLOW
from pretrain.training.validation import FEW_TARGETS, changes, too_few

_DAY_S = 86_400.0
_PROMPTS = {"masked": "The quick [MASK] fox jumps over the lazy dog.", "classify": "A text to be classified.",
            "regress": "A text to be scored."}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Results of a finished run and commands to type next."""

    folder: str
    steps: int
    tokens_seen: int
    parameters: int
    objective: str  # its kind
    validation: dict[str, float]  # without metrics that had no target
    first_validation: dict[str, float]  # before the first step; empty without one, and where the last is of other rows
    tokens_per_s: float
    training_s: float  # in steps
    wall_s: float  # since the start of the process
    waited_s: dict[str, float]  # seconds in which steps waited, by reason
    checkpoint_s: float  # mean wait for a checkpoint
    skipped_steps: int
    excluded: list[str]  # outlier sequences of spikes
    sample: str
    longer: str  # settings that double the length of the run
    not_validated: dict[str, str] = field(default_factory=dict)  # reasons by source; a single source is named ""
    validation_targets: dict[str, int] = field(default_factory=dict)  # of the last validation, by source
    named_again: list[str] = field(default_factory=list)  # plug-ins and classes that only the user's words may name
    ended: str = ""  # why a callback ended the run before its length; empty if none did
    chats: bool = False  # learned from conversations

    def save(self) -> None:
        """Write report.json into the run folder, unless the run had nothing left to do and has a report.

        A missing or non-finite number is null.
        """
        path = Path(self.folder) / REPORT
        if self.training_s or _saved_steps(path) != self.steps:
            record = asdict(self)
            missing = [f"val/{name}/loss" if name else "val/loss" for name in self.not_validated]
            record["validation"] = dict.fromkeys(["val/loss", *missing]) | self.validation
            write_atomically(path, json.dumps(_with_nulls(record), indent=1, allow_nan=False).encode())

    def __str__(self) -> str:
        lines = ["", "Report", f"  run folder         {self.folder}"]
        if (page := Path(self.folder) / PAGE).is_file():
            lines += [f"  curves, samples    {page}"]
        lines += [f"  parameters         {self.parameters:,}"]
        done = "" if self.training_s else "; nothing was left to do"
        lines += [f"  trained            {self.steps:,} steps, {self.tokens_seen:,} tokens{done}"]
        if self.ended:
            lines += [f"  ended early        {printable(self.ended, one_line=True)}"]
        if self.training_s:
            speed = f"{self.tokens_per_s:,.0f} tokens/s over {self.training_s:,.0f} s of training"
            lines += [f"  speed              {speed}"]
            lines += [f"  goodput            {self._goodput()}"]
        if self.checkpoint_s:
            lines += [f"  checkpoints        {self._checkpoints()}"]
        if self.skipped_steps:
            lines += [f"  skipped            {self.skipped_steps:,} steps"]
        if self.excluded:
            lines += [f"  excluded           {named(self.excluded)} (outlier sequences of spikes)"]
        lines += [f"  validation loss    {self._loss()}"]
        for key, label in (
            ("val/loss_ema", "of the average"),
            ("val/perplexity", "perplexity"),
            ("val/perplexity_bound", "perplexity (bound)"),
            ("val/bits_per_byte", "bits per byte"),
            ("val/bits_per_byte_bound", "bits/byte (bound)"),
            ("val/accuracy", "accuracy"),
            ("val/f1", "macro F1"),
            ("val/pearson", "Pearson"),
            ("val/spearman", "Spearman"),
        ):
            if key in self.validation:
                is_masked = self.objective == "masked" and label in ("perplexity", "accuracy")
                lines.append(f"  {'masked ' * is_masked + label:<18} {self.validation[key]:.4f}")
        lines += self._sources()
        lines += changes(self.first_validation, self.validation)
        if self.sample:
            lines += ["", "Sample", *(f"  {line}" for line in printable(self.sample).splitlines())]
        lines += ["", "Next", *(f"  {command}" for command in self.commands())]
        return "\n".join(lines)

    def commands(self) -> list[str]:
        """Return the next commands, in the form in which this run was started."""
        plugins = [word for word in self.named_again if word.startswith("plugins=")]
        use = "chat=true" if self.chats else f"prompt={_PROMPTS.get(self.objective, 'The')}"
        program, words = ("export", "output=my_model") if self.objective == "contrastive" else ("generate", use)
        return [
            shlex.join([*_program(program), f"checkpoint={self.folder}", words, *plugins]),
            shlex.join(["tensorboard", "--logdir", str(Path(self.folder).parent)]),
            *go_on(self.folder, [*self.longer.split(), *self.named_again]),
        ]

    def _loss(self) -> str:
        """Return the validation loss, and warnings if sources are missing or targets are few."""
        if "val/loss" not in self.validation:
            reasons = dict.fromkeys(self.not_validated.values())
            return "none" + (f": {'; '.join(reasons)}" if reasons else "")
        warnings = ["an upper bound"] if "val/loss_bound" in self.validation else []
        if self.not_validated:
            warnings.append(f"of {', '.join(self.validation_targets)} alone")
        if self.validation_targets and sum(self.validation_targets.values()) < FEW_TARGETS:
            warnings.append(too_few(sum(self.validation_targets.values())))
        return f"{self.validation['val/loss']:.4f}" + (f" ({'; '.join(warnings)})" if warnings else "")

    def _goodput(self) -> str:
        """Return the share of the wall time spent in steps, and how the rest was spent."""
        rest = self.wall_s - self.training_s - sum(self.waited_s.values())
        parts = [f"{reason} {seconds:.1f} s" for reason, seconds in {**self.waited_s, "start and end": rest}.items()]
        return f"{self.training_s / max(1e-9, self.wall_s):.1%} of {self.wall_s:,.0f} s ({', '.join(parts)})"

    def _checkpoints(self) -> str:
        best = best_interval_s(self.checkpoint_s, _DAY_S)
        per_step_s = self.tokens_seen / max(1, self.steps) / max(1e-9, self.tokens_per_s)
        steps = f" (every {best / per_step_s:,.0f} steps)" if self.tokens_per_s else ""
        return f"{self.checkpoint_s:.2f} s each; at a failure a day, one in {best:,.0f} s{steps} loses least"

    def _sources(self) -> list[str]:
        """Return a line per source of a mixture; its metrics are `validation["val/<source>/<metric>"]`."""
        sources: dict[str, list[str]] = {}
        for key, value in self.validation.items():
            _, *source, metric = key.split("/")
            if source:
                sources.setdefault(source[0], []).append(f"{metric.replace('_', ' ')} {value:.4f}")
        for name, texts in sources.items():
            targets = self.validation_targets.get(name, FEW_TARGETS)
            texts += [too_few(targets)] if targets < FEW_TARGETS else []
        sources |= {name: [f"none: {reason}"] for name, reason in self.not_validated.items() if name}
        width = max([16, *map(len, sources)])
        return [f"    {name:<{width}} {', '.join(texts)}" for name, texts in sources.items()]


def go_on(folder: str, words: list[str]) -> list[str]:
    """Return the command that resumes a run with these settings, in the form in which it was started."""
    return [shlex.join([*_program("train"), f"resume={folder}", *words])]


def _program(name: str) -> list[str]:
    """Return what to type for a command: the script that ran or the one beside it, or the installed command."""
    ran = Path(sys.argv[0])
    # not that of a notebook, a package or a worker of a cluster
    own = ran.suffix == ".py" and ran.name != "__main__.py" and ran.is_file() and "site-packages" not in ran.parts
    script = ran if own and name == "train" else ran.with_name(f"{name}.py")
    if own and script.is_file():
        return ["python", _from_here(script)]
    return command(name).split() if is_installed() else ["python", _from_here(SCRIPTS / f"{name}.py")]


def _from_here(path: Path) -> str:
    """Return a path relative to the working folder, absolute if it lies outside."""
    here = path.absolute()
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _with_nulls(value: Any) -> Any:
    """Return a record with None for each number that is not finite, as JSON has no NaN or infinity."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _saved_steps(path: Path) -> int | None:
    """Return the steps of a saved report; None if it is missing or damaged."""
    try:
        report = finished_run(path.parent)
    except CheckpointError:
        return None
    return None if report is None else report.steps


def check_outcome(steps: int, skipped: int, skipped_because: str, metrics: Mapping[str, float]) -> None:
    """Raise an error for a run that must not end as a success.

    `steps` of this process, of them `skipped` did not change the weights; `metrics` of the last validation. Raises
    DataError if no step had a target, DivergenceError if all were skipped otherwise or a metric is not finite.
    """
    if steps and skipped >= steps:
        message = f"the run has learned nothing: each of its {steps:,} steps was skipped, the last one because"
        if skipped_because == NO_TARGET:
            raise DataError(
                f"{message} {skipped_because}. Look at the rows: {command('inspect')} step=1; a tokenizer "
                "without the text's characters leaves no targets. Try tokenizer=bpe, or tokenizer=bytes."
            )
        remedy = "a lower trainer.initial_loss_scale, or more steps"
        remedy = remedy if skipped_because == OVERFLOW else "a lower optimizer.learning_rate"
        raise DivergenceError(f"{message} {skipped_because}. Try {remedy}.")
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise DivergenceError(
            f"the run has ended, and {wrong[0]} of its last validation is {metrics[wrong[0]]}, not a finite number. "
            "Go back to an earlier checkpoint, or start anew with a lower optimizer.learning_rate."
        )
