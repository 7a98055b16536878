"""Runs of words that a corpus shares with evaluation items: each definition as published, and what becomes of it."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.contamination.eval_sets import Item, item_key, read_items, set_name
from pretrain.data.curation.contamination.overlap import HIT, Finder, Overlaps, Verdicts, grams_of_items
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import manifest_bytes, overview
from pretrain.data.curation.verify import verify
from pretrain.errors import ConfigError, DataError
from pretrain.reports.curation import corpus_page


def words(seed: int, count: int) -> list[str]:
    chosen = random.Random(seed)
    return ["".join(chosen.choices("abcdefghij", k=6)) for _ in range(count)]


def judged(items: list[list[str]], texts: list[str], ignore_above: int = 10) -> tuple[Verdicts, Overlaps, Any]:
    """Return the verdicts on items, each a list of parts, against texts."""
    grams, postings, totals = grams_of_items([Item("set", str(n), "", tuple(i)) for n, i in enumerate(items)], 13)
    documents, found = Finder(grams).find(texts)
    hits = np.zeros(len(documents), HIT)
    hits["document"], hits["gram"] = documents, found
    ignored = np.bincount(found, minlength=len(grams)) > ignore_above
    hits = hits[~ignored[hits["gram"]]]
    overlaps = Overlaps(grams, postings, totals, ignored)
    return overlaps.verdicts(hits), overlaps, hits


def brute_force(item: list[str], documents: list[list[str]]) -> dict[str, Any]:
    """Return the verdicts on an item of one part by plain comparison of tuples."""

    def runs(of: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(of[at : at + n]) for at in range(len(of) - n + 1)]

    corpus = {n: set().union(*(runs(document, n) for document in documents)) for n in (8, 11, 13)}

    def covered(n: int) -> float:
        marked = {at + k for at, run in enumerate(runs(item, n)) if run in corpus[n] for k in range(n)}
        return len(marked) / len(item)

    share, longest = 0.0, 0
    for document in documents:
        own = set(runs(document, 13))
        share = max(share, sum(run in own for run in runs(item, 13)) / len(runs(item, 13)))
        at = 0
        eight = set(runs(document, 8))
        for run in runs(item, 8):
            at = at + 1 if run in eight else 0
            longest = max(longest, at + 7 if at else 0)
    return {
        "any_run": any(run in corpus[13] for run in runs(item, 13)), "share": share,
        "palm": sum(run in corpus[8] for run in runs(item, 8)) / len(runs(item, 8)), "llama_2": covered(11),
        "llama_3": covered(8), "longest": longest,
    }  # fmt: skip


@pytest.mark.slow
def test_verdicts_equal_brute_force_at_planted_overlaps() -> None:
    """Items of 40 words of which 100, 80, 50, 20 and 0 % stand in a document, whole or in pieces."""
    items = [words(seed, 40) for seed in range(60)]
    documents = [words(1000 + n, 30) for n in range(20)]
    for number, item in enumerate(items):
        kept = (40, 32, 20, 8, 0)[number % 5]
        for piece in ([item[:kept]], [item[: kept // 2], item[40 - kept // 2 :]])[number % 2]:
            documents += [[*words(2000 + number, 20), *piece, *words(3000 + number, 20)]]
    verdicts, _, _ = judged([[" ".join(item)] for item in items], [" ".join(each) for each in documents])
    for number, item in enumerate(items):
        expected = brute_force(item, documents)
        actual = {name: getattr(verdicts, name)[number] for name in expected}
        assert actual == pytest.approx(expected), number
    assert verdicts.checkable.all()
    assert {bool(verdicts.any_run[n]) for n in range(0, 60, 5)} == {True}
    assert not verdicts.any_run[4::5].any()
    assert not verdicts.longest[4::5].any()


def test_short_parts_are_one_run_and_shorter_ones_are_not_checkable() -> None:
    ten, seven = words(1, 10), words(2, 7)
    items = [[" ".join(ten)], [" ".join(seven)], [" ".join(seven), " ".join(ten)], ["42"]]
    texts = [" ".join(["before", *ten, "behind"]), " ".join(seven)]
    verdicts, _, _ = judged(items, texts)
    assert verdicts.checkable.tolist() == [True, False, True, False]
    assert verdicts.any_run.tolist() == [True, False, True, False]
    assert (verdicts.share[0], verdicts.palm[0], verdicts.llama_2[0], verdicts.longest[0]) == (1, 1, 1, 10)
    nine, _, _ = judged(items[:1], [" ".join(ten[:9])])  # two of its three runs of 8, not the whole part
    assert (nine.any_run[0], nine.palm[0], nine.longest[0]) == (False, pytest.approx(2 / 3), 9)


def test_boilerplate_counts_nowhere() -> None:
    """A license text in 1,000 documents makes no item contaminated, one in ten does."""
    text = words(5, 60)
    item = [" ".join(text[:30])]
    often, _, _ = judged([item], [" ".join([*text, *words(n, 5)]) for n in range(1000)])
    assert (often.any_run[0], often.checkable[0], often.ignored[0], often.longest[0]) == (False, False, 18, 0)
    seldom, _, _ = judged([item], [" ".join([*text, *words(n, 5)]) for n in range(10)])
    assert (seldom.any_run[0], seldom.share[0]) == (True, 1.0)


def config_of(raw: Path, output: Path, *more: str) -> CurateConfig:
    register_schemas("curate", CurateConfig)
    found: CurateConfig = compose(
        "curate",
        [f"sources.web={{kind: jsonl, path: {raw}/web.jsonl, license: MIT}}", "rules=none", "unit_bytes=4000",
         "workers=1", f"output={output}", f"decontaminate.sets=[{raw}/quiz.jsonl,{raw}/pairs.csv]", *more],
    )  # fmt: skip
    return found


def run(raw: Path, output: Path, *more: str) -> dict[str, Any]:
    return curate(config_of(raw, output, *more), report=lambda line: None)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Write documents that hold items whole, twice over, or half, and two sets."""
    folder = tmp_path / "raw"
    folder.mkdir()
    items = [words(seed, 30) for seed in range(6)]
    texts = [" ".join(words(100 + n, 60)) for n in range(40)]
    texts[3] = " ".join([*words(200, 20), *items[0], *words(201, 20)])
    texts[7] = " ".join([*words(202, 20), *items[0], *words(203, 30)])
    texts[20] = " ".join([*words(204, 40), *items[1][:16], *words(205, 40)])
    texts[21] = texts[20] + " "  # an exact duplicate of nothing, a near one of the one before
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quiz = [{"query": " ".join(item), "choices": ["yes", "no"], "gold": n % 2} for n, item in enumerate(items)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [*quiz, {"question": "Why?"}]))
    (folder / "pairs.csv").write_text(f"sent_more,sent_less\n{' '.join(items[5])},short\n")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.slow
