"""The report of a corpus and `explain`: their numbers are those of the corpus, hostile texts stay texts."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pretrain.commands.tasks import explain
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig, ExplainConfig, preset_with
from pretrain.data.config import CuratedConfig, CuratedOnly
from pretrain.data.curation.config import RulesConfig
from pretrain.data.curation.corpus_statistics import clusters, thresholds
from pretrain.data.curation.curate import curate
from pretrain.data.curation.explain import explain_id, explain_rule, lines_of, rule_lines
from pretrain.data.curation.manifest import read_manifest
from pretrain.data.curation.passages import passages
from pretrain.data.curation.rule_values import RULE_VALUES
from pretrain.data.curation.rules import RULE_NAMES, rule_record, rule_settings, rules_of
from pretrain.data.sources.curated import Curated
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.planning.answer import answer
from pretrain.planning.config import PlanConfig
from pretrain.reports.curation import corpus_page, write_corpus_report
from pretrain.reports.write import write_report

HOSTILE = '<script>alert("a")</script>\x1b[31m\u202e&amp;'
SENTENCE = "The {} of number {} is one that we have with us today, and it ends here."


def text(word: str, number: int, sentences: int = 8) -> str:
    return "\n".join(SENTENCE.format(word, number + place) for place in range(sentences))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate good texts, three copies, short ones, and hostile ones of two sources with one license each."""
    folder = tmp_path_factory.mktemp("corpus")
    good = [{"text": text("web", n * 100), "url": f"https://{HOSTILE[:8]}.org/{n}"} for n in range(30)]
    copies = [{"text": text("twin", 0), "url": "https://a.org/1"}] * 3
    short = [{"text": f"{HOSTILE} the short text of number {n}", "url": "https://a.org/2"} for n in range(25)]
    hashes = [{"text": text("sign", n) + " #" * 60, "url": None} for n in range(4)]
    lines = "".join(json.dumps(each) + "\n" for each in [*good, *copies, *short, *hashes])
    (folder / f"{HOSTILE[:7]}.jsonl").write_text(lines + "no json\n")
    (folder / "book.txt").write_text(text("book", 5000, 40))
    output = folder / "corpus"
    register_schemas("curate", CurateConfig)
    config: CurateConfig = compose("curate", [
        f"sources.web={{kind: jsonl, path: '{folder}/*.jsonl', license: unknown, url_column: url}}",
        f"sources.book={{kind: text_files, path: {folder}/book.txt, license: CC0-1.0, rules: none}}",
        "rules=none", "rules.gopher.min_words=20", "rules.gopher.max_hashes=0.1", "rules.gopher.min_stop_words=2",
        "workers=1", "unit_bytes=4000", f"output={output}",
    ])  # fmt: skip
    curate(config, report=lambda line: None)
    return output


