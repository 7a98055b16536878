"""Near-duplicates within a curation: named twins, clusters, a base corpus, the guard, and repeated paragraphs."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

from planted_duplicates import chains, reviews, true_similarities, windows

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.config import CuratedConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import overview
from pretrain.data.curation.near_duplicates.config import PRESETS
from pretrain.data.curation.near_duplicates.minhash import MinHash
from pretrain.data.curation.verify import verify
from pretrain.data.sources.splits import split_of
from pretrain.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def texts(assets: Path) -> list[str]:
    """Return 300 texts: 60 chains of 4, each text changed further from the one before, and 60 single ones."""
    pieces = windows(reviews(assets), 150)
    return chains(pieces[:60], 4, changes=2, seed=3) + pieces[60:120]


def write(path: Path, texts: list[str], **columns: list[Any]) -> None:
    rows = [dict(zip(("text", *columns), row, strict=True)) for row in zip(texts, *columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(output: Path, sources: dict[str, str], *words: str) -> dict[str, Any]:
    """Curate sources, each the rest of its settings by name, without rules."""
    register_schemas("curate", CurateConfig)
    given = [f"sources.{name}={{kind: jsonl, license: MIT, {rest}}}" for name, rest in sources.items()]
    config: CurateConfig = compose(
        "curate", [*given, "rules=none", "workers=1", "unit_bytes=40000", f"output={output}", *words]
    )
    return curate(config, report=lambda line: None)


def rows_of(output: Path, folder: str = "data") -> list[dict[str, Any]]:
    return [row for path in sorted((output / folder).iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def corpus(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a corpus of the texts and 20 exact copies of changed ones."""
    folder = tmp_path_factory.mktemp("corpus")
    write(folder / "a.jsonl", texts + texts[1:80:4])
    return folder / "out", run(folder / "out", {"a": f"path: {folder}/a.jsonl"})


@pytest.mark.slow
def test_every_removed_document_has_a_kept_twin(texts: list[str], corpus: tuple[Path, dict[str, Any]]) -> None:
    output, manifest = corpus
    counts = manifest["sources"]["a"]["documents"]
    kept, decisions = rows_of(output), rows_of(output, "decisions")
    assert counts["exact"] == 20
    assert 80 < counts["near"] == sum(row["removed_by"] == "near" for row in decisions)
    assert counts["kept"] == 320 - 20 - counts["near"] == len(kept)
    assert sum(row["cluster_size"] for row in kept) == 320  # copies of removed documents too
    assert sum(manifest["duplicates"]["clusters"].values()) == len(kept)
    of_id, numbers = {row["id"]: row for row in kept}, {text: number for number, text in enumerate(texts)}
    true = true_similarities(texts)
    for row in decisions:
        if row["removed_by"] is None:
            assert (row["duplicate_of"], row["similarity"]) == (None, None)
            continue
        place = int(row["origin"].rpartition(":")[2]) - 1
        mine = place if place < len(texts) else numbers[texts[1:80:4][place - len(texts)]]
        twin = of_id[row["duplicate_of"]]
        expected = true[mine, numbers[twin["text"]]]
        assert expected >= 0.8
        assert row["similarity"] == expected or (row["removed_by"] == "exact" and row["similarity"] == 1.0)
        assert row["cluster"] == twin["cluster"]
    assert len({row["cluster"] for row in kept}) < len(kept)  # the ends of a chain are both kept, in one cluster
    assert all(row["split_key"] == int(row["cluster"][16:], 16) for row in kept)
    assert any("near-duplicates" in line for line in overview(manifest))


@pytest.mark.slow
def test_no_duplicate_of_training_is_validated_on(texts: list[str], corpus: tuple[Path, dict[str, Any]]) -> None:
    splits: dict[str, set[str]] = {"train": set(), "validation": set()}
    for document in CuratedConfig(path=str(corpus[0])).open().documents():
        splits[split_of(document, 0.3)].add(document.text)
    assert len(splits["validation"]) > 20
    minhash = MinHash(5, 20, 8)
    bands = [set(minhash.band_keys(sorted(side)).ravel().tolist()) for side in splits.values()]
    assert not bands[0] & bands[1]
    true, numbers = true_similarities(texts), {text: number for number, text in enumerate(texts)}
    sides = [[numbers[text] for text in texts] for texts in splits.values()]
    assert (true[sides[0]][:, sides[1]] >= 0.8).sum() <= 3  # what 20 bands miss: 2.5 % at 0.8


