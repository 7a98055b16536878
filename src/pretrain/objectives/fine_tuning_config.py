"""Settings of the objectives that fine-tune a base into something else: a classifier, a model of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from pretrain.config.setting import setting
from pretrain.errors import ConfigError
from pretrain.objectives.config import ObjectiveConfig, Vocabulary

if TYPE_CHECKING:
    from pretrain.objectives.classify import Classify, Regress
    from pretrain.objectives.objective import Objective


class Pooling(Enum):
    """Which hidden states represent a text."""

    auto = "auto"  # mean where attention is bidirectional, last where it is causal
    first = "first"  # of the token that begins a document, as BERT's [CLS]
    last = "last"  # of its last token, the only one that attends to the whole text under causal attention
    mean = "mean"  # of all its tokens


@dataclass
class PooledConfig(ObjectiveConfig):
    """Settings of an objective that takes one vector of each text instead of logits of its tokens."""

    left_to_right: bool = setting(False, "Causal attention, as in a causal base; model=imported sets it.")
    pooling: Pooling = setting(Pooling.auto, "Which hidden states represent a text.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.left_to_right and self.pooling is Pooling.first:
            raise ConfigError(
                "objective.pooling=first takes a position that attends to nothing of the text where "
                "objective.left_to_right=true. Try objective.pooling=last."
            )

    @property
    def causal(self) -> bool:
        return self.left_to_right

    @property
    def fills_masks(self) -> bool:
        return False

    @property
    def share_of_logits(self) -> float:
        return 0.0

    @property
    def chosen_pooling(self) -> Pooling:
        """The pooling that auto stands for, or the one that is set."""
        auto = Pooling.last if self.left_to_right else Pooling.mean
        return auto if self.pooling is Pooling.auto else self.pooling


@dataclass
class ClassifyConfig(PooledConfig):
    """Predict the label of a text with a head of its own instead of the vocabulary's."""

    kind: str = "classify"
    labels: list[str] = setting(default_factory=list, about="Labels to predict; []: those of the data, sorted.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError(
                f"objective.labels={self.labels} names a label twice. Try objective.labels=[], which takes the data's."
            )

    @property
    def n_labels(self) -> int | None:
        return len(self.labels)

    @property
    def classifier(self) -> ClassifyConfig:
        return self

    def create(self, vocabulary: Vocabulary, seed: int) -> Classify:
        from pretrain.objectives.classify import Classify

        return Classify(self.causal, self.chosen_pooling, vocabulary.eos_id)


@dataclass
class RegressConfig(PooledConfig):
    """Predict a number for a text, by the squared error, with a head of its own instead of the vocabulary's."""

    kind: str = "regress"

    @property
    def n_labels(self) -> int | None:
        return 1

    @property
    def regressor(self) -> RegressConfig:
        return self

    def create(self, vocabulary: Vocabulary, seed: int) -> Regress:
        from pretrain.objectives.classify import Regress

        return Regress(self.causal, self.chosen_pooling, vocabulary.eos_id)


@dataclass
class ContrastiveConfig(PooledConfig):
    """Give texts that belong together like vectors, for search and comparison of texts.

    Source: Gao et al. 2021, https://arxiv.org/abs/2104.08821, section 4 (pairs with hard negatives).
    """

    kind: str = "contrastive"
    temperature: float = setting(
        0.05, "What similarities are divided by; lower weighs the nearest negatives more.", bounds="(0.0, inf)"
    )
    dimensions: list[int] = setting(
        default_factory=list,
        about="Matryoshka: also train the first so many dimensions to be vectors of their own, as in [64, 128].",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(size < 1 for size in self.dimensions) or len(set(self.dimensions)) < len(self.dimensions):
            raise ConfigError(
                f"objective.dimensions={self.dimensions} must be different numbers from 1. "
                "Try objective.dimensions=[64,128]."
            )

    @property
    def embedding_pooling(self) -> Pooling:
        return self.chosen_pooling

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.contrastive import Contrastive

        ends = vocabulary.bos_id, vocabulary.eos_id
        return Contrastive(self.causal, self.embedding_pooling, self.temperature, self.dimensions, ends)