def decisions(corpus: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((corpus / "decisions").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.mark.slow
def test_the_report_says_what_the_manifest_says(corpus: Path) -> None:
    page = corpus_page(corpus)
    assert page == corpus_page(corpus)  # equal corpora have equal reports
    manifest = read_manifest(corpus)
    assert f"<b>{manifest['documents']}</b><span>documents kept of 64" in page
    waterfall = re.findall(r"<desc[^>]*>(read: .*?)</desc>", page)[0]
    assert waterfall == (
        "read: 64; unusable: not JSON: 1 (1.6%); gopher.words: 25 (39.1%); gopher.hash: 4 (6.2%); "
        "exact duplicates: 2 (3.1%); kept: 32 (50.0%)."
    )
    assert "25 · 25 · 25" in page
    sources = page.partition("<h2>Sources</h2>")[2].partition("</table>")[0]
    assert '<td class="number" data-head="share kept">100.0%</td>' in sources  # on a narrow screen each has its name
    assert '<td class="number" data-head="characters">' in sources
    assert "CC0-1.0" in page
    assert "gopher.words: 20</summary>" in page  # samples: at most 20
    assert "Words that are not punctuation alone. Allowed: at least 20." in page
    assert "Rules: none for book; thresholds of their own for web." in page


@pytest.mark.slow
def test_hostile_texts_stay_texts(corpus: Path) -> None:
    page = corpus_page(corpus)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(&quot;a&quot;)&lt;/script&gt;\\x1b[31m\\u202e&amp;amp;" in page
    assert not re.search(r"(src|href)=", page)


def test_other_thresholds_keep_what_they_would(corpus: Path) -> None:
    """The numbers beside the histograms are those of the decisions with that threshold in place of the chosen one."""
    found = {each.rule.name: each for each in thresholds(corpus, read_manifest(corpus)["settings"]["rules"])}
    assert found.keys() == {"gopher.words", "gopher.hash", "gopher.stop_words"}
    assert [each.sources for each in found.values()] == [["web"]] * 3  # the book has no rules
    rows = [row for row in decisions(corpus) if row["source"] == "web"]
    words = found["gopher.words"]
    bit = 1 << RULE_NAMES.index("gopher.words")
    assert words.low_kept == [
        (threshold, sum(row["words"] >= threshold and not row["rules"] & ~bit for row in rows))
        for threshold in (10.0, 15.0, 20.0, 30.0, 40.0)
    ]
    assert dict(words.low_kept)[10.0] > dict(words.low_kept)[20.0] == 33
    assert words.counts.sum() == len(rows) == 62
    assert found["gopher.hash"].high_kept[2] == (0.1, 33)


def test_clusters_are_counted(corpus: Path) -> None:
    sizes, largest = clusters(corpus)
    assert sizes == {1: 31, 3: 1}
    assert [(each.size, each.source) for each in largest] == [(3, "web")]
    assert largest[0].text == text("twin", 0)[:300]


def test_explain_says_why(corpus: Path) -> None:
    (twin, *more) = explain_rule(corpus, "exact")
    assert len(more) == 1
    assert (twin.removed_by, twin.text, twin.is_whole) == ("exact", text("twin", 0), True)
    assert twin.twin is not None
    assert twin.twin.removed_by is None
    assert len(explain_id(corpus, twin.id[:12].upper())) == 3  # equal texts have one id
    first, *others = explain_rule(corpus, "gopher.hash", 2)
    assert len(others) == 1
    lines = lines_of(first, 2000, all_rules=True)
    assert lines[1] == "removed by  gopher.hash"
    assert any(re.fullmatch(r"  removes +gopher.hash: hashes 0\.\d+, at most 0\.1", line) for line in lines)
    assert any(line.startswith("  passes    gopher.words: words 1") for line in lines)
    assert ">>#<< >>#<<" in lines[-1]
    assert lines_of(first, 2000, all_rules=False)[2:] == [line for line in lines[2:] if "passes" not in line]
    (kept, *_) = explain_id(corpus, next(row["id"] for row in decisions(corpus) if row["removed_by"] is None))
    assert lines_of(kept, 0, all_rules=False)[1:] == ["kept"]


def test_explain_lists_the_rules_that_removed_something(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config in (ExplainConfig(path=str(corpus)), ExplainConfig(path=str(corpus), rule="")):
        explain(config, [])
        assert capsys.readouterr().out.splitlines() == [
            "removed          25  gopher.words", "removed           4  gopher.hash", "removed           2  exact",
            "to see some: rule=gopher.words",
        ]  # fmt: skip


@pytest.mark.slow
def test_where_no_document_was_removed_no_rule_is_proposed(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("A text.")
    register_schemas("curate", CurateConfig)
    source = f"sources.mine={{kind: text_files, path: {tmp_path}/one.txt, license: unknown}}"
    config: CurateConfig = compose("curate", [source, "rules=none", "workers=1", f"output={tmp_path}/corpus"])
    curate(config, report=lambda line: None)
    assert rule_lines(tmp_path / "corpus") == ["no document was removed; id= shows why one is kept"]
    with pytest.raises(ConfigError, match=r"rule=near removed no document of .*\. None of its rules did\."):
        explain_rule(tmp_path / "corpus", "near")
    with pytest.raises(ConfigError, match=r"Ids are in the column id of decisions/ and data/\.$"):
        explain_id(tmp_path / "corpus", "zz")


@pytest.mark.slow
def test_the_preset_of_rules_is_found_by_its_thresholds() -> None:
    register_schemas("curate", CurateConfig)
    for preset in ("gopher", "prose", "web_english", "none"):
        sources = "sources.a={kind: text_files, path: x, license: unknown}"
        config: CurateConfig = compose("curate", [sources, f"rules={preset}", "rules.max_personal_data=3", "output=y"])
        assert preset_with(rule_record(rules_of(config.rules))) == preset  # rules on finds are in no preset
    assert preset_with(rule_record(rules_of(replace(config.rules, min_characters=7)))) is None


def test_explain_without_work_takes_what_is_there(corpus: Path) -> None:
    """Texts are in work/ until it is deleted; then samples and the corpus have some."""
    work, away = corpus / "work", corpus.with_name("work")
    work.rename(away)
    try:
        found = explain_rule(corpus, "gopher.words", 25)
        assert [each.text is not None for each in found].count(True) == 20
        assert found[0].text is not None
        assert found[0].is_whole
        gone = next(each for each in found if each.text is None)
        assert "work/ of the corpus was deleted" in lines_of(gone, 100, all_rules=False)[-1]
        (twin, _) = explain_rule(corpus, "exact")
        assert twin.twin is not None
        assert twin.twin.text == text("twin", 0)
    finally:
        away.rename(work)


def test_mistakes_are_explained(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rule=gopher.word removed no document .* Did you mean gopher.words\?"):
        explain_rule(corpus, "gopher.word")
    did = r"gopher.words \(25\), gopher.hash \(4\), exact \(2\)\."
    with pytest.raises(ConfigError, match=rf"rule=gopher.alpha removed no document .* These rules did: {did}"):
        explain_rule(corpus, "gopher.alpha")
    with pytest.raises(ConfigError, match=r"id=zz is no document of .* try rule=gopher.words"):
        explain_id(corpus, "zz")
    with pytest.raises(ConfigError, match=r"id=0 and rule=exact both say which documents .* Leave one of them out"):
        ExplainConfig(path="x", id="0", rule="exact")
    with pytest.raises(DataError, match=r"is no finished corpus"):
        explain_id(tmp_path, "0")
    with pytest.raises(CheckpointError, match=r"cannot be written: .* Try another output=report.html"):
        write_corpus_report(corpus, tmp_path / "missing" / "report.html")


@pytest.mark.slow
def test_report_writes_that_of_a_corpus(corpus: Path, tmp_path: Path) -> None:
    path = write_report(corpus, tmp_path / "report.html")
    assert path.read_text() == corpus_page(corpus)
    damaged = tmp_path / "damaged"
    (damaged / "decisions").mkdir(parents=True)
    (damaged / "manifest.json").write_bytes((corpus / "manifest.json").read_bytes())
    (damaged / "decisions" / "00000.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DataError, match=r"00000.parquet cannot be read: .* Give the command that made the corpus"):
        write_report(damaged)


@pytest.mark.parametrize(
    ("rule", "marked"),
    [
        ("gopher.dup_lines", "A line.\nAnother one.\n[A line.]\nThe end...\n- a point #1 {"),
        ("gopher.line_ellipsis", "A line.\nAnother one.\nA line.\n[The end...]\n- a point #1 {"),
        ("gopher.bullets", "A line.\nAnother one.\nA line.\nThe end...\n[- a point #1 {]"),
        ("gopher.hash", "A line.\nAnother one.\nA line.\nThe end...\n- a point [#]1 {"),
        ("gopher.ellipsis", "A line.\nAnother one.\nA line.\nThe end[...]\n- a point #1 {"),
        ("c4.curly", "A line.\nAnother one.\nA line.\nThe end...\n- a point #1 [{]"),
        ("gopher.alpha", "A line[.]\nAnother one[.]\nA line[.]\nThe end[...]\n[-] a point [#1] [{]"),
        ("gopher.top_2", "[A line].\nAnother one.\n[A line].\nThe end...\n- a point #1 {"),
        ("gopher.dup_3", "A line.\nAnother one.\n[A line.]\nThe end...\n- a point #1 {"),
        ("fineweb.short_lines", "[A line.]\n[Another one.]\n[A line.]\n[The end...]\n[- a point #1 {]"),
        ("fineweb.line_end", "A line.\nAnother one.\nA line.\nThe end...\n[- a point #1 {]"),
        ("gopher.words", "A line.\nAnother one.\nA line.\nThe end...\n- a point #1 {"),
    ],
)
def test_passages_are_what_a_rule_counts(rule: str, marked: str) -> None:
    plain = re.sub(r"[\[\]]", "", marked)
    shown, at = "", 0
    for start, end in passages(plain, rule):
        shown += f"{plain[at:start]}[{plain[start:end]}]"
        at = end
    assert shown + plain[at:] == marked


def test_every_rule_has_a_setting_that_says_what_it_counts() -> None:
    found = rule_settings()
    assert list(found) == list(RULE_NAMES[1:])
    assert all(found.values())


@pytest.mark.slow
def test_a_plan_knows_how_large_the_corpus_is(corpus: Path) -> None:
    register_schemas("plan", PlanConfig)
    words = ["data=curated", f"data.path={corpus}", "device=h100", "dry_run=false", "data.validation_fraction=0.5"]
    total = read_manifest(corpus)["characters"]
    assert f"{total:,} characters, not prepared: about {int(total / 8):,} tokens" in answer(compose("plan", words))
    book = Curated(CuratedConfig(path=str(corpus), only=CuratedOnly(source=["book"]))).characters()
    assert book == len(text("book", 5000, 40))
    missing = compose("plan", [*words[:1], "data.path=missing", *words[2:]])
    assert "not prepared here" in answer(missing)
    text_files = compose("plan", ["data=text_files", "data.path=nowhere/", *words[2:4], "trainer.max_steps=10"])
    assert "not prepared here: data.path=nowhere/ does not exist. Name a file, a folder or a " in answer(text_files)


def test_the_documented_table_has_every_rule_with_its_value_and_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "curation.md").read_text(encoding="utf8")
    table = page.partition("<!-- rules -->\n")[2].partition("<!-- /rules -->")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    plain = [(name, value, re.sub(r" \[\d\]$", "", how), settings) for name, value, how, settings in found]
    assert plain == [
        (
            f"`{rule.name}`", f"`{rule.value}`", RULE_VALUES[rule.name],
            ", ".join(f"`{key}`" for key in rule_settings()[rule.name]),
        )
        for rule in rules_of(RulesConfig())
    ]  # fmt: skip
