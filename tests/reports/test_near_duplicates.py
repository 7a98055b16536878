"""Near-duplicates in the report of a corpus and in `explain`: both texts where they differ, named by their files."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.explain import explain_rule, lines_of
from pretrain.data.curation.writing import SAMPLE_CHARACTERS
from pretrain.reports.curation import corpus_page

WORDS = [f"word{n}" for n in range(1500)]
MAIL = "jane.doe@example.org"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate a long text and one that differs from it by two words, far from its beginning; both have an address."""
    folder = tmp_path_factory.mktemp("near")
    words = [*WORDS[:5], MAIL, *WORDS[5:]]
    (folder / "one.txt").write_text(" ".join(words))
    changed = [{"word700": "<b>red</b>", "word720": "blue"}.get(word, word) for word in words]
    (folder / "other.txt").write_text(" ".join([*changed, "last"]))  # the longer one stays
    (folder / "alone.jsonl").write_text(json.dumps({"text": "Nothing like it is here."}) + "\n")
    output = folder / "corpus"
    register_schemas("curate", CurateConfig)
    curate(compose("curate", [
        f"sources.mine={{kind: text_files, path: '{folder}/*.txt', license: unknown}}",
        f"sources.alone={{kind: jsonl, path: {folder}/alone.jsonl, license: unknown}}",
        "rules=none", "personal_data.kinds=[email]", "workers=1", f"output={output}",
    ]), report=lambda line: None)  # fmt: skip
    return output


@pytest.mark.slow
def test_explain_marks_where_they_differ(corpus: Path) -> None:
    (found,) = explain_rule(corpus, "near")
    lines = lines_of(found, 600, all_rules=False)
    text, copy, twin = lines[2:]
    assert copy.partition("  ")[2].strip().endswith(f"mine/other.txt:1, similarity {found.similarity:.3f}")
    assert text.startswith("text        ...word6")
    assert "word699 >>word700<< word701" in text
    assert "word719 >>word720<< word721" in text
    assert twin.startswith("its text    ...word6")
    assert "word699 >><b>red</b><< word701" in twin
    assert "word719 >>blue<< word721" in twin
    assert text.endswith(f" ... {' '.join(WORDS[1491:])}>><<")
    assert twin.endswith(" word1499 >>last<<")
    assert lines_of(found, 60, all_rules=False)[2].endswith("...")


def test_the_sample_is_the_part_that_differs_and_survives_without_work(corpus: Path, tmp_path: Path) -> None:
    (sample,) = pq.read_table(corpus / "samples.parquet").to_pylist()
    assert sample["start"] > SAMPLE_CHARACTERS
    assert sample["text"].index("word700") == 200
    assert len(sample["text"]) == SAMPLE_CHARACTERS
    copied = tmp_path / "corpus"
    shutil.copytree(corpus, copied, ignore=shutil.ignore_patterns("work"))
    assert corpus_page(copied) == corpus_page(corpus)
    (found,) = explain_rule(copied, "near")
    text, _, twin = lines_of(found, 600, all_rules=False)[2:]
    assert "word699 >>word700<< word701" in text
    assert "word699 >><b>red</b><< word701" in twin
    assert MAIL not in text + twin


def test_the_report_shows_both_texts_and_names_the_files(corpus: Path) -> None:
    page = corpus_page(corpus)
    samples = page.partition("Samples of what was removed")[2]
    assert "mine/one.txt:1 · copy of mine/other.txt:1 · similarity 0." in samples
    assert "word699 <mark>word700</mark> word701" in samples
    assert "word699 <mark>&lt;b&gt;red&lt;/b&gt;</mark> word701" in samples
    assert MAIL not in page
    clusters = page.partition("Largest clusters")[2].partition("</table>")[0]
    assert ">removed for it<" in clusters
    assert clusters.index("mine/other.txt:1") < clusters.index("mine/one.txt:1")
    assert 'data-head="documents">2<' in clusters


def test_the_title_names_the_corpus_and_its_rules(corpus: Path) -> None:
    page = corpus_page(corpus)
    assert "<h1>Corpus corpus</h1><p>Rules: none. Fingerprint " in page
    assert "<b>2</b><span>sources</span>" in page
    assert "<b>1</b><span>license</span>" in page
