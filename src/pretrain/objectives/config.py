"""Settings of the objective: what the model learns to predict, and from which side it may look."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from pretrain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.objectives.classify import Classify
    from pretrain.objectives.masked import Masked
    from pretrain.objectives.objective import Objective


class Vocabulary(Protocol):
    """What an objective needs to know of the tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def word_starts(self) -> NDArray[np.bool_]: ...


@dataclass
class ObjectiveConfig:
    """What every objective has in common."""

    kind: str = "?"
    z_loss: float = 0.0  # times (log Z)^2 in the gradient, against logits that drift; losses are told without; try 1e-4

    def __post_init__(self) -> None:
        if not 0.0 <= self.z_loss < math.inf:
            raise ConfigError(f"objective.z_loss={self.z_loss} is not a number from 0 up. Try objective.z_loss=1e-4.")

    @property
    def causal(self) -> bool:
        """Whether the model continues a text: a position may only see those before it."""
        raise TypeError(f"objective {self.kind!r} does not say which way attention looks")

    @property
    def fills_masks(self) -> bool:
        """Whether the model fills masks: where it does, a position may see the whole text."""
        return not self.causal

    @property
    def n_labels(self) -> int | None:
        """How many labels the model tells apart; none where it predicts tokens."""
        return None

    def build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        """Return the objective over this tokenizer's vocabulary; `seed` fixes every random choice it makes."""
        objective = self._build(vocabulary, seed)
        objective.z_loss = self.z_loss
        return objective

    def _build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        raise TypeError(f"objective {self.kind!r} has no build()")


@dataclass
class CausalConfig(ObjectiveConfig):
    """Predict every token from those before it (Radford et al. 2018)."""

    kind: str = "causal"

    @property
    def causal(self) -> bool:
        return True

    def _build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.causal import Causal

        return Causal()


class MaskingUnit(Enum):
    """What is hidden as one."""

    token = "token"
    whole_word = "whole_word"  # all tokens of a word (the second release of Devlin et al. 2019)
    span = "span"  # runs of tokens of geometric length (Joshi et al. 2020, https://arxiv.org/abs/1907.10529)


@dataclass
class MaskingConfig(ObjectiveConfig):
    """Which tokens are hidden, and what stands in their place."""

    mask_probability: float = 0.15  # share of a row's tokens to predict; special tokens are never among them
    mask_token_prob: float = 0.8  # of the tokens to predict, replaced by [MASK]
    unit: MaskingUnit = MaskingUnit.token
    mean_span: float = 3.8  # with unit=span: tokens in a span, on average
    random_token_prob: float = 0.1  # of the tokens to predict, replaced by any token; the rest stay as they are

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mask_probability < 1.0:
            raise ConfigError(
                f"objective.mask_probability={self.mask_probability} is not a share between 0 and 1. "
                "Try objective.mask_probability=0.15."
            )
        if not (
            self.mask_token_prob >= 0
            and self.random_token_prob >= 0
            and self.mask_token_prob + self.random_token_prob <= 1
        ):
            raise ConfigError(
                f"objective.mask_token_prob={self.mask_token_prob} and "
                f"objective.random_token_prob={self.random_token_prob} must be shares that add up "
                "to at most 1. Try objective.mask_token_prob=0.8 objective.random_token_prob=0.1."
            )

        if not 1.0 <= self.mean_span < math.inf:
            raise ConfigError(
                f"objective.mean_span={self.mean_span} is not a number from 1 up. Try objective.mean_span=3.8."
            )

    def build_masked(self, vocabulary: Vocabulary, seed: int, shift_targets: bool) -> Masked:
        """Return the masked objective; `shift_targets`: a hidden token is predicted at the place before its own."""
        from pretrain.objectives.masked import Masked

        if vocabulary.mask_id is None:
            raise ConfigError(
                f"objective={self.kind} needs a tokenizer with a mask token, and this one has none. "
                "Try tokenizer=bpe, or objective=causal."
            )
        return Masked(
            self,
            mask_id=vocabulary.mask_id,
            special_ids=vocabulary.special_ids,
            word_starts=vocabulary.word_starts if self.unit is MaskingUnit.whole_word else None,
            vocab_size=vocabulary.vocab_size,
            seed=seed,
            shift_targets=shift_targets,
        )


@dataclass
class MaskedConfig(MaskingConfig):
    """Predict hidden tokens from both sides (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1)."""

    kind: str = "masked"

    @property
    def causal(self) -> bool:
        return False

    def _build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        return self.build_masked(vocabulary, seed, shift_targets=False)


@dataclass
class HybridConfig(MaskingConfig):
    """Some rows causal, the others masked: one model that continues texts and fills masks.

    Source: Charpentier and Samuel 2024, "GPT or BERT: why not both?", https://arxiv.org/abs/2410.24159, section 2.
    """

    kind: str = "hybrid"
    masked_rows: float = 0.5  # share of the rows that are masked; the others are causal

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.masked_rows < 1.0:
            raise ConfigError(
                f"objective.masked_rows={self.masked_rows} is not a share between 0 and 1. "
                "Try objective.masked_rows=0.5, or objective=causal or masked for rows of one kind."
            )

    @property
    def causal(self) -> bool:
        return True

    @property
    def fills_masks(self) -> bool:
        return True

    def _build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.hybrid import Hybrid

        return Hybrid(self.build_masked(vocabulary, seed, shift_targets=True), self.masked_rows)


class Pooling(Enum):
    """Which hidden states stand for a text."""

    auto = "auto"  # mean where the model reads both ways, last where it reads from left to right
    first = "first"  # of the token that begins a document, as BERT's [CLS]
    last = "last"  # of its last token, the only one that has seen all of a text read from left to right
    mean = "mean"  # of all its tokens


@dataclass
class ClassifyConfig(ObjectiveConfig):
    """Say which label a text has, by a head of its own in place of the vocabulary's."""

    kind: str = "classify"
    left_to_right: bool = False  # how attention reads: as it did in the base; model=imported sets it
    pooling: Pooling = Pooling.auto
    labels: list[str] = field(default_factory=list)  # none given: those of the training data, in order of spelling

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.left_to_right and self.pooling is Pooling.first:
            raise ConfigError(
                "objective.pooling=first takes a position that has seen nothing of the text where "
                "objective.left_to_right=true. Try objective.pooling=last."
            )
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(
                f"objective.labels={self.labels} names a label twice. Try objective.labels=[], which takes the data's."
            )

    @property
    def causal(self) -> bool:
        return self.left_to_right

    @property
    def fills_masks(self) -> bool:
        return False

    @property
    def n_labels(self) -> int | None:
        return len(self.labels)

    def _build(self, vocabulary: Vocabulary, seed: int) -> Classify:
        from pretrain.objectives.classify import Classify

        auto = Pooling.last if self.left_to_right else Pooling.mean
        return Classify(self.causal, auto if self.pooling is Pooling.auto else self.pooling)
