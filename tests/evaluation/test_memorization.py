"""A model that overfits a few documents repeats them verbatim, and no others."""

import random
from pathlib import Path
from typing import Any

import pytest

from pretrain.evaluation.config import EvalConfig, Task
from pretrain.evaluation.run import score
from pretrain.reports.history import read_history
from pretrain.training.config import PathsConfig
from pretrain.training.train import run

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_documents(folder: Path, count: int, seed: int) -> Path:
    """Write documents of random letters: what a model goes on with verbatim it has seen."""
    folder.mkdir()
    draw = random.Random(seed)
    for number in range(count):
        (folder / f"{number:02d}.txt").write_text("".join(draw.choices(LETTERS, k=50)))
    return folder


@pytest.mark.long
def test_training_documents_are_repeated_and_held_out_ones_are_not(tiny: Any, tmp_path: Path) -> None:
    train, held_out = (write_documents(tmp_path / name, 40, seed) for seed, name in enumerate(("train", "held_out")))
    words = ["model=gpt_nano", f"data.path={train}", f"data.validation_path={held_out}", "model.dropout=0"]
    words += ["model.d_model=64", "model.n_heads=4", "model.context_length=64", "batch_size=20"]
    words += ["optimizer.weight_decay=0", "trainer.max_steps=140", "trainer.val_check_interval=1000"]
    report = run(tiny.plan(*words, "checkpoint.every_n_steps=1000", "trainer.log_every_n_steps=140"))
    paths = PathsConfig(cache_dir=str(tiny.folder / "cache"))
    found = score(EvalConfig(paths=paths, task=Task.memorization, prompt_tokens=16, new_tokens=16), report.folder)
    assert found["train/documents"] == found["validation/documents"] == 40
    assert found["train/times_read"] > 50
    assert found["train/exact_match"] > 0.9
    assert found["train/verbatim_tokens"] > 15
    assert found["validation/exact_match"] == 0
    assert found["validation/verbatim_tokens"] < 1


@pytest.mark.slow
def test_the_text_of_a_later_stage_was_read_in_that_stage_alone(tiny: Any, tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "later", 20, seed=3)
    words = ["batch_size=4", "trainer.max_steps=7", "stages.a.until_steps=5", f"stages.b.data.path={texts}"]
    report = run(tiny.plan("model=gpt_nano", *words, "data.validation_fraction=0", "stages.b.data.separator=null"))
    paths = PathsConfig(cache_dir=str(tiny.folder / "cache"))
    found = score(EvalConfig(paths=paths, task=Task.memorization, prompt_tokens=2, new_tokens=2), report.folder)
    assert found["train/documents"] == 20
    history = read_history(Path(report.folder))
    assert history is not None
    (source,) = history.sources  # of the later stage: 2 steps of 4 rows of 32 tokens
    assert found["train/times_read"] == pytest.approx(2 * 4 * 32 / source.tokens)
