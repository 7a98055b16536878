"""Settings of the objective: what the model learns to predict, and in which direction it attends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

from pretrain.config.setting import Settings, setting
from pretrain.errors import ConfigError, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pretrain.objectives.fine_tuning_config import ClassifyConfig, Pooling, RegressConfig
    from pretrain.objectives.masked import Masked
    from pretrain.objectives.objective import Objective


class Vocabulary(Protocol):
    """The properties of a tokenizer that objectives use."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def word_starts(self) -> NDArray[np.bool_]: ...


def mask_id_of(vocabulary: Vocabulary, objective: str) -> int:
    """Return the id of [MASK]; raise ConfigError if the tokenizer has none, which the objective needs."""
    if vocabulary.mask_id is None:
        raise ConfigError(
            f"objective={objective} needs a tokenizer with a mask token, and this one has none. "
            "Try tokenizer=bpe; tokenizer.mask_token='[MASK]', which adds one to a pretrained tokenizer before text is "
            "prepared; or objective=causal."
        )
    return vocabulary.mask_id


@dataclass
class ObjectiveConfig(Settings):
    """Settings that all objectives share.

    An objective of your own is a subclass with a `kind`, `causal` and `create()`, which returns an `Objective`: it
    makes the targets of rows (`collate`), and may compute their loss itself (`forward`).
    """

    prefix: ClassVar[str] = "objective."
    kind: str = "?"
    z_loss: float = setting(
        0.0, "Weight of (log Z)^2 in the gradient, against logits that drift; logged losses leave it out.",
        bounds="[0.0, inf)", example=1e-4,
    )  # fmt: skip

    @property
    def causal(self) -> bool:
        """Whether attention is causal: the model continues a text."""
        raise TypeError(f"objective {self.kind!r} has no `causal`")

    @property
    def fills_masks(self) -> bool:
        """Whether the model fills masks, and then attends to the whole text."""
        return not self.causal

    @property
    def denoises(self) -> bool:
        """Whether the model generates text by filling a canvas of masks, a few positions at a time."""
        return False

    @property
    def shift_targets(self) -> bool:
        """Whether the position before a masked token predicts it."""
        return self.causal

    @property
    def n_labels(self) -> int | None:
        """The outputs of a head on texts: labels, or 1 for a number; None where the model predicts tokens."""
        return None

    @property
    def classifier(self) -> ClassifyConfig | None:
        """The settings as those of a classifier; None for an objective that predicts tokens."""
        return None

    @property
    def regressor(self) -> RegressConfig | None:
        """The settings as those of a model that predicts a number; None for other objectives."""
        return None

    @property
    def embedding_pooling(self) -> Pooling | None:
        """How the model was trained to pool a text's hidden states into its vector; None if it was not."""
        return None

    @property
    def share_of_logits(self) -> float:
        """The fraction of positions that the vocabulary's head computes logits for."""
        return 1.0

    @property
    def passes(self) -> int:
        """How often the model reads every row, each time with other tokens hidden."""
        return 1

    @property
    def weighs_targets(self) -> bool:
        """Whether targets have weights (`Batch.weights`, `Batch.counts`)."""
        return False

    @property
    def chooses_positions(self) -> bool:
        """Whether batches name the positions that have targets (`Batch.target_positions`)."""
        return False

    @property
    def mixes_directions(self) -> bool:
        """Whether rows of one batch are causal or bidirectional (`Batch.is_causal`)."""
        return False

    def build(self, vocabulary: Vocabulary, seed: int) -> Objective:
        """Return the objective over this tokenizer's vocabulary; `seed` fixes every random choice it makes."""
        objective = self.create(vocabulary, seed)
        objective.z_loss = self.z_loss
        return objective

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        """Return the objective, without the settings that all share; `build` calls this."""
        raise TypeError(f"objective {self.kind!r} has no create()")


@dataclass
class CausalConfig(ObjectiveConfig):
    """Predict every token from those before it (Radford et al. 2018)."""

    kind: str = "causal"

    @property
    def causal(self) -> bool:
        return True

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.causal import Causal

        return Causal()


class MaskingUnit(Enum):
    """What is hidden together."""

    token = "token"
    whole_word = "whole_word"  # all tokens of a word (the second release of Devlin et al. 2019)
    span = "span"  # runs of tokens of geometric length (Joshi et al. 2020, https://arxiv.org/abs/1907.10529)


