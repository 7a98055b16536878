"""Soft caps: a smooth bound on the size of logits or scores, which keeps their order."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Softcap:
    """A function of each number, about the identity near 0 and never beyond `cap`.

    By tanh: cap tanh(x / cap) (Gemma Team 2024, https://arxiv.org/abs/2408.00118, section 2). Else by a square root,
    x / sqrt(1 + (x / cap)^2), which needs no exponential.
    """

    cap: float
    by_tanh: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Return the capped numbers, same shape and dtype."""
        if self.by_tanh:
            return self.cap * (x / self.cap).tanh()
        return x * (1.0 + (x / self.cap).square()).rsqrt()

    def slope(self, capped: Tensor) -> Tensor:
        """Return the derivative where the result is `capped`, same shape."""
        rest = 1.0 - (capped / self.cap).square()
        return rest if self.by_tanh else rest.clamp(min=0.0) ** 1.5


def softcap_of(head: object) -> Softcap | None:
    """Return `head.softcap`, the bound of a head's logits; None where they have none."""
    softcap = getattr(head, "softcap", None)
    return softcap if isinstance(softcap, Softcap) else None


def capped(softcap: Softcap | None, logits: Tensor) -> Tensor:
    """Return the logits, bounded if there is a cap."""
    return logits if softcap is None else softcap(logits)
