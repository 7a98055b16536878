"""Tiny models of every family and data to train them on; other processes import this."""

from dataclasses import dataclass, replace
from functools import partial

import families
import numpy as np
import torch

from pretrain.data.collate import Rows
from pretrain.models.config import TransformerConfig
from pretrain.models.init import initial_tensor
from pretrain.objectives.batch import Batch
from pretrain.objectives.config import CausalConfig, DiffusionConfig, HybridConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.objective import ModelWithLoss
from pretrain.optim.config import AdamWConfig, OptimizerConfig
from pretrain.parallel.parity import TrainingTask

VOCABULARY = 131  # no number of devices divides it
ROWS = 8


@dataclass(frozen=True)
class Words:
    """What an objective needs to know of a tokenizer."""

    vocab_size: int = VOCABULARY
    bos_id: int = 0
    mask_id: int | None = 1
    special_ids: frozenset[int] = frozenset({0, 1})

    @property
    def word_starts(self) -> np.ndarray:
        return np.ones(self.vocab_size, dtype=np.bool_)


def subject(family: str, optimizer: OptimizerConfig | None = None, **changes: object) -> TrainingTask:
    """Return a tiny model of a family with data to train it on; `hybrid` and `diffusion` are Llamas that fill masks.

    A Llama is trained with a z-loss, of which a split vocabulary needs the sum over all devices.
    """
    base = "llama" if family in ("hybrid", "diffusion") else family
    shape = replace(families.SHAPES[base], **changes)  # type: ignore[arg-type]
    objective = {
        "bert": MaskedConfig(),
        "modern_bert": MaskedConfig(),
        "hybrid": HybridConfig(),
        "diffusion": DiffusionConfig(z_loss=0.01, random_length_rows=0.5),
        "llama": CausalConfig(z_loss=0.01),
    }.get(family, CausalConfig())
    return TrainingTask(
        build=partial(_build, shape, objective),
        values=partial(_value, shape),
        batch=partial(_batch, objective, shape.context_length),
        optimizer=optimizer or AdamWConfig(learning_rate=3e-3),
        clip_norm=0.7,  # less than most gradients have: a wrong norm changes the losses
    )


def _value(shape: TransformerConfig, name: str, size: torch.Size) -> torch.Tensor:
    return initial_tensor(name, size, shape, seed=0)


def _build(shape: TransformerConfig, objective: ObjectiveConfig) -> ModelWithLoss:
    with torch.device("meta"):
        model = shape.build(VOCABULARY, objective.causal)
    return ModelWithLoss(model, objective.build(Words(), seed=0))


def _batch(objective: ObjectiveConfig, length: int, step: int) -> Batch:
    """Return rows that can be learned: each token follows from the one before, in documents of unequal length."""
    draw = np.random.default_rng(step)
    tokens = np.empty((ROWS, length), dtype=np.int64)
    tokens[:, 0] = draw.integers(2, VOCABULARY, ROWS)
    for place in range(1, length):
        jump = draw.random(ROWS) < 0.2
        tokens[:, place] = np.where(
            jump, draw.integers(2, VOCABULARY, ROWS), (tokens[:, place - 1] * 7 + 3) % (VOCABULARY - 2) + 2
        )
    cuts = draw.integers(1, length, (ROWS, 1))
    documents = (np.arange(length) >= cuts).astype(np.int32)
    positions = np.arange(length) - cuts * documents
    following = np.concatenate([tokens[:, 1:], np.full((ROWS, 1), -100)], axis=1)
    following[np.arange(ROWS), cuts[:, 0] - 1] = -100  # a document's last token predicts nothing
    following[0, : length // 2] = -100  # rows of unequal numbers of targets: a mean of means would be wrong
    rows = Rows(tokens, following, positions.astype(np.int64), documents)
    return objective.build(Words(), seed=0).collate(rows, torch.arange(step * ROWS, (step + 1) * ROWS))
