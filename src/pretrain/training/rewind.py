"""A run that goes back to its last checkpoint where its data made the loss jump, and leaves that data out."""

from dataclasses import replace

from pretrain.checkpoint.read import newest
from pretrain.errors import DivergenceError
from pretrain.launch.rank import log
from pretrain.launch.run_plan import RunPlan
from pretrain.stop_signals import AskedToStop
from pretrain.training.divergence import Rewind
from pretrain.training.elastic import saved_step, stopped
from pretrain.training.report import Report
from pretrain.training.throughput import Throughput
from pretrain.training.train import run


def train(run_plan: RunPlan) -> Report:
    """Train as the placement says, as often anew as the run rewinds; return the report of its end.

    Every process of a run comes to the same. Raises DivergenceError after more rewinds than the settings allow.
    """
    most, throughput = run_plan.config.divergence.max_rewinds, Throughput()
    for _ in range(most + 1):
        start, since_s = run_plan.resumed.step if run_plan.resumed else 0, throughput.training_s
        try:
            return run(run_plan, throughput)
        except Rewind as rewind:
            throughput.pause("rewinds")
            found, _passed_over = newest(run_plan.folder)
            wasted = rewind.step - (found.step if found else 0)
            throughput.lose(since_s, wasted / max(wasted, rewind.step - start), "rewinds")
            run_plan = replace(run_plan, resumed=found, excluded=rewind.excluded, seconds=rewind.seconds)
            log(f"{rewind}\nrewinding to {f'step {found.step}' if found else 'the start'}")
            last = rewind
        except AskedToStop as asked:  # before the first step, behind the last, or between two trainings
            raise stopped(asked, saved_step(run_plan.folder)) from None
    raise DivergenceError(
        f"the run has gone back {most} times, and now {last}. Look at the data, try a lower "
        f"optimizer.learning_rate, or allow more: divergence.max_rewinds={2 * most or 10}."
    )
