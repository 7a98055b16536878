"""Bits per byte of a corpus's texts by a checkpoint: those of the model, and equal for any number of processes."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from families import random_model, shape
from folders import BYTES
from tiny_run import TinyRun

from pretrain import LanguageModel
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.evaluation import checkpoint_bits
from pretrain.objectives.fine_tuning_config import Pooling
from pretrain.training.train import run as train

TEXTS = [
    f"the quick brown fox jumps over {number} lazy dogs while seven birds sing" * (number + 1) for number in range(12)
]
CHARACTERS = 100


def run(folder: Path, output: Path, *words: str) -> dict[str, Any]:
    register_schemas("curate", CurateConfig)
    source = f"sources.web={{kind: jsonl, path: {folder}/raw, license: MIT}}"
    more = [source, "rules=none", "workers=1", "unit_bytes=1000", f"output={output}", "duplicates=off", *words]
    config: CurateConfig = compose("curate", more)
    return curate(config, lambda line: None)


def decisions(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "decisions").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def checkpoint(tiny: TinyRun) -> Path:
    """Return a checkpoint, beside a folder of raw texts in several files."""
    raw = tiny.folder / "raw"
    raw.mkdir()
    for part in range(3):
        (raw / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[part::3]))
    report = train(tiny.plan())
    return Path(report.folder) / "checkpoints" / "step-00000012"


@pytest.mark.slow
def test_bits_are_those_of_the_model_and_decide(checkpoint: Path, tiny: TinyRun) -> None:
    words = f"quality.checkpoint={checkpoint}", f"quality.characters={CHARACTERS}"
    manifest = run(tiny.folder, tiny.folder / "one", *words, "quality.keep_top=0.25")
    rows = decisions(tiny.folder / "one")
    model = LanguageModel.load(checkpoint)
    of_text = {text[:CHARACTERS]: model.score(text[:CHARACTERS]).bits_per_byte for text in TEXTS}
    ordered = [text[:CHARACTERS] for part in range(3) for text in TEXTS[part::3]]
    assert [row["bits_per_byte"] for row in rows] == pytest.approx([of_text[text] for text in ordered], rel=1e-4)
    assert manifest["documents"] >= 3
    kept = [row["bits_per_byte"] for row in rows if row["removed_by"] is None]
    gone = [row["bits_per_byte"] for row in rows if row["removed_by"] == "quality.bits_per_byte"]
    assert max(kept) < min(gone)
    assert len(kept) + len(gone) == len(TEXTS)
    record = manifest["quality"]
    assert (record["checkpoint"], record["step"], record["characters"]) == ("step-00000012", 12, CHARACTERS)
    assert record["tokenizer"] == model.tokenizer.fingerprint
    run(tiny.folder, tiny.folder / "two", *words, "quality.keep_top=0.25", "workers=2")
    assert decisions(tiny.folder / "two") == rows
    middle = sorted(kept)[-1]
    limits = f"rules.max_bits_per_byte={middle + 1e-9}", f"rules.min_bits_per_byte={middle - 1e-9}"
    narrow = run(tiny.folder, tiny.folder / "narrow", *words, *limits)
    assert narrow["documents"] == kept.count(middle)


@pytest.mark.long
def test_what_cannot_measure_bits_is_refused(checkpoint: Path, tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tiny.folder / "corpus"
    with pytest.raises(CheckpointError, match="none does not exist"):
        run(tiny.folder, output, f"quality.checkpoint={tiny.folder}/none")
    with pytest.raises(ConfigError, match=r"rules\.max_bits_per_byte=1 compares a score.*Try quality\.checkpoint="):
        run(tiny.folder, output, "rules.max_bits_per_byte=1")
    with pytest.raises(ConfigError, match=r"quality\.reference=a and quality\.checkpoint=b are two ways"):
        run(tiny.folder, output, "quality.reference=a", "quality.checkpoint=b")
    masked = train(tiny.plan("objective=masked", "trainer.max_steps=2", "checkpoint.every_n_steps=2"))
    with pytest.raises(ConfigError, match=r"quality\.checkpoint=.* is no causal model, which reads a text once"):
        run(tiny.folder, output, f"quality.checkpoint={masked.folder}")
    record = checkpoint_bits.checkpoint_record(str(checkpoint), "cpu")
    asked = iter([record, record | {"step": 11}])
    monkeypatch.setattr(checkpoint_bits, "checkpoint_record", lambda path, device: next(asked))
    with pytest.raises(DataError, match=r"has other weights than when this curation began\. Name one checkpoint"):
        run(tiny.folder, output, f"quality.checkpoint={checkpoint}")


def test_a_causal_model_that_embeds_texts_is_refused_before_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = LanguageModel(random_model(shape("llama"), BYTES.vocab_size, causal=True), BYTES, pooling=Pooling.last)
    monkeypatch.setattr(LanguageModel, "load", lambda path, device: embedder)
    with pytest.raises(ConfigError, match="this model embeds texts and has no head that predicts tokens"):
        checkpoint_bits.checkpoint_record("an embedder", "cpu")
