"""What many predictions come to: sums that add up over batches, processes and sources, and the figures they give."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Totals:
    """Sums over targets."""

    loss_sum: float  # cross-entropy, nats
    right: float  # targets that were the likeliest token
    targets: float
    bits_per_byte_of_a_nat: float | None = None  # factor from the mean loss; none for masked targets

    def __add__(self, other: "Totals") -> "Totals":
        """Return the sums over both; their bits per byte are all bits over all bytes, where both have any."""
        targets, factor = self.targets + other.targets, self.bits_per_byte_of_a_nat
        if factor is None or other.bits_per_byte_of_a_nat is None:
            factor = None
        elif targets:
            factor = targets / (self.targets / factor + other.targets / other.bits_per_byte_of_a_nat)
        return Totals(self.loss_sum + other.loss_sum, self.right + other.right, targets, factor)

    def figures(self) -> dict[str, float]:
        """Return the loss in nats per target, its exponential, the share of targets that were right, bits per byte."""
        count = max(1.0, self.targets)
        loss = self.loss_sum / count
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": self.right / count}
        factor = self.bits_per_byte_of_a_nat
        return found if factor is None else found | {"bits_per_byte": loss * factor}


def validation_figures(found: Sequence[tuple[str, str, Totals]]) -> dict[str, float]:
    """Return the figures of all that was scored, by name, then those of each named part and source as <name>/<figure>.

    `found` holds (source, part of the objective, totals). A part is what a hybrid model was scored on, causal or
    masked; where there is a causal one, its bits per byte are those of the whole.
    """
    together = [totals for _, _, totals in found]
    figures = reduce(operator.add, together).figures()
    per_byte = [totals for totals in together if totals.bits_per_byte_of_a_nat is not None]
    if per_byte:
        figures["bits_per_byte"] = reduce(operator.add, per_byte).figures()["bits_per_byte"]
    names = dict.fromkeys(name for which in (1, 0) for each in found if (name := str(each[which])))
    for name in names:
        own = reduce(operator.add, [totals for source, part, totals in found if name in (source, part)]).figures()
        second = "bits_per_byte" if "bits_per_byte" in own else "accuracy"
        figures |= {f"{name}/{figure}": own[figure] for figure in ("loss", second)}
    return figures