def test_verify_compares_the_removed_with_their_twins(corpus: tuple[Path, dict[str, Any]]) -> None:
    output, manifest = corpus
    found = verify(output)
    assert found.compared == manifest["duplicates"]["near"]
    path = max((output / "decisions").iterdir(), key=lambda each: each.stat().st_size)
    whole = path.read_bytes()
    table = pq.read_table(path)
    values = table["similarity"].to_pylist()
    place = next(number for number, value in enumerate(values) if value is not None and value < 1.0)
    for column, value, message in (
        ("similarity", 0.5, r"has a similarity of 0\.5 to .*, below duplicates\.similarity=0\.8"),
        ("similarity", 0.99, r"has a similarity of 0\.8\d+ to .* by its text, and 0\.99 is written"),
        ("duplicate_of", "0" * 32, r"is the duplicate of 0{32}, which is not in the corpus"),
    ):
        edited = table[column].to_pylist()
        edited[place] = value
        path.unlink()
        pq.write_table(table.set_column(table.column_names.index(column), column, [edited]), path)
        with pytest.raises(DataError, match=message):
            verify(output)
    path.unlink()
    path.write_bytes(whole)


@pytest.mark.slow
def test_a_base_corpus_gives_what_both_together_give(texts: list[str], tmp_path: Path) -> None:
    """run(A), then run(B, base=A), keeps what run(A + B) keeps with A first; A is not touched."""
    draw = random.Random(5)
    mixed = draw.sample(texts, len(texts))
    write(tmp_path / "a.jsonl", mixed[::2])
    write(tmp_path / "b.jsonl", mixed[1::2] + mixed[:40])  # and what is in A already
    a, b = f"path: {tmp_path}/a.jsonl", f"path: {tmp_path}/b.jsonl"
    run(tmp_path / "old", {"a": a})
    before = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    new = run(tmp_path / "new", {"b": b}, f"base={tmp_path}/old", "validation.guard=false")
    run(tmp_path / "both", {"a": f"{a}, priority: 1", "b": b})
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == before
    old_rows, new_rows, both = (rows_of(tmp_path / name) for name in ("old", "new", "both"))
    assert {row["id"] for row in old_rows + new_rows} == {row["id"] for row in both}
    clusters = {row["id"]: row["cluster"] for row in old_rows}
    joined = [row for row in new_rows if row["cluster"] in clusters.values()]
    assert joined  # the cluster of a new document that belongs to an old one is the old one's
    assert new["duplicates"]["exact"] >= 20
    ids = clusters.keys() | {row["id"] for row in new_rows}
    decisions = rows_of(tmp_path / "new", "decisions")
    assert all(row["duplicate_of"] in ids for row in decisions if row["removed_by"] in ("exact", "near"))
    assert any(row["duplicate_of"] in clusters for row in decisions if row["removed_by"] == "near")
    with pytest.raises(ConfigError, match=r"base=.*both is not the corpus that .*new was curated against"):
        verify(tmp_path / "new", base=tmp_path / "both")
    assert verify(tmp_path / "new", base=tmp_path / "old").documents == len(new_rows)


@pytest.mark.slow
def test_the_guard_keeps_new_documents_from_standing_between_the_splits(assets: Path, tmp_path: Path) -> None:
    """A text between two old ones, like both of them but no duplicate, is left out if they are in different splits."""
    texts = chains(windows(reviews(assets), 150)[:40], 3, changes=5, seed=3)
    write(tmp_path / "a.jsonl", texts[::3] + texts[2::3])
    write(tmp_path / "b.jsonl", texts[1::3])
    run(tmp_path / "old", {"a": f"path: {tmp_path}/a.jsonl"})
    old, crossing = rows_of(tmp_path / "old"), {}
    for guard in ("true", "false"):
        output = tmp_path / f"guard-{guard}"
        words = (f"validation.guard={guard}", f"base={tmp_path}/old", "validation.fraction=0.5")
        manifest = run(output, {"b": f"path: {tmp_path}/b.jsonl"}, *words)
        left_out = [row for row in rows_of(output, "decisions") if row["removed_by"] == "guard"]
        assert manifest["duplicates"]["guard"] == manifest["sources"]["b"]["documents"]["guard"] == len(left_out)
        crossing[guard] = len(_bands(old, True) & _bands(rows_of(output), False)) + len(
            _bands(old, False) & _bands(rows_of(output), True)
        )
    assert crossing["true"] == 0 < crossing["false"]
    guarded = str(tmp_path / "guard-true")
    with pytest.raises(ConfigError, match=r"data\.validation_fraction=0\.05 is not the validation\.fraction=0\.5 "):
        CuratedConfig(path=guarded).open()
    for path, fraction in ((guarded, 0.5), (guarded, 0.0), (str(tmp_path / "guard-false"), 0.05)):
        CuratedConfig(path=path, validation_fraction=fraction).open()
    CuratedConfig(path=str(tmp_path / "old"), validation_fraction=0.2).open()  # it has no base: clusters are whole