def test_documents_are_marked_or_dropped_and_each_item_has_a_verdict(raw: Path, tmp_path: Path) -> None:
    manifest = run(raw, tmp_path / "marked")
    quiz = manifest["decontamination"]["sets"]["quiz"]
    assert (quiz["items"], quiz["not_checkable"], quiz["longest_words"]) == (7, 1, 30)
    assert quiz["contaminated"] == {
        "gpt_3": 2, "one_document": 1, "palm": 1, "llama_2_dirty": 1, "llama_2_not_clean": 2,
    }  # fmt: skip
    assert (quiz["llama_3"]["0.5"], quiz["llama_3"]["0.6"]) == (2, 1)
    assert manifest["decontamination"]["sets"]["pairs"]["contaminated"]["gpt_3"] == 0
    assert overview(manifest)[-3:] == [
        "evaluation  pairs: 0 of 1 items share a run of 13 words with the corpus",
        "evaluation  quiz: 2 of 7 items share a run of 13 words with the corpus, 1 cannot be checked",
        "evaluation  documents that hold more than 50% of an item's runs, marked in the column contaminates: 2",
    ]
    kept = rows(tmp_path / "marked" / "data")
    assert [row["contaminates"] for row in kept if row["contaminates"]] == ["quiz", "quiz"]
    items = pq.read_table(tmp_path / "marked" / "contaminated_items.parquet").to_pylist()
    assert [(row["set"], row["any_run"]) for row in items[:4]] == [
        ("pairs", False), ("quiz", True), ("quiz", True), ("quiz", False),
    ]  # fmt: skip
    first = json.loads((raw / "quiz.jsonl").read_text().splitlines()[0])
    assert (items[1]["key"], items[1]["location"]) == (item_key(first), "quiz.jsonl:1")
    assert "text" not in items[0]

    dropped = run(raw, tmp_path / "dropped", "decontaminate.action=drop", "workers=2")
    counts = dropped["sources"]["web"]["documents"]
    assert (counts["contamination"], counts["kept"]) == (2, manifest["documents"] - 2)
    assert dropped["decontamination"]["sets"]["quiz"]["contaminated"]["gpt_3"] == 1  # half of an item stays
    assert dropped["decontamination"]["documents"] == 2
    assert overview(dropped)[-1] == (
        "evaluation  documents that held more than 50% of an item's runs, dropped; the items are counted in what is "
        "left: 2"
    )
    columns = table_of(corpus_page(tmp_path / "dropped"), "Sources")[0]
    assert (columns["duplicates"], columns["holding evaluation items"], columns["kept"]) == (
        "1", "2", f"{counts['kept']}",
    )  # fmt: skip
    reasons = [row for row in rows(tmp_path / "dropped" / "decisions") if row["removed_by"] == "contamination"]
    assert [row["similarity"] for row in reasons] == [1.0, 1.0]
    assert not [row for row in rows(tmp_path / "dropped" / "data") if row["contaminates"]]
    verify(tmp_path / "dropped")


