"""What many predictions come to: sums that add up over batches, processes and sources, and the figures they give."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Totals:
    """Sums over targets."""

    loss_sum: float  # cross-entropy, nats
    right: float  # targets that were the likeliest token
    targets: float
    bits_per_byte_of_a_nat: float | None = None  # factor from the mean loss; none for a masked model

    def __add__(self, other: "Totals") -> "Totals":
        """Return the sums over both; their bits per byte are all bits over all bytes."""
        targets, factor = self.targets + other.targets, self.bits_per_byte_of_a_nat
        if targets and factor is not None and other.bits_per_byte_of_a_nat is not None:
            factor = targets / (self.targets / factor + other.targets / other.bits_per_byte_of_a_nat)
        return Totals(self.loss_sum + other.loss_sum, self.right + other.right, targets, factor)

    def figures(self) -> dict[str, float]:
        """Return the loss in nats per target, its exponential, the share of targets that were right, bits per byte."""
        count = max(1.0, self.targets)
        loss = self.loss_sum / count
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": self.right / count}
        factor = self.bits_per_byte_of_a_nat
        return found if factor is None else found | {"bits_per_byte": loss * factor}
