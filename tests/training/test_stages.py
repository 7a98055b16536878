"""Stages of a run: what each trains on, and that a run killed in a stage or at a border ends as one that was not."""

from typing import Any

import pytest

from pretrain.launch.run_plan import RunPlan
from pretrain.training.datamodule import MicroBatches
from pretrain.training.report import Report
from pretrain.training.train import train

ROPE = ["model=modernbert_nano", "tokenizer=bpe", "tokenizer.vocab_size=270", "optimizer=adamw", "logger=csv"]
THREE = [
    "trainer.max_steps=12",
    "objective.validation_mask_probability=0.15",
    "batch_warmup_rows=2",
    "batch_warmup_tokens=256",  # two steps of 2 rows, then 4
    "stages.short.until_steps=5",
    "stages.long.until_fraction=0.75",
    "stages.long.model.context_length=64",
    "stages.long.model.rope_base=1e6",
    "stages.long.batch_size=2",
    "stages.long.batch_warmup_rows=null",
    "stages.long.batch_warmup_tokens=null",
    "stages.decay.model.context_length=64",
    "stages.decay.model.rope_base=1e6",
    "stages.decay.objective.mask_probability=0.15",
    "stages.decay.optimizer.learning_rate=1e-3",
    "stages.decay.schedule={kind: linear, min_lr_ratio: 0.0}",
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Return the micro-batches that runs take from their loaders, by number; with prefetch=0 these are trained on."""
    batches: dict[int, Any] = {}
    original = MicroBatches.__getitem__

    def noted(self: MicroBatches, index: int) -> Any:
        batches[index] = original(self, index)
        return batches[index]

    monkeypatch.setattr(MicroBatches, "__getitem__", noted)
    return batches


def trained(tiny: Any, *words: str, folder: str = "run") -> Report:
    plan: RunPlan = tiny.plan(*ROPE, *THREE, "data.prefetch=0", f"paths.run_dir={tiny.folder / folder}", *words)
    return train(plan)


def test_three(tiny, read) -> None:
    report = trained(tiny)
    print(report)
    for k in sorted(read):
        print(k, read[k].tokens.shape, read[k].sample_indices.tolist(), read[k].targets.shape)
