"""A classifier is the same on one process and on two, DDP or FSDP2: losses, accuracy, F1, labels and weights."""

import random
from pathlib import Path

import pytest
from job import TWO, Job, assert_same_weights, losses

from pretrain.language_model import LanguageModel
from pretrain.launch.run_folder import read_rows

pytestmark = pytest.mark.slow
FIGURES = ("val/loss", "val/accuracy", "val/f1")


def validated(folder: Path) -> list[float]:
    rows = {row["name"]: float(row["value"]) for row in read_rows(folder / "metrics.csv")}
    return [rows[name] for name in FIGURES]


@pytest.mark.long
def test_two_processes_train_and_score_a_classifier_as_one_does(job: Job, tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = []
    for number in range(150):
        label = draw.choice(["good", "bad", "so so"])
        lines.append(f"{'x ' * draw.randint(1, 9)}a {label} film {number}\t{label}\n")
    (tmp_path / "texts.tsv").write_text("".join(lines))
    job.words = [word for word in job.words if not word.startswith(("data", "checkpoint."))]
    job.words += ["experiment=classify", "model=bert_nano", f"data.path={tmp_path / 'texts.tsv'}", "batch_size=8"]
    job.words += ["data.validation_fraction=0.2", "checkpoint.every_n_steps=10", "schedule.warmup_steps=2"]
    one = job.run("one")
    assert len(losses(one)) == 10
    for strategy in ("ddp", "fsdp"):
        two = job.run(strategy, f"trainer={strategy}", *TWO, "micro_batch_size=2")
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        assert validated(two) == pytest.approx(validated(one), rel=1e-4)
        assert_same_weights(one, two, atol=1e-4)
        assert LanguageModel.load(two).labels == ["bad", "good", "so so"]
