"""Whether a run at its end may be called a success: it learned from something, and its figures are numbers."""

import math
from collections.abc import Mapping

from pretrain.errors import DataError, DivergenceError
from pretrain.training.lightning_module import NO_TARGET


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