@pytest.mark.parametrize("action", ["drop", "mark"])
def test_a_paragraph_stays_where_it_stands_first_in_what_is_kept(raw: Path, tmp_path: Path, action: str) -> None:
    repeated = "This paragraph stands in two texts, and is no item. " * 6
    texts = ["\n\n".join([" ".join(words(0, 30)), " ".join(words(300, 60)), repeated]), f"Words.\n\n{repeated}"]
    (raw / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(raw, tmp_path / "out", "duplicates.paragraphs=200", f"decontaminate.action={action}")
    holding = [row["origin"] for row in rows(tmp_path / "out" / "data") if repeated[:-1] in row["text"]]
    assert holding == [f"web/web.jsonl:{2 if action == 'drop' else 1}"]


def table_of(page: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table of a section of a report, by its heads."""
    text = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", text)
    rows = [re.findall(r"<td(?: [^>]*)?>(.*?)</td>", row) for row in re.findall(r"<tr>(<td.*?)</tr>", text)]
    return [dict(zip(heads, row, strict=True)) for row in rows]


@pytest.mark.slow
def test_the_report_has_the_counts_of_each_definition_under_its_name(raw: Path, tmp_path: Path) -> None:
    """With distinct counts, and in the order in which a manifest sorts them, which is not that of the heads."""
    manifest = run(raw, tmp_path / "corpus")
    counts = {"gpt_3": 45, "llama_2_dirty": 51, "llama_2_not_clean": 53, "one_document": 43, "palm": 54}
    manifest["decontamination"]["sets"]["quiz"]["contaminated"] = counts
    (tmp_path / "corpus" / "manifest.json").write_bytes(manifest_bytes(manifest))
    page = corpus_page(tmp_path / "corpus")
    _, row = table_of(page, "Evaluation sets")
    assert row == {
        "set": "quiz", "items": "7", "not checkable": "1", "GPT-3": "45", "one document": "43", "PaLM": "54",
        "Llama 2 dirty": "51", "Llama 2 not clean": "53", "longest": "30",
    }  # fmt: skip
    assert "more than 50% of an item&#x27;s runs and are marked in the column contaminates: 2." in page


@pytest.mark.slow
def test_another_set_reads_no_input_again(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "corpus", "decontaminate.sets=[]")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "work").rglob("*.done")}
    run(raw, tmp_path / "corpus")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus" / "work").rglob("*.done")}
    assert before.items() <= after.items()
    assert {path.parent.name.partition("-")[0] for path in after.keys() - before.keys()} == {
        "runs", "hits", "held", "verdicts", "write",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "more", "error", "match"),
    [
        ('{"prompt": "x"}\n', "", DataError, r"bad.jsonl:1 has no known layout. Its fields: prompt"),
        ('{"question": "x"}\n', "decontaminate.fields=[query]", DataError, "bad.jsonl:1 has no field query"),
        ('{"query": "x", "choices": ["y"], "gold": 1}\n', "", DataError, "gold must be the index or label of one of"),
        ("[1]\n", "", DataError, "bad.jsonl:1 is not a JSON object, and an item is"),
        ("", "", DataError, "holds no item"),
        (None, "", DataError, "decontaminate.sets=.*missing"),
        ("{}\n", "decontaminate.fields=[]", ConfigError, r"decontaminate.fields=\[\] names no field"),
        ("{}\n", "decontaminate.words=7", ConfigError, r"decontaminate.words=7 .*8"),
        ("{}\n", "decontaminate.share=1.0", ConfigError, r"decontaminate.share=1"),
    ],
)
def test_sets_that_cannot_be_read_are_refused(
    raw: Path, tmp_path: Path, content: str | None, more: str, error: type[Exception], match: str
) -> None:
    path = raw / ("missing.jsonl" if content is None else "bad.jsonl")
    if content is not None:
        path.write_text(content)
    settings = [f"decontaminate.sets=[{path}]", *([more] if more else [])]
    with pytest.raises(error, match=match):
        run(raw, tmp_path / "corpus", *settings)


def test_a_table_with_rows_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    published = [
        {"question": {"stem": "Who?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]},
         "answerKey": "2"},
        {"question": "Why?", "choices": ["x", "y"], "answer": "x"},
        {"ctx": "a", "endings": ["b", "c"], "label": ""},
    ]  # fmt: skip
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(each) + "\n" for each in published))
    found = [item.parts for item in read_items("set", str(tmp_path / "set.jsonl"), None)]
    assert found == [("Who?", "y"), ("Why?", "x"), ("a",)]
    (tmp_path / "quiz.csv").write_text("question,answer\nwhy,because\nwho\n")
    with pytest.raises(DataError, match=r"quiz\.csv has rows that cannot be read: 1 wrong number of fields\. Repair"):
        list(read_items("quiz", str(tmp_path / "quiz.csv"), ["question"]))
    (tmp_path / "quiz.csv").write_text("question,answer\nwhy,because\n")
    assert [item.parts for item in read_items("quiz", str(tmp_path / "quiz.csv"), ["question"])] == [("why",)]


@pytest.mark.slow
def test_sets_of_one_name_and_too_many_are_refused(raw: Path, tmp_path: Path) -> None:
    (raw / "more").mkdir()
    (raw / "more" / "quiz.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match="two files called quiz"):
        run(raw, tmp_path / "corpus", f"decontaminate.sets=[{raw}/quiz.jsonl,{raw}/more/quiz.jsonl.gz]")
    with pytest.raises(ConfigError, match="names 65 files, and at most 64"):
        config_of(raw, tmp_path / "corpus", f"decontaminate.sets=[{','.join(['a'] * 65)}]")


def test_planted_contamination_of_published_fixtures_is_found() -> None:
    """Items in the middle, at the ends, several at once and edited by a word; clean documents hold none."""
    import os

    assets = Path(os.environ.get("PRETRAIN_ASSETS", "missing")) / "curation" / "contamination" / "fixtures"
    if not assets.is_dir():
        pytest.skip("needs PRETRAIN_ASSETS with curation/contamination")
    path = assets / "reference" / "question_reference.jsonl"
    items = [item.parts for item in read_items(set_name(path), str(path), None)]
    found = {}
    for file in sorted((assets / "training").glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        verdicts, _, _ = judged([list(parts) for parts in items], texts)
        found[file.stem] = verdicts.llama_3.round(2).tolist()
    assert not any(found["clean"])
    for name in ("contaminated_at_beginning", "contaminated_at_end", "contaminated_middle_position"):
        assert max(found[name]) == 1.0, name
    assert 0 < max(found["contaminated_single_edit"]) < 1  # a word was changed: only runs without it are found
