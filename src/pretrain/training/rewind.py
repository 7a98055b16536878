"""A run that goes back to its last checkpoint where its data made the loss jump, and leaves that data out."""

from dataclasses import replace

from pretrain.checkpoint.read import newest
from pretrain.errors import DivergenceError
from pretrain.launch.rank import say
from pretrain.launch.run_plan import Placement
from pretrain.stop_signals import AskedToStop
from pretrain.training.divergence import Rewind
from pretrain.training.elastic import saved_step, stopped
from pretrain.training.report import Report
from pretrain.training.throughput import Throughput
from pretrain.training.train import run


def train(placement: Placement) -> Report:
    """Train as the placement says, as often anew as the run rewinds; return the report of its end.

    Every process of a run comes to the same. Raises DivergenceError after more rewinds than the settings allow.
    """
    most, throughput = placement.config.divergence.max_rewinds, Throughput()
    for _ in range(most + 1):
        start, since_s = placement.resumed.step if placement.resumed else 0, throughput.training_s
        try:
            return run(placement, throughput)
        except Rewind as rewind:
            throughput.pause("rewinds")
            found, _passed_over = newest(placement.folder)
            wasted = rewind.step - (found.step if found else 0)
            throughput.lose(since_s, wasted / max(wasted, rewind.step - start), "rewinds")
            placement = replace(placement, resumed=found, left_out=rewind.left_out, seconds=rewind.seconds)
            say(f"{rewind}\nrewinding to {f'step {found.step}' if found else 'the start'}")
            last = rewind
        except AskedToStop as asked:  # before the first step, behind the last, or between two trainings
            raise stopped(asked, saved_step(placement.folder)) from None
    raise DivergenceError(
        f"the run has gone back {most} times, and now {last}. Look at the data, try a lower "
        f"optimizer.learning_rate, or allow more: divergence.max_rewinds={2 * most or 10}."
    )