@dataclass
class MaskingConfig(ObjectiveConfig):
    """Which tokens are hidden, and what replaces them."""

    mask_probability: float = setting(
        0.15, "Share of a row's tokens to predict; special tokens are never among them.", bounds="(0.0, 1.0)"
    )
    validation_mask_probability: float | None = setting(
        None, "The same in validation, so that runs and stages with other shares compare; null: mask_probability.",
        bounds="(0.0, 1.0)", example=0.15,
    )  # fmt: skip
    mask_token_prob: float = setting(0.8, "Share of the tokens to predict that [MASK] replaces.", bounds="[0.0, 1.0]")
    unit: MaskingUnit = setting(MaskingUnit.token, "What is hidden together: single tokens, whole words, or spans.")
    mean_span: float = setting(3.8, "unit=span: mean length of a span.", bounds="[1.0, inf)", unit="tokens")
    random_token_prob: float = setting(
        0.1, "Share of the tokens to predict that a random token replaces; the rest stay.", bounds="[0.0, 1.0]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_token_prob + self.random_token_prob > 1:
            raise ConfigError(
                f"objective.mask_token_prob={self.mask_token_prob} and "
                f"objective.random_token_prob={self.random_token_prob} add up to more than 1. "
                "Try objective.mask_token_prob=0.8 objective.random_token_prob=0.1."
            )

    def build_masked(self, vocabulary: Vocabulary, seed: int, shift_targets: bool) -> Masked:
        """Return the masked objective; `shift_targets`: the position before a masked token predicts it."""
        from pretrain.objectives.masked import Masked

        return Masked(
            self,
            mask_id=mask_id_of(vocabulary, self.kind),
            special_ids=vocabulary.special_ids,
            word_starts=vocabulary.word_starts if self.unit is MaskingUnit.whole_word else None,
            vocab_size=vocabulary.vocab_size,
            seed=seed,
            shift_targets=shift_targets,
        )


@dataclass
class MaskedConfig(MaskingConfig):
    """Predict masked tokens from both sides (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1)."""

    kind: str = "masked"

    @property
    def causal(self) -> bool:
        return False

    @property
    def share_of_logits(self) -> float:
        return self.mask_probability

    @property
    def chooses_positions(self) -> bool:
        return True

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        return self.build_masked(vocabulary, seed, shift_targets=False)


@dataclass
class DiffusionConfig(ObjectiveConfig):
    """Masked diffusion: predict masked tokens at every noise level; the loss is a bound on -log p of the text.

    Source: Nie et al. 2025, https://arxiv.org/abs/2502.09992; Ou et al. 2024, https://arxiv.org/abs/2406.03736.
    """

    kind: str = "diffusion"
    min_masked_fraction: float = setting(
        0.0, "Least share of a document's tokens to hide; above 0 the training loss is no bound (validation's is).",
        bounds="[0.0, 1.0)",
    )  # fmt: skip
    random_length_rows: float = setting(
        0.01, "Share of the training rows in which one more document border is drawn, so that texts of every length "
        "are learned.", bounds="[0.0, 1.0]",
    )  # fmt: skip
    shift: bool = setting(False, "The position before a masked token predicts it, as in a causal model.")
    complementary: bool = setting(
        False, "Train on every row twice, under a mask and its complement: every token is a target of one of both."
    )
    validation_draws: int = setting(
        1, "Random masks of each validation row; from 2 on the loss has a standard error.", bounds="[1, inf)", example=4
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.complementary and self.min_masked_fraction > 0.5:
            raise ConfigError(
                f"objective.min_masked_fraction={self.min_masked_fraction} is more than half, and "
                "objective.complementary=true hides the rest of a document in the second pass. "
                "Try objective.min_masked_fraction=0.3."
            )

    @property
    def causal(self) -> bool:
        return False

    @property
    def denoises(self) -> bool:
        return True

    @property
    def shift_targets(self) -> bool:
        return self.shift

    @property
    def share_of_logits(self) -> float:
        return 1.0 / self.passes

    @property
    def passes(self) -> int:
        return 2 if self.complementary else 1

    @property
    def weighs_targets(self) -> bool:
        return True

    @property
    def chooses_positions(self) -> bool:
        return True

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.diffusion import Diffusion

        return Diffusion(self, mask_id=mask_id_of(vocabulary, self.kind), bos_id=vocabulary.bos_id, seed=seed)


class BidirectionalRows(Enum):
    """What a hybrid model learns from its rows with bidirectional attention."""

    masked = "masked"
    diffusion = "diffusion"


def masking_without_effect(values: Mapping[str, object]) -> list[str]:
    """Return the settings of masking among those of a hybrid objective with diffusion that have been changed.

    `values` may be saved ones. A share of 0.3 is that of the preset `objective=hybrid`.
    """
    usual = {
        each.name: {shown(each.default)} for each in fields(MaskingConfig) if each.name in MaskingConfig.__annotations__
    }
    usual["mask_probability"].add("0.3")
    return [name for name, known in usual.items() if name in values and shown(values[name]) not in known]


@dataclass
class HybridConfig(MaskingConfig):
    """Some rows causal, the others masked or of a masked diffusion: one model that continues texts and fills masks.

    Source: Charpentier and Samuel 2024, "GPT or BERT: why not both?", https://arxiv.org/abs/2410.24159, section 2.
    """

    kind: str = "hybrid"
    masked_rows: float = setting(
        0.5, "Share of the rows that are masked; the others are causal.", bounds="(0.0, 1.0)",
        hint="or objective=causal or masked for rows of one kind",
    )  # fmt: skip
    bidirectional: BidirectionalRows = setting(
        BidirectionalRows.masked,
        "Objective of the rows that are not causal: masked, or diffusion, which has no settings of masking.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional is BidirectionalRows.diffusion and (changed := masking_without_effect(vars(self))):
            raise ConfigError(
                f"objective.{changed[0]}={shown(getattr(self, changed[0]))} means nothing with "
                "objective.bidirectional=diffusion, whose rows are masked at every noise level. Leave it out, or take "
                "objective.bidirectional=masked."
            )

    @property
    def causal(self) -> bool:
        return True

    @property
    def fills_masks(self) -> bool:
        return True

    @property
    def weighs_targets(self) -> bool:
        return self.bidirectional is BidirectionalRows.diffusion

    @property
    def mixes_directions(self) -> bool:
        return True

    def create(self, vocabulary: Vocabulary, seed: int) -> Objective:
        from pretrain.objectives.hybrid import Hybrid

        if self.bidirectional is BidirectionalRows.masked:
            return Hybrid(self.build_masked(vocabulary, seed, shift_targets=True), self.masked_rows)
        from pretrain.objectives.diffusion import Diffusion

        config = DiffusionConfig(shift=True, random_length_rows=0.0)
        mask_id = mask_id_of(vocabulary, self.kind)
        diffusion = Diffusion(config, mask_id=mask_id, bos_id=vocabulary.bos_id, seed=seed, in_causal_model=True)
        return Hybrid(diffusion, self.masked_rows)
