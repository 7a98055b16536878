"""A step waits for the device nowhere but where the documentation says so; seen on CPUs by what the host reads."""

from typing import Any

import pytest
from waits import Waits

from pretrain.objectives.objective import Objective
from pretrain.training.train import run

QUIET = [
    "trainer.max_steps=6", "trainer.log_every_n_steps=100", "trainer.val_check_interval=100", "sample.every_n_steps=0",
    "checkpoint.every_n_steps=100", "micro_batch_size=4", "batch_size=8", "data.prefetch=1",
]  # fmt: skip


def waits(tiny: Any, *settings: str) -> list[str]:
    """Return where the fourth step of a run would wait."""
    watch = Waits()
    run(tiny.plan(*settings, *QUIET, f"paths.run_dir={tiny.folder / 'run'}"), callbacks=[watch])
    assert watch.seen
    return watch.found


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["model=gpt_nano", "optimizer=adamw", "logging.ledger=true", "logging.norms=true", "ema.decay=0.9"],
        ["model=gpt_nano", "optimizer=muon", "model.dropout=0.1"],
        ["model=bert_nano", "optimizer=stable_adamw"],
        ["model=diffusion_nano", "optimizer=adamw"],
    ],
    ids=["adamw", "muon", "stable_adamw", "diffusion"],
)
def test_a_warm_step_waits_nowhere(tiny: Any, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "_needs_static", lambda *_: True)  # as on a GPU
    assert waits(tiny, *settings) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("divergence.on_spike=skip", "lightning_module.py:reason_to_skip"),
        ("trainer.precision=fp16", "lightning_module.py:reason_to_skip"),
        ("trainer.log_every_n_steps=1", "lightning_module.py:_sum_since_last_line"),
    ],
)
def test_the_waits_that_the_documentation_lists_are_seen(tiny: Any, setting: str, where: str) -> None:
    """Else the test above would not see one either."""
    watch = Waits()
    words = [each for each in QUIET if each.partition("=")[0] != setting.partition("=")[0]]
    run(tiny.plan("model=gpt_nano", "optimizer=adamw", *words, setting), callbacks=[watch])
    assert where in {each.split(" ")[0] for each in watch.found}
