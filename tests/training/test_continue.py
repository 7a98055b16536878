"""experiment=continue: a trained model learns a domain, and replay limits forgetting."""

import json
import lzma
from pathlib import Path

import pytest

from pretrain.config.compose import compose
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigError
from pretrain.launch.run_plan import resolve_run
from pretrain.training.report import Report
from pretrain.training.train import run

STORIES, PEPS = 80, 16  # documents, so that the test is short
SHORT = [
    "trainer.max_steps=16",
    "schedule.warmup_steps=3",
    "batch_size=8",
    "model.context_length=128",
    "optimizer.learning_rate=1e-3",
    "data.max_validation_rows=0",
    "data.sources.domain.validation_fraction=0.25",
    "data.sources.replay.validation_fraction=0.1",
    "trainer.precision=fp32",
    "trainer.enable_progress_bar=false",
    "sample.max_new_tokens=4",
    "logger=csv",
]


@pytest.fixture
def words(assets: Path, tmp_path: Path) -> list[str]:
    """Return what a user types: a model that tells stories, proposals for Python as the domain, stories to replay."""
    corpora = assets / "corpora"
    with lzma.open(corpora / "python_peps" / "peps.jsonl.xz", "rt", encoding="utf8") as file:
        texts = [json.loads(line)["text"][:3000] for line in file][2 : 2 + PEPS]
    (tmp_path / "peps.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stories = (corpora / "tinystories_sample" / "tiny.utf8").read_text(encoding="utf8").split("<|endoftext|>")
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stories[:STORIES]))
    return [
        "experiment=continue",
        f"init_from={assets / 'models' / 'stories260K' / 'hf'}",
        f"data.sources.domain.path={tmp_path / 'peps.jsonl'}",
        f"data.sources.replay.path={tmp_path / 'stories.jsonl'}",
        f"paths.cache_dir={tmp_path / 'cache'}",
        f"paths.logs_dir={tmp_path / 'logs'}",
    ]


def change(report: Report, source: str) -> float:
    key = f"val/{source}/loss"
    return report.validation[key] - report.first_validation[key]


@pytest.mark.long
def test_the_domain_is_learned_and_replay_keeps_the_stories(words: list[str]):
    def trained(*more: str) -> Report:
        typed = [*words, *SHORT, *more]
        return run(resolve_run(compose("train", typed), typed))

    replayed, alone = trained(), trained("data.sources.replay.weight=1e-9")
    assert replayed.first_validation == alone.first_validation  # the same documents, the same weights
    assert replayed.first_validation["val/replay/loss"] < 2.0 < 4.0 < replayed.first_validation["val/domain/loss"]
    assert change(replayed, "domain") < -1.0
    assert change(replayed, "replay") < 0.2
    assert change(alone, "replay") > change(replayed, "replay") + 0.4
    assert "    domain           " in str(replayed).split("since the start")[1]


@pytest.mark.slow
def test_the_preset_needs_two_paths_and_takes_overrides(words: list[str]):
    config: RunConfig = compose("train", words)
    sources = config.data.sources
    assert {name: (each.text.kind, each.weight) for name, each in sources.items()} == {
        "domain": ("text_files", 0.75),
        "replay": ("text_files", 0.25),
    }
    assert (config.name, config.optimizer.kind, config.optimizer.learning_rate) == ("continue", "adamw", 1e-4)
    assert config.trainer.validate_first
    steps = config.max_steps()
    assert steps is not None
    shares = [config.schedule.lr_multiplier(step, steps) for step in (0, config.warmup_steps(), steps - 1)]
    assert shares[0] < 0.05 < 0.15 < shares[1] == max(shares)  # up again
    assert shares[2] < 0.15  # and down again
    other: RunConfig = compose("train", [*words, "data.sources.replay.kind=hugging_face", "optimizer=muon"])
    assert other.data.sources["replay"].text.kind == "hugging_face"
    assert other.optimizer.kind == "muon"
    with pytest.raises(ConfigError, match=r"data\.sources\.replay\.path has no value, and needs one\."):
        compose("train", [word for word in words if "replay" not in word])
