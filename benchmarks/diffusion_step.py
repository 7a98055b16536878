"""Times a step of a masked diffusion beside masked ones whose head runs at as many positions, and their batches.

    python benchmarks/diffusion_step.py            gpt_nano's shape, 8 rows of 256 tokens, on this processor
    python benchmarks/diffusion_step.py small      gpt_small's, 2 rows of 1,024

The kinds take turns, so that all meet the same load; a line is the median of the steps. `static` is what a GPU
computes: its head also runs at positions without a target. Complementary pairs read half of the rows, each twice.
"""

import sys
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.collate import IGNORE, Rows
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import DiffusionConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.objective import ModelWithLoss, Objective
from pretrain.planning.workload import PlannedVocabulary

MASKED = "masked, 99.9 %"
KINDS: dict[str, ObjectiveConfig] = {
    MASKED: MaskedConfig(mask_probability=0.999, mask_token_prob=1.0, random_token_prob=0.0),
    "masked, 50 %": MaskedConfig(mask_probability=0.5, mask_token_prob=1.0, random_token_prob=0.0),
    "diffusion, static": DiffusionConfig(),
    "diffusion": DiffusionConfig(),
    "pairs, static": DiffusionConfig(complementary=True),
}


@dataclass
class Timed:
    """Seconds of each step of one kind."""

    objective: Objective
    rows: Rows
    collate_s: list[float]
    step_s: list[float]


def packed(rows: int, length: int, vocab_size: int) -> Rows:
    """Return rows of two documents each."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(1, vocab_size, (rows, length))
    cuts = draw.integers(length // 4, length // 2, (rows, 1))
    documents = (np.arange(length) >= cuts).astype(np.int32)
    following = np.roll(tokens, -1, axis=1)
    following[:, -1] = following[np.arange(rows), cuts[:, 0] - 1] = IGNORE
    return Rows(tokens, following, np.arange(length) - cuts * documents, documents)


def take_step(model: Transformer, timed: Timed, step: int) -> None:
    """Make a batch and compute its loss and gradient."""
    n_rows = len(timed.rows.tokens)
    started = time.perf_counter()
    batch = timed.objective.collate(timed.rows, torch.arange(n_rows) + step * n_rows)
    made = time.perf_counter()
    loss, count = ModelWithLoss(model, timed.objective)(batch)
    (loss / count).backward()
    model.zero_grad()
    timed.collate_s.append(made - started)
    timed.step_s.append(time.perf_counter() - started)


def main(size: str = "nano", steps: str = "30") -> None:
    """Print the milliseconds of a step of each kind, and of making its batch."""
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", [f"model=diffusion_{size}"])
    vocab_size, n_rows = (2048, 8) if size == "nano" else (50_257, 2)
    model = config.model.build(vocab_size, causal=False)
    assert isinstance(model, Transformer)
    initialize(model, model.config, config.seed)
    rows = packed(n_rows, config.model.context_length, vocab_size)
    kinds: dict[str, Timed] = {}
    for name, kind in KINDS.items():
        objective = kind.build(PlannedVocabulary(vocab_size), config.seed)
        objective.static_shapes = "static" in name
        kinds[name] = Timed(objective, rows[np.arange(n_rows // kind.passes)], [], [])
    for step in range(int(steps)):
        for timed in kinds.values():
            take_step(model, timed, step)
    baseline = median(kinds[MASKED].step_s)
    for name, timed in kinds.items():
        step_s, collate_s = median(timed.step_s), median(timed.collate_s)
        print(f"{name:20} {1000 * step_s:8.1f} ms   {step_s / baseline:.2f}x   batch {1000 * collate_s:.2f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
