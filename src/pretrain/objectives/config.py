"""Settings of the objective: what the model learns to predict, and from which side it may look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.objectives.objective import Objective


class Vocabulary(Protocol):
    """What an objective needs to know of the tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...


@dataclass
class ObjectiveConfig:
    """What every objective has in common."""

    kind: str = "?"

    @property
    def causal(self) -> bool:
        """Whether a position may only see those before it."""
        raise TypeError(f"objective {self.kind!r} does not say which way attention looks")

    def build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        """Return the objective over this tokenizer's vocabulary; `seed` fixes every random choice it makes."""
        raise TypeError(f"objective {self.kind!r} has no build()")


@dataclass
class CausalConfig(ObjectiveConfig):
    """Predict every token from those before it (Radford et al. 2018)."""

    kind: str = "causal"

    @property
    def causal(self) -> bool:
        return True

    def build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.causal import Causal

        return Causal()


@dataclass
class MaskedConfig(ObjectiveConfig):
    """Predict hidden tokens from both sides (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1)."""

    kind: str = "masked"
    mask_probability: float = 0.15  # share of a row's tokens to predict; special tokens are never among them
    mask_share: float = 0.8  # of the tokens to predict, replaced by [MASK]
    random_share: float = 0.1  # of the tokens to predict, replaced by any token; the rest stay as they are

    def __post_init__(self) -> None:
        if not 0.0 < self.mask_probability < 1.0:
            raise ConfigError(
                f"objective.mask_probability={self.mask_probability} is not a share between 0 and 1. "
                "Try objective.mask_probability=0.15."
            )
        if not (self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1):
            raise ConfigError(
                f"objective.mask_share={self.mask_share} and objective.random_share={self.random_share} must be shares "
                "that add up to at most 1. Try objective.mask_share=0.8 objective.random_share=0.1."
            )

    @property
    def causal(self) -> bool:
        return False

    def build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.masked import Masked

        if vocabulary.mask_id is None:
            raise ConfigError(
                "objective=masked needs a tokenizer with a mask token, and this one has none. "
                "Try tokenizer=bpe, or objective=causal."
            )
        return Masked(
            self,
            mask_id=vocabulary.mask_id,
            special_ids=vocabulary.special_ids,
            vocab_size=vocabulary.vocab_size,
            seed=seed,
        )