def _bands(rows: list[dict[str, Any]], validation: bool) -> set[int]:
    """Return the band keys of the documents of one split of a half for validation."""
    texts = [row["text"] for row in rows if (row["split_key"] % 10_000 < 5_000) == validation]
    return set(MinHash(5, 20, 8).band_keys(texts).ravel().tolist())


@pytest.mark.slow
def test_bases_that_cannot_be_used(texts: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", texts[:20])
    source = {"a": f"path: {tmp_path}/a.jsonl"}
    run(tmp_path / "old", source)
    run(tmp_path / "exact", source, "duplicates.near=false")
    base = f"base={tmp_path}/old"
    for word, message in (
        ("duplicates.bands=10", r"duplicates\.bands=10 does not fit the band keys in .*manifest\.json, made with 20"),
        (f"base={tmp_path}/exact", r"duplicates\.near=true needs band keys, and base=.* Try duplicates\.near=false"),
        (f"output={tmp_path}/old", r"base=.* is the output too, and a base corpus is never written"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path / "new", source, base, word)
    with pytest.raises(DataError, match=r"is left of 20: exact removed most of them, 10\. They are in the base"):
        run(tmp_path / "new", source, base)
    kept = run(tmp_path / "new", source, base, "duplicates.near=false")["sources"]["a"]["documents"]["kept"]
    assert kept == 10, "those that were near-duplicates, as exact ones alone are looked up beside band keys"
    with pytest.raises(DataError, match="is no finished corpus"):
        run(tmp_path / "new", source, f"base={tmp_path}/nothing")
    index = next((tmp_path / "old" / "index").iterdir())
    whole = index.read_bytes()
    index.unlink()
    index.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(DataError, match=r"index/00000\.rows is not the file that the manifest lists"):
        run(tmp_path / "other", source, base)


@pytest.mark.parametrize("preset", ["default", "fineweb", "olmo3", "off"])
def test_presets_of_duplicates(preset: str) -> None:
    register_schemas("curate", CurateConfig)
    source = "sources.a={kind: jsonl, path: x, license: MIT}"
    found = compose("curate", [source, "output=x", f"duplicates={preset}"]).duplicates
    assert (found.exact, found.near) == ((False, False) if preset == "off" else (True, True))
    published = PRESETS.get(preset, PRESETS["default"])
    assert all(getattr(found, name) == value for name, value in vars(published).items())


@pytest.mark.slow
def test_paragraphs_are_cut_but_at_their_first_place(tmp_path: Path) -> None:
    draw = random.Random(1)
    long = [" ".join(f"w{draw.getrandbits(30)}" for _ in range(40)) for _ in range(12)]
    repeated = "This text stands below each page of this site, " * 6
    pages = [f"{words}\n\n{repeated.strip()}" for words in long[:8]]
    write(tmp_path / "a.jsonl", [*pages, *long[8:], repeated])
    source = {"a": f"path: {tmp_path}/a.jsonl"}
    manifest = run(tmp_path / "out", source, "duplicates.paragraphs=200", "unit_bytes=1000")
    assert manifest["duplicates"] | {"clusters": {}} == {
        "exact": 0, "near": 0, "guard": 0, "paragraphs": 1, "unverified_kept": 0, "documents_cut": 7,
        "paragraphs_cut": 8, "characters_cut": 7 * (len(repeated.strip()) + 2) + len(repeated), "clusters": {},
    }  # fmt: skip
    texts = [row["text"] for row in rows_of(tmp_path / "out")]
    assert sum(repeated.strip() in text for text in texts) == 1
    assert sorted(text.partition("\n")[0] for text in texts) == sorted(long)
    assert verify(tmp_path / "out").documents == 12
    # What a later corpus finds is what the corpus holds, not what stood there before the cut.
    write(tmp_path / "b.jsonl", [*long, repeated + "\n\nand this is new"])
    later = run(
        tmp_path / "new", {"b": f"path: {tmp_path}/b.jsonl"}, f"base={tmp_path}/out", "duplicates.paragraphs=200"
    )
    assert later["duplicates"]["exact"] >= 11
    assert [row["text"] for row in rows_of(tmp_path / "new")][-1] == "and this is new"


@pytest.mark.slow
def test_other_languages_and_sources_are_not_compared(texts: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", texts[:40])
    write(tmp_path / "b.jsonl", [text + " more words at the end" for text in texts[:40]])
    sources = {"a": f"path: {tmp_path}/a.jsonl", "b": f"path: {tmp_path}/b.jsonl, language: en"}
    kept = {}
    for within in ("all", "source", "language"):
        manifest = run(tmp_path / within, sources, f"duplicates.within={within}")
        kept[within] = manifest["documents"]
    assert kept["all"] < kept["source"] == kept["language"]
