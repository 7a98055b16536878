"""`hydra/sweeper=optuna_pruning`: Optuna proposes the settings of jobs, and ends those that fall behind.

Each job reports its validation losses to the study by a callback of its own. Typed again, a sweep goes on with its
study, and jobs that were interrupted go on from their checkpoints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from pretrain.config.hydra_job import HydraJob
from pretrain.config.overrides import parsed, quoted
from pretrain.config.sweep import SWEEP, job_of
from pretrain.errors import CheckpointError, ConfigError, DivergenceError, PretrainError, show
from pretrain.launch.run_folder import finished_run

CALLBACK = "optuna_pruning"  # the entry of `callbacks` in each job


@dataclass
class PruningSettings:
    """Settings below hydra.sweeper."""

    _target_: str = "hydra_plugins.pretrain.PruningSweeper"
    n_trials: int = 20  # of the whole study, those of earlier starts among them
    n_jobs: int = 1  # trials proposed at a time, and handed to the launcher together
    storage: str | None = None  # an address such as sqlite:///study.db; null: a file in the folder of sweeps
    study_name: str | None = None  # null: follows from the settings
    seed: int | None = None  # of the sampler
    startup_trials: int = 5  # which are never pruned
    warmup_fraction: float | None = None  # share of a run before which no trial is pruned; null: 0, or 1 of schedules
    params: dict[str, Any] = field(default_factory=dict)  # swept settings, beside those of the command line


class PruningSweeper(Sweeper):
    """Asks an Optuna study for the settings of each job (TPE, Bergstra et al. 2011) and tells it what came of them.

    Pruned is what is worse than the median of the other trials at the same share of the run
    (`optuna.pruners.MedianPruner`): at the same step, a trial of a smaller batch has read less text. Where a setting of
    the schedule is searched none is pruned, unless `warmup_fraction` is set: a schedule that decays earlier has the
    lower loss until both end.
    """

    __module__ = "hydra_plugins.pretrain"  # Hydra instantiates sweepers of this package only

    def __init__(self, **settings: Any) -> None:
        self.settings = PruningSettings(**settings)
        for name, least in (("n_trials", 1), ("n_jobs", 1), ("startup_trials", 0)):
            if (value := getattr(self.settings, name)) < least:
                raise ConfigError(f"hydra.sweeper.{name}={value} is below {least}. Try hydra.sweeper.{name}=8.")
        if (fraction := self.settings.warmup_fraction) is not None and not 0 <= fraction <= 1:
            raise ConfigError(
                f"hydra.sweeper.warmup_fraction={fraction} is a share of the run, from 0 to 1. "
                "Try hydra.sweeper.warmup_fraction=0.5."
            )
        self.launcher: Launcher
        self.hydra_job: HydraJob
        self.study: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep the launcher and the HydraJob that `main` made."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.hydra_job = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has `n_trials` that have ended, pruned ones among them."""
        overrides = parsed([*(f"{key}={value}" for key, value in self.settings.params.items()), *arguments])
        swept = [each.get_key_element() for each in overrides if each.is_sweep_override()]
        of_schedule = [name for name in swept if "schedule" in name.split(".")]
        self.study = self._open_study(arguments, 1.0 if of_schedule else 0.0)
        if of_schedule and self.settings.warmup_fraction is None:
            show(f"no trial is pruned, as {', '.join(of_schedule)} is searched: hydra.sweeper.warmup_fraction=0 does")
        interrupted = self._trials("RUNNING")
        launched = 0
        while (left := self.settings.n_trials - len(self._trials("COMPLETE", "PRUNED"))) > 0:
            count = min(left, self.settings.n_jobs)
            again, interrupted = interrupted[:count], interrupted[count:]
            trials = [self._interrupted(trial) for trial in again]
            trials += [self.study.ask() for _ in range(count - len(again))]
            jobs = [self._words(trial, overrides) for trial in trials]
            results = self.launcher.launch(jobs, initial_job_idx=launched)
            launched += len(jobs)
            for trial, words, result in zip(trials, jobs, results, strict=True):
                self._tell(trial, words, result)
        show(self._best(), one_line=True)

    def _open_study(self, arguments: list[str], warmup_fraction: float) -> Any:
        """Return the study; `warmup_fraction` is that of a sweep that sets none."""
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "hydra/sweeper=optuna_pruning needs the package optuna, which is not installed. "
                "Install it: pip install -e '.[sweep]'."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        settings, folder = self.settings, self.hydra_job.logs_folder / SWEEP
        if settings.storage is None:
            folder.mkdir(parents=True, exist_ok=True)
            settings.storage = f"sqlite:///{folder / 'optuna.db'}"
        digest = hashlib.sha256(" ".join(sorted([*arguments, *map(str, settings.params.items())])).encode()).hexdigest()
        settings.study_name = settings.study_name or f"sweep-{digest[:8]}"
        return optuna.create_study(
            storage=settings.storage,
            study_name=settings.study_name,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=settings.seed),
            pruner=self._pruner(warmup_fraction if settings.warmup_fraction is None else settings.warmup_fraction),
        )

    def _pruner(self, warmup_fraction: float) -> Any:
        import optuna

        from pretrain.training.callbacks.pruning import PARTS

        if warmup_fraction == 1:
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(self.settings.startup_trials, math.ceil(PARTS * warmup_fraction))

    def _trials(self, *states: str) -> list[Any]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in states]

    def _interrupted(self, record: Any) -> Any:
        """Return the trial of a job that was interrupted, to run on."""
        import optuna

        return optuna.trial.Trial(self.study, record._trial_id)

    def _words(self, trial: Any, overrides: list[Override]) -> list[str]:
        """Return the overrides of a trial's job: the values proposed, and the callback that reports to the study."""
        words = [f"{each.get_key_element()}={_proposed(trial, each)}" for each in overrides]
        callback = {"kind": CALLBACK, "storage": self.settings.storage, "study": self.settings.study_name}
        given = ", ".join(f"{name}: {quoted(str(value))}" for name, value in callback.items())
        return [*words, f"++callbacks.{CALLBACK}={{{given}, trial: {trial.number}}}"]

    def _tell(self, trial: Any, words: Sequence[str], result: JobReturn) -> None:
        from optuna.trial import TrialState

        if result.status is JobStatus.FAILED and _diverged(result):  # an answer: worse than all that did not
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        if result.status is JobStatus.FAILED:
            self.study.tell(trial, state=TrialState.FAIL)
            _ = result.return_value  # raises the job's error
        folder = job_of(list(words), self.hydra_job.swept, self.hydra_job.logs_folder).folder
        if _was_pruned(folder):
            self.study.tell(trial, state=TrialState.PRUNED)
        elif result.return_value is None:
            self.study.tell(trial, state=TrialState.FAIL)
            raise ConfigError(
                f"trial {trial.number} has no validation loss to compare it by. Try a larger data.validation_fraction."
            )
        else:
            self.study.tell(trial, float(result.return_value))

    def _best(self) -> str:
        pruned, complete = len(self._trials("PRUNED")), self._trials("COMPLETE")
        if not complete:
            return f"study {self.settings.study_name}: {pruned} trials pruned, none complete"
        best = self.study.best_trial
        words = " ".join(f"{name}={value}" for name, value in best.params.items())
        counts = f"{len(complete)} trials complete, {pruned} pruned"
        return f"study {self.settings.study_name}: {counts}; best: {words}, val/loss {best.value:.4f}"


def _proposed(trial: Any, override: Override) -> Any:
    """Return the value that the study proposes for a swept setting; that of another setting as it was typed."""
    if not override.is_sweep_override():
        return override.get_value_element_as_str()
    name, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        return suggest(name, value.start, value.end, log="log" in value.tags)
    if isinstance(value, ChoiceSweep | RangeSweep):
        return trial.suggest_categorical(name, list(override.sweep_string_iterator()))
    raise ConfigError(f"{override.input_line} is no sweep that Optuna knows. Try {name}=interval(1,2) or {name}=1,2.")


def _diverged(result: JobReturn) -> bool:
    """Return whether a failed job ended because its loss is not finite; a launcher of others hands on its own error."""
    error = result._return_value
    return isinstance(error, PretrainError) and error.exit_code == DivergenceError.exit_code


def _was_pruned(folder: Path) -> bool:
    try:
        report = finished_run(folder)
    except CheckpointError:
        return False
    return report is not None and f"callbacks.{CALLBACK}: pruned" in report.ended
