"""Sums over predictions that add up over batches, processes and sources, and the metrics they give."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Totals:
    """Sums over targets. Without a target there is no mean, and so no figure."""

    loss_sum: float  # cross-entropy, nats
    correct: float  # targets that were the argmax
    targets: float
    bits_per_byte_of_a_nat: float | None = None  # factor from the mean loss; none for masked targets

    def __add__(self, other: "Totals") -> "Totals":
        """Return the sums over both; their bits per byte are all bits over all bytes, where both have any."""
        targets, factor = self.targets + other.targets, self.bits_per_byte_of_a_nat
        if factor is None or other.bits_per_byte_of_a_nat is None:
            factor = None
        elif self.targets and other.targets:
            factor = targets / (self.targets / factor + other.targets / other.bits_per_byte_of_a_nat)
        elif other.targets:
            factor = other.bits_per_byte_of_a_nat
        return Totals(self.loss_sum + other.loss_sum, self.correct + other.correct, targets, factor)

    def figures(self) -> dict[str, float]:
        """Return the loss in nats per target, its exponential, the share of targets that were right, bits per byte.

        Empty where there was no target.
        """
        if not self.targets:
            return {}
        loss = self.loss_sum / self.targets
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": self.correct / self.targets}
        factor = self.bits_per_byte_of_a_nat
        return found if factor is None else found | {"bits_per_byte": loss * factor}


def validation_figures(found: Sequence[tuple[str, str, Totals]]) -> dict[str, float]:
    """Return the figures of all that was scored, by name, then those of each named part and source as <name>/<figure>.

    `found` holds (source, part of the objective, totals). A part is what a hybrid model was scored on, causal or
    masked; where there is a causal one, its bits per byte are those of the whole. What had no target has no figure.
    """
    together = [totals for _, _, totals in found]
    figures = reduce(operator.add, together).figures()
    per_byte = [totals for totals in together if totals.bits_per_byte_of_a_nat is not None]
    if per_byte:
        figures |= _only(reduce(operator.add, per_byte).figures(), "bits_per_byte")
    names = dict.fromkeys(name for which in (1, 0) for each in found if (name := str(each[which])))
    for name in names:
        own = reduce(operator.add, [totals for source, part, totals in found if name in (source, part)]).figures()
        second = "bits_per_byte" if "bits_per_byte" in own else "accuracy"
        figures |= {f"{name}/{figure}": value for figure, value in _only(own, "loss", second).items()}
    return figures


def target_counts(found: Sequence[tuple[str, str, Totals]]) -> dict[str, int]:
    """Return how many targets each source had, by its name; `found` is as in `validation_figures`."""
    counts: dict[str, int] = {}
    for source, _, totals in found:
        counts[source] = counts.get(source, 0) + int(totals.targets)
    return counts


def _only(figures: dict[str, float], *names: str) -> dict[str, float]:
    """Return those of the figures that are there."""
    return {name: figures[name] for name in names if name in figures}
