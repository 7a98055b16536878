"""On text of a known source the bound of a trained masked diffusion comes down to the entropy, and not below it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.language_model import LanguageModel
from pretrain.training.train import run

SYMBOLS, LENGTH, STEPS = "abcdefgh", 48, 3000
WORDS = [
    "model=diffusion_nano", "model.n_layers=3", "model.d_model=64", "model.n_heads=2", "model.context_length=52",
    "model.dropout=0.0", "batch_size=32", f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}",
    f"checkpoint.every_n_steps={STEPS // 3}", "checkpoint.keep=3", "schedule.warmup_steps=30",
    "schedule.decay_fraction=0.5", "objective.min_masked_fraction=0.15", "trainer.log_every_n_steps=100",
    "objective.random_length_rows=0.0", "sample.every_n_steps=0",
]  # fmt: skip


class Source:
    """A Markov chain of second order over 8 symbols: each depends on the two before it, and the first on none."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.next = self.random.dirichlet(np.full(8, 0.3), size=(8, 8))  # (symbol two before, before, next)

    def documents(self, count: int) -> np.ndarray:
        """Return documents of symbols, (count, LENGTH)."""
        symbols = self.random.integers(0, 8, (count, LENGTH))
        for place in range(2, LENGTH):
            cumulative = self.next[symbols[:, place - 2], symbols[:, place - 1]].cumsum(1)
            symbols[:, place] = (self.random.random((count, 1)) > cumulative[:, :-1]).sum(1)
        return symbols

    def negative_log_p(self, symbols: np.ndarray) -> np.ndarray:
        """Return -log p of each document in nats."""
        chosen = self.next[symbols[:, :-2], symbols[:, 1:-1], symbols[:, 2:]]
        return 2 * np.log(8) - np.log(chosen).sum(1)


def spelled(symbols: np.ndarray) -> list[str]:
    return ["".join(SYMBOLS[number] for number in row) for row in symbols]


@pytest.mark.long
@pytest.mark.timeout(3600)  # of a busy machine: four minutes of one idle core
def test_the_bound_comes_down_to_the_entropy_of_the_source(tiny: Any, tmp_path: Path) -> None:
    source = Source(seed=0)
    text = tmp_path / "chain.jsonl"
    text.write_text("".join(f'{{"text": "{line}"}}\n' for line in spelled(source.documents(40_000))))
    tiny.words = [word for word in tiny.words if not word.startswith(("model.", "data.path"))]
    report = run(tiny.plan(*WORDS, f"data.path={text}"))
    held_out = source.documents(400)
    exact = source.negative_log_p(held_out)
    excess = {}
    for checkpoint in sorted((Path(report.folder) / "checkpoints").iterdir()):
        scores = LanguageModel.load(checkpoint).score(spelled(held_out), draws=16)
        assert all(score.tokens == LENGTH and score.is_bound for score in scores)
        above = np.array([-score.log_likelihood for score in scores]) - exact
        error = above.std(ddof=1) / len(above) ** 0.5
        excess[checkpoint.name] = float(above.mean() / exact.mean())
        assert above.mean() > -3 * error, excess
    assert list(excess.values())[-1] < 0.05, excess
