"""Toxicity of texts: counted by listed words and phrases, annotated, and removed only where that is asked."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from curation_documents import settings

from pretrain.data.curation.curate import curate
from pretrain.data.curation.toxicity import MAX_LIST_BYTES, ToxicityConfig, read_words, share_of_listed
from pretrain.errors import ConfigError, DataError

TEXTS = {
    "Nothing here is on the list at all.": 0.0,
    "You vile person of that kind.": 1 / 6,
    "A LOW LIFE, low lives, and a low.": 2 / 8,  # a phrase in any case; its words alone are none
    "vilest": 0.0,  # a longer word is another one
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "words.txt").write_text("Vile\n\nlow life\nlow\tlife form\n")
    (folder / "empty.txt").write_text("\n - \n")
    with (folder / "large.txt").open("wb") as file:
        file.truncate(MAX_LIST_BYTES + 1)  # it takes no room on the disk
    (folder / "bytes.txt").write_bytes(b"\xff\xfe")
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def run(raw: Path, output: Path, *more: str) -> dict[str, Any]:
    config = settings(raw / "web.jsonl", output, "duplicates=off", *more)
    return curate(config, lambda line: None)


@pytest.mark.slow
def test_listed_words_are_counted_and_removed_where_that_is_asked(raw: Path, tmp_path: Path) -> None:
    phrases = read_words(raw / "words.txt")
    assert {text: share_of_listed(text, phrases) for text in TEXTS} == pytest.approx(TEXTS)
    assert share_of_listed("a low life form", phrases) == 3 / 4  # the longest phrase that fits
    assert share_of_listed("...", phrases) == 0.0
    words = f"toxicity.words={raw}/words.txt"
    manifest = run(raw, tmp_path / "annotated", words)
    assert (manifest["documents"], manifest["toxicity"]["documents"], manifest["toxicity"]["words"]) == (
        4, 2, "words.txt",
    )  # fmt: skip
    assert len(manifest["toxicity"]["sha256"]) == 64
    rows = pq.read_table(tmp_path / "annotated" / "decisions").to_pylist()
    assert [row["toxicity"] for row in rows] == pytest.approx(list(TEXTS.values()))
    manifest = run(raw, tmp_path / "dropped", words, "rules.max_toxicity=0.2")
    assert manifest["sources"]["web"]["documents"]["removed"]["toxicity.score"]["first"] == 1
    assert "toxicity" not in run(raw, tmp_path / "plain")


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        (["toxicity.words={raw}/none.txt"], DataError, r"toxicity\.words=.*none\.txt cannot be read: .* Name a text"),
        (["toxicity.words={raw}/bytes.txt"], DataError, r"bytes\.txt cannot be read: .*utf-8"),
        (["toxicity.words={raw}"], DataError, r"words=.*raw cannot be read: it is a folder, .* Name a text file"),
        (["toxicity.words={raw}/large.txt"], DataError, r"large\.txt cannot be read: it is larger than the 67,108,864"),
        (["toxicity.words={raw}/empty.txt"], DataError, r"empty\.txt has no word\. Name a file of words"),
        (["rules.max_toxicity=0.5"], ConfigError, r"rules\.max_toxicity=0\.5 compares a score.*Try toxicity\.words="),
    ],
)
def test_what_cannot_score_is_refused(
    raw: Path, tmp_path: Path, words: list[str], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        run(raw, tmp_path / "corpus", *(word.replace("{raw}", str(raw)) for word in words))


def test_two_scores_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"toxicity\.words=a and toxicity\.model=b are two scores of one name"):
        ToxicityConfig(words="a", model="b")
