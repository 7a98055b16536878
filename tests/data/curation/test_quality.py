"""A quality score: texts like a reference come first, with equal bytes however it is computed."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.quality import BUCKETS, area_under_curve, read_classifier
from pretrain.errors import ConfigError, DataError
from pretrain.reports.curation import write_corpus_report

GOOD, BAD = ["theorem", "proof", "lemma", "ring", "ideal"], ["buy", "cheap", "click", "offer", "deal"]
COMMON = ["the", "a", "of", "to", "and", "is", "in", "that", "it", "for"]


def texts(words: list[str], count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(words + COMMON, k=40)) for _ in range(count)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write 30 good and 120 bad documents, and a reference of good ones."""
    folder = tmp_path / "raw"
    folder.mkdir()
    mixed = texts(GOOD, 30, 0) + texts(BAD, 120, 1)
    for name, each in (("web", mixed), ("reference", texts(GOOD, 80, 2)), ("few", texts(GOOD, 5, 3))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in each))
    return folder


def run(raw: Path, output: Path, *more: str) -> dict[str, Any]:
    register_schemas("curate", CurateConfig)
    source = f"sources.web={{kind: jsonl, path: {raw}/web.jsonl, license: MIT}}"
    words = [source, "rules=none", "unit_bytes=9000", "workers=1", f"output={output}", "duplicates=off", *more]
    config: CurateConfig = compose("curate", words)
    return curate(config, report=lambda line: None)


def kept(output: Path) -> list[str]:
    return [row for path in sorted((output / "data").iterdir()) for row in pq.read_table(path)["text"].to_pylist()]


def hashes(output: Path) -> dict[str, str]:
    paths = [path for path in output.rglob("*") if path.is_file() and "work" not in path.parts]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths if path.name != "timings.json"}  # fmt: skip


@pytest.mark.slow
def test_the_best_stay_and_equal_bytes_come_of_it(raw: Path, tmp_path: Path) -> None:
    reference = f"quality.reference={raw}/reference.jsonl"
    manifest = run(raw, tmp_path / "top", reference, "quality.keep_top=0.2")
    assert manifest["quality"]["auc"] > 0.7  # a fifth of the documents are as good
    assert (manifest["quality"]["reference"], manifest["quality"]["others"]) == (80, 80)
    assert sum("theorem" in text or "proof" in text or "ring" in text for text in kept(tmp_path / "top")) >= 28
    assert manifest["documents"] == 30
    assert "quality.score" in write_corpus_report(tmp_path / "top").read_text()
    (tmp_path / "top" / "report.html").unlink()
    run(raw, tmp_path / "again", reference, "quality.keep_top=0.2", "workers=2")
    assert hashes(tmp_path / "top") == hashes(tmp_path / "again")
    model = tmp_path / "top" / "quality.safetensors"
    by_model = run(raw, tmp_path / "model", f"quality.model={model}", "rules.min_quality=0.5")
    assert by_model["quality"]["sha256"] == manifest["quality"]["sha256"]
    files = sorted((tmp_path / "model" / "decisions").iterdir())
    scores = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert all((row["quality_score"] >= 0.5) == (row["removed_by"] is None) for row in scores)
    assert {row["removed_by"] for row in scores} == {None, "quality.score"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        (["rules.min_quality=0.5"], ConfigError, "rules.min_quality=0.5 compares a score, and none is computed"),
        (["quality.keep_top=0.5"], ConfigError, "quality.keep_top=0.5 needs a score"),
        (["quality.model=a", "quality.reference=b"], ConfigError, "two ways to score"),
        (["quality.reference={raw}/missing"], DataError, "quality.reference=.*missing does not exist"),
        (["quality.reference={raw}/few.jsonl"], DataError, "has 5 different texts .* 20 of each"),
        (["quality.model={raw}/few.jsonl"], DataError, "no classifier of a curation"),
    ],
)
def test_what_cannot_score_is_refused(
    raw: Path, tmp_path: Path, settings: list[str], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        run(raw, tmp_path / "corpus", *(each.replace("{raw}", str(raw)) for each in settings))


@pytest.mark.parametrize(
    ("weights", "bias"), [(BUCKETS - 1, [0.0]), (BUCKETS, [0.0, 0.0]), (BUCKETS, [0.0])], ids=["weights", "bias", "NaN"]
)
def test_a_classifier_of_another_shape_is_refused(tmp_path: Path, weights: int, bias: list[float]) -> None:
    path, values = tmp_path / "quality.safetensors", np.zeros(weights, np.float32)
    if (weights, len(bias)) == (BUCKETS, 1):
        values[7] = np.nan
    save_file({"weights": values, "bias": np.array(bias, np.float32)}, path)
    message = (
        rf"quality\.model=.* is no classifier of a curation: it has not {BUCKETS} weights and a bias, all finite\."
    )
    with pytest.raises(DataError, match=rf"{message} Try that of a corpus\."):
        read_classifier(path)


def test_area_under_curve() -> None:
    assert area_under_curve([0.9, 0.8], [0.1, 0.2]) == 1.0
    assert area_under_curve([0.5], [0.5]) == 0.5
    assert area_under_curve([0.1, 0.9], [0.5]) == 0.5
    assert area_under_curve([], [0.5]) is None
