"""Time a step of a masked diffusion beside masked ones whose head runs at as many positions: `diffusion_step.py`.

    python benchmarks/diffusion_step.py                           diffusion_nano's shape, 8 rows of 256 tokens
    python benchmarks/diffusion_step.py --size small --layers 4   diffusion_small's with 4 of its layers, 2 rows of 512

The kinds take turns, so that all meet the same load. With one thread the seconds are of CPU time; making the batch is
counted. `static` is what a GPU computes: its head also runs at positions without a target. Complementary pairs read
half of the rows, each twice.
"""

import argparse
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from comparison import Result, typed

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.data.collate import IGNORE, Rows
from pretrain.models.init import initialize
from pretrain.models.transformer import Transformer
from pretrain.objectives.config import DiffusionConfig, MaskedConfig, ObjectiveConfig
from pretrain.objectives.objective import ModelWithLoss, Objective
from pretrain.planning.workload import PlannedVocabulary

MEASURES = (
    "src/pretrain/models",
    "src/pretrain/objectives",
    "src/pretrain/kernels",
    "configs/model/diffusion_nano.yaml",
    "configs/model/diffusion_small.yaml",
)

# with one thread CPU time, which other processes hardly change
CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
ROWS = {"nano": (2048, 8, 256), "small": (50_257, 2, 512)}  # vocabulary, rows, tokens of a row
TARGET = 1 / 1.15  # a step takes at most 1.15 times a masked one
MASKED = "masked, 99.9 %"
KINDS: dict[str, ObjectiveConfig] = {
    MASKED: MaskedConfig(mask_probability=0.999, mask_token_prob=1.0, random_token_prob=0.0),
    "masked, 50 %": MaskedConfig(mask_probability=0.5, mask_token_prob=1.0, random_token_prob=0.0),
    "diffusion, static": DiffusionConfig(),
    "diffusion": DiffusionConfig(),
    "pairs, static": DiffusionConfig(complementary=True),
}
BESIDE = {"diffusion, static": MASKED, "diffusion": "masked, 50 %", "pairs, static": MASKED}  # as many head positions


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
    started = CLOCK()
    batch = timed.objective.collate(timed.rows, torch.arange(n_rows) + step * n_rows)
    made = CLOCK()
    loss, count = ModelWithLoss(model, timed.objective)(batch)
    (loss / count).backward()
    model.zero_grad()
    timed.collate_s.append(made - started)
    timed.step_s.append(CLOCK() - started)


def main() -> None:
    """Print and save the seconds of a step of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=ROWS, default="nano")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30, help="of each kind, after one to warm up")
    given = parser.parse_args()
    register_schemas("train", RunConfig)
    config: RunConfig = compose("train", [f"model=diffusion_{given.size}", f"model.n_layers={given.layers}"])
    vocab_size, n_rows, length = ROWS[given.size]
    model = config.model.build(vocab_size, causal=False)
    assert isinstance(model, Transformer)
    initialize(model, model.config, config.seed)
    rows = packed(n_rows, length, vocab_size)
    kinds: dict[str, Timed] = {}
    for name, kind in KINDS.items():
        objective = kind.build(PlannedVocabulary(vocab_size), config.seed)
        objective.static_shapes = "static" in name
        kinds[name] = Timed(objective, rows[np.arange(n_rows // kind.passes)], [], [])
    for step in range(given.steps + 1):
        for timed in kinds.values():
            take_step(model, timed, step)
    step_s = {name: timed.step_s[1:] for name, timed in kinds.items()}
    shape = f"{given.size}, {given.layers} layers, {n_rows} x {length} tokens"
    result = Result(f"diffusion_step_{given.size}", typed(), {"shape": f"diffusion_{shape}"})
    for name, peer in BESIDE.items():
        rounds = {"ours": step_s[name], peer: step_s[peer]}
        result.add(f"{name}: {shape}", "s", rounds, more_is_better=False, targets={peer: TARGET})
    result.figures["seconds of making a batch"] = {name: median(timed.collate_s) for name, timed in kinds.items()}
    result.finish()


if __name__ == "__main__":
    main()
