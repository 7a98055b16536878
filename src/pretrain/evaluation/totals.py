"""Sums over predictions that add up over batches, processes and sources, and the metrics they give."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class Totals:
    """Sums over targets."""

    loss_sum: float  # cross-entropy, nats
    correct: float  # targets that were the argmax
    targets: float
    bits_per_byte_of_a_nat: float | None = None  # factor from the mean loss; None for masked targets
    is_bound: bool = False  # whether the loss, or a part of it, is an upper bound of the text's -log p
    variance: float = 0.0  # of the loss_sum of a bound, over draws of masks; 0: not estimated

    def __add__(self, other: "Totals") -> "Totals":
        """Return the sums over both; bits per byte become all bits over all bytes, or None if either has none."""
        targets, factor = self.targets + other.targets, self.bits_per_byte_of_a_nat
        if factor is None or other.bits_per_byte_of_a_nat is None:
            factor = None
        elif self.targets and other.targets:
            factor = targets / (self.targets / factor + other.targets / other.bits_per_byte_of_a_nat)
        elif other.targets:
            factor = other.bits_per_byte_of_a_nat
        is_bound = bool((self.is_bound and self.targets) or (other.is_bound and other.targets))
        variance = self.variance + other.variance  # their masks are independent
        return Totals(self.loss_sum + other.loss_sum, self.correct + other.correct, targets, factor, is_bound, variance)

    def metrics(self) -> dict[str, float]:
        """Return loss in nats per target, perplexity, accuracy, and bits per byte; nothing without a target.

        Perplexity and bits per byte of a bound have names that say so, and so has the loss beside its own name; its
        standard error, where known, is in nats per target.
        """
        if not self.targets:
            return {}
        loss, suffix = self.loss_sum / self.targets, "_bound" if self.is_bound else ""
        metrics = {"loss": loss, f"loss{suffix}": loss, f"perplexity{suffix}": math.exp(min(loss, 700.0))}
        if self.variance:
            metrics["loss_standard_error"] = math.sqrt(self.variance) / self.targets
        metrics["accuracy"] = self.correct / self.targets
        factor = self.bits_per_byte_of_a_nat
        return metrics if factor is None else metrics | {f"bits_per_byte{suffix}": loss * factor}


ScoredPart = tuple[str, str, Totals]  # source, part of a hybrid objective (causal, masked, diffusion), totals


def validation_metrics(parts: Sequence[ScoredPart]) -> dict[str, float]:
    """Return the metrics of all parts together, then those of each named part and source as <name>/<metric>.

    The loss and perplexity of all are named a bound if a part's is. The bits per byte of all are those of the causal
    parts, or a bound where all parts are. What has no target has no metric.
    """
    metrics = reduce(operator.add, [totals for _, _, totals in parts]).metrics()
    causal = [totals for _, _, totals in parts if totals.bits_per_byte_of_a_nat is not None and not totals.is_bound]
    if causal:
        metrics.pop("bits_per_byte_bound", None)
        metrics |= _only(reduce(operator.add, causal).metrics(), "bits_per_byte")
    names = [part for _, part, _ in parts] + [source for source, _, _ in parts]
    for name in filter(None, dict.fromkeys(names)):
        named = reduce(operator.add, [totals for source, part, totals in parts if name in (source, part)]).metrics()
        per_byte = _only(named, "bits_per_byte", "bits_per_byte_bound") or _only(named, "accuracy")
        chosen = _only(named, "loss", "loss_bound", "loss_standard_error") | per_byte
        metrics |= {f"{name}/{metric}": value for metric, value in chosen.items()}
    return metrics


def target_counts(parts: Sequence[ScoredPart]) -> dict[str, int]:
    """Return the number of targets of each source, by name."""
    counts: dict[str, int] = {}
    for source, _, totals in parts:
        counts[source] = counts.get(source, 0) + int(totals.targets)
    return counts


def _only(metrics: dict[str, float], *names: str) -> dict[str, float]:
    return {name: metrics[name] for name in names if name in metrics}
