"""Crawls and pages to a corpus with the libraries that read them, and languages. Skipped where they are missing."""

import gzip
import hashlib
import importlib.util
import json
import lzma
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.explain import explain_rule
from pretrain.data.curation.language_model import language_of_label, languages_of, model_file, model_record, one_line
from pretrain.data.curation.manifest import read_manifest
from pretrain.data.curation.verify import verify
from pretrain.data.curation.web.extraction import MEMORY
from pretrain.data.curation.web.page_process import DIED, TOO_LONG, PageProcess
from pretrain.data.curation.web.reading import not_reproducible
from pretrain.data.curation.web.responses import UnusableError
from pretrain.errors import ConfigError, DataError
from pretrain.reports.curation import corpus_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("trafilatura") is None or importlib.util.find_spec("fasttext") is None,
        reason="pip install -e '.[curate]'",
    ),
]
SCRIPT = Path(__file__).parents[2] / "src" / "curate.py"
HTML = {
    "extractor": "resiliparse", "precision": "balanced", "max_depth": 512, "max_elements": 200_000, "limit_s": 20.0,
    "max_memory": 2_000_000_000,
}  # fmt: skip
PAGE = "<html><head>{head}</head><body><article><p>{text}</p></article></body></html>"
ITEM = "A question of an evaluation set, with words enough for a run of thirteen and for some more of them behind."
BY, NC, BY_SA = (f"https://creativecommons.org/licenses/{kind}/4.0/" for kind in ("by", "by-nc", "by-sa"))


@pytest.fixture(scope="module")
def pages():
    process = PageProcess(HTML)
    yield process
    process.close()


def page(text: str = "The text of the page.", head: str = "") -> bytes:
    return PAGE.format(text=text, head=head).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<div>" * 100_000 + b"x", "page is nested deeper than html.max_depth"),
        (b"<div></x>" * 50_000, "page is nested deeper than html.max_depth"),
        (b"<br>" * 250_000, "page has more than html.max_elements"),
        (b"<p " + b" ".join(b"a%d=1" % n for n in range(400_000)) + b">x</p>", "page has a tag of more than 2,000"),
        (b"<script " * 100_000, "no text in the page"),
        (b"<!--" * 900_000, "no text in the page"),
        (b"", "no text in the page"),
        (bytes(range(256)) * 100, "page is not in its encoding"),
    ],
    ids=["nested", "wrong ends", "elements", "attributes", "script", "comment", "empty", "bytes"],
)
def test_pages_that_cannot_be_read(pages: PageProcess, content: bytes, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(UnusableError, match=reason):
        pages.read(content, None)
    assert time.monotonic() - started < 15


def test_heavy_pages_are_read(pages: PageProcess) -> None:
    assert pages.read(b"<" * 3_900_000, None)["text"].startswith("<<<")
    table = b"<table>" + b"<tr><td>a cell</td></tr>" * 50_000 + b"</table>"
    assert pages.read(page() + table, None)["text"]


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("<p>Café, 価格</p>".encode(), None), ("<p>Café, 価格</p>".encode("utf-16"), "latin-1"),
        ("<meta charset=shift_jis><p>Caf, 価格</p>".encode("shift_jis"), None),
        ("<p>Caf, 価格</p>".encode("euc-jp"), "EUC-JP"),
        ("<meta charset=utf-8><p>Caf\xe9</p>".encode("latin-1"), "latin1"),
        ("<p>Café, 価格</p>".encode(), "no such name"),
    ],
)  # fmt: skip
def test_encodings_by_mark_header_meta_and_guess(pages: PageProcess, content: bytes, charset: str | None) -> None:
    text = pages.read(b"<html>" + content if content[:1] == b"<" else content, charset)["text"]
    assert text.startswith("Caf")
    assert "価格" in text or text == "Café"


def test_a_page_that_hangs_or_kills_costs_itself_alone() -> None:
    slow = page() + b"<a href=x>y</a>" * 190_000
    process = PageProcess(HTML | {"limit_s": 0.3})
    assert process.read(page(), None)["text"] == "The text of the page."
    with pytest.raises(UnusableError, match=TOO_LONG):
        process.read(slow, None)
    assert process.read(page(), None)["text"] == "The text of the page."
    process.close()
    process = PageProcess(HTML)
    killed: list[int] = []
    process.read(page(), None)

    def kill() -> None:
        while len(killed) < 2:
            own = process._process
            if own is not None and own.pid is not None and own.pid not in killed and process._pipe is not None:
                time.sleep(0.4)
                os.kill(own.pid, signal.SIGKILL)
                killed.append(own.pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(UnusableError, match=DIED):
        process.read(slow, None)
    thread.join()
    assert process.read(page(), None)["text"] == "The text of the page."
    own = process._process
    assert own is not None
    os.kill(own.pid or 0, signal.SIGKILL)  # while it was idle: the page is read by the next process
    assert process.read(page(), None)["text"] == "The text of the page."
    process.close()
    assert not_reproducible({TOO_LONG: 2, "empty": 1, DIED: 1}) == {TOO_LONG: 2, DIED: 1}
    with pytest.raises(DataError, match="the process that reads pages does not start"):
        PageProcess(HTML | {"extractor": "none"}).read(page(), None)


def test_a_page_that_fills_the_memory_costs_itself_alone() -> None:
    process = PageProcess(HTML | {"max_memory": 500_000_000, "max_elements": 2_000_000, "limit_s": 60.0})
    with pytest.raises(UnusableError, match=MEMORY):
        process.read(page() + b"<a href=x>y</a>" * 1_500_000, None)
    assert process.read(page(), None)["text"] == "The text of the page."
    process.close()


def ld(**fields: object) -> str:
    return f'<script type="application/ld+json">{json.dumps(fields)}</script>'


@pytest.mark.parametrize(
    ("head", "text", "license_name", "evidence"),
    [
        ("", "x", "unknown", "none"),
        ("", f"<a href='{BY}'>x</a>", "CC-BY-4.0", "a"),
        ("", f"<a rel='nofollow LICENSE' href='{BY_SA}'>x</a> <a href='{NC}'>y</a>", "CC-BY-SA-4.0", "a-rel"),
        (f"<link rel=license href='{NC}'>", f"<a rel=license href='{BY}'>x</a>", "CC-BY-NC-4.0", "link"),
        (f"<meta name='DC.rights' content='{BY}'>", f"<a rel=license href='{NC}'>x</a>", "CC-BY-4.0", "meta"),
        ("<meta property='og:license' content='all rights reserved'>", "x", "unknown", "none"),
        (ld(license=BY), "x", "CC-BY-4.0", "json-ld"),
        (ld(**{"@graph": [{"@type": "Article", "license": {"@id": BY_SA}}]}), "x", "CC-BY-SA-4.0", "json-ld"),
        (ld(**{"@type": "ImageObject", "license": BY}), "x", "unknown", "none"),  # that of a picture
        (ld(image={"@type": ["ImageObject"], "license": BY}), "x", "unknown", "none"),
        ("<script type='application/ld+json'>" + "[" * 50_000 + "</script>", "x", "unknown", "none"),
        ("", f"<a href='{BY}'>x</a> <a href='{NC}'>x</a>", "unknown", "conflict"),
        (f"<link rel=license href='{BY}'>", f"<a href='{NC}'>x</a> <a href='{BY_SA}'>x</a>", "CC-BY-4.0", "link"),
    ],
)
def test_licenses_by_evidence(pages: PageProcess, head: str, text: str, license_name: str, evidence: str) -> None:
    found = pages.read(page(text, head), None)
    assert (found["license"], found["evidence"]) == (license_name, evidence)


def test_what_a_page_says_about_itself(pages: PageProcess) -> None:
    head = (
        "<title> A\n title </title><meta name=author content='B. C.'><meta property='article:published_time' "
        "content='2020-01-02'><link rel=canonical href='https://a.org/b'><meta name=robots content='index, NOAI'>"
        "<meta name='tdm-reservation' content='1'>"
    )
    found = pages.read(page("x", head), None)
    assert (found["title"], found["author"], found["date"], found["address"]) == (
        "A title", "B. C.", "2020-01-02", "https://a.org/b",
    )  # fmt: skip
    assert found["reservations"] == ["robots: noai", "tdm-reservation"]


def settings(*words: str) -> CurateConfig:
    register_schemas("curate", CurateConfig)
    found: CurateConfig = compose("curate", list(words))
    return found


def tree(output: Path) -> dict[str, str]:
    paths = [path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] != "work"]
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name not in ("timings.json", "report.html")
    }


def words_of(assets: Path, raw: Path, output: Path) -> list[str]:
    return [
        f"sources.crawl={{kind: warc, path: {assets}/web_samples/dolma, license: page}}",
        f"sources.texts={{kind: wet, path: {assets}/web_samples/commoncrawl, license: unknown}}",
        f"sources.broken={{kind: warc, path: {raw}/broken.warc, license: unknown, damaged: skip}}",
        f"sources.pages={{kind: html, path: {raw}/pages, license: page}}",
        f"sources.web={{kind: jsonl, path: {assets}/curation/web_jsonl, license: unknown, language: en}}",
        "rules=none", "language=any", "unit_bytes=60000", f"output={output}", "personal_data.kinds=[email,phone]",
        f"decontaminate.sets=[{raw}/items.jsonl]", "decontaminate.fields=[question]",
    ]  # fmt: skip


@pytest.fixture
def raw(assets: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    (folder / "pages").mkdir(parents=True)
    for path in sorted((assets / "curation/html_articles/html").iterdir())[:6]:
        (folder / "pages" / path.name).write_bytes(path.read_bytes())
    (folder / "pages" / "deep.html").write_bytes(b"<div>" * 10_000)
    hostile = "<b>&lt;script&gt;alert(1)&lt;/script&gt; is what this page says to a report.</b>"
    head = f"<title>\x1b[31m&lt;i&gt;</title><meta name=author content='<i>Eve'><link rel=license href='{BY}'>"
    (folder / "pages" / "hostile.htm").write_bytes(page(hostile, head))
    (folder / "pages" / "bomb.html.gz").write_bytes(gzip.compress(b"<" * 50_000_000))
    (folder / "pages" / "note.txt").write_text("no page")
    (folder / "broken.warc").write_bytes((assets / "curation/warc/example-trunc.warc").read_bytes())
    (folder / "items.jsonl").write_text(json.dumps({"question": ITEM}) + "\n")
    item = page(f"{ITEM} Write to someone@example.org or call +1 415 555 2671. {ITEM}")
    (folder / "pages" / "item.html").write_bytes(item)
    return folder


def test_a_crawl_becomes_a_corpus_with_equal_bytes(assets: Path, raw: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    words = words_of(assets, raw, output)
    manifest = curate(settings(*words, "workers=1"), report=lambda line: None)
    counts = {name: source["documents"] for name, source in manifest["sources"].items()}
    assert (counts["crawl"]["read"], counts["crawl"]["kept"] + counts["crawl"]["exact"] + counts["crawl"]["near"]) == (
        37,
        37,
    )
    assert counts["broken"]["unusable"] == {"damaged record": 1}
    assert counts["pages"]["unusable"] == {
        "larger than html.max_bytes": 1, "page is nested deeper than html.max_depth": 1,
    }  # fmt: skip
    assert (counts["pages"]["read"], counts["texts"]["read"], counts["web"]["read"]) == (10, 1, 20)
    assert len(manifest["shards"]) > 5
    assert manifest["not_reproducible"] == {}
    assert manifest["settings"]["language"]["model"]["license"] == "CC-BY-SA-3.0"
    assert {"trafilatura", "lxml", "resiliparse"} <= manifest["made"].keys()
    assert manifest["licenses"]["CC-BY-4.0"]["documents"] == 3
    assert manifest["languages"]["en"]["documents"] > 40
    assert manifest["domains_top"]["soldaini.net"] >= 1
    assert verify(output).documents == manifest["documents"]
    _check_rows(output)
    _check_report(output)
    assert manifest["personal_data"]["replaced"].keys() == {"email", "phone"}
    assert manifest["decontamination"]["documents"] == 1
    for workers in (2, 4):
        again = tmp_path / f"workers-{workers}"
        curate(settings(*words_of(assets, raw, again), f"workers={workers}"), report=lambda line: None)
        assert tree(again) == tree(output)
    _killed_and_resumed(words_of(assets, raw, tmp_path / "other"), tmp_path / "other")
    assert tree(tmp_path / "other") == tree(output)


def _check_rows(output: Path) -> None:
    import zstandard

    rows = [row for path in sorted((output / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    (own,) = [row for row in rows if row["url"] == "https://soldaini.net/"]
    assert (own["license"], own["license_evidence"], own["language"]) == ("CC-BY-4.0", "a-rel", "en")
    assert own["language_score"] > 0.8
    assert own["date"] == "2024-04-25"
    assert {row["license_evidence"] for row in rows if row["source"] == "crawl"} == {"none", "a", "a-rel", "conflict"}
    assert {(row["language"], row["language_score"]) for row in rows if row["source"] == "web"} == {("en", None)}
    with (output / "ATTRIBUTION.jsonl.zst").open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read().decode()
    named = {row["url"]: row for row in map(json.loads, text.splitlines())}
    assert named["https://soldaini.net/"]["author"] == "Luca Soldaini"
    assert named["https://soldaini.net/"]["license_evidence"] == "a-rel"


def _check_report(output: Path) -> None:
    shown = corpus_page(output)
    assert "CC-BY-4.0" in shown
    assert "soldaini.net" in shown
    assert "<script>alert" not in shown
    assert "\x1b" not in shown


def _killed_and_resumed(words: list[str], output: Path) -> None:
    for attempt in range(3):
        command = [sys.executable, str(SCRIPT), *words, f"workers={(2, 4, 2)[attempt]}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if attempt < 2:
            before = len(list(output.glob("work/*/*.done")))
            while len(list(output.glob("work/*/*.done"))) <= before and process.poll() is None:
                time.sleep(0.05)
            time.sleep(0.5 * attempt)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
        assert process.returncode in ((-signal.SIGKILL, 0) if attempt < 2 else (0,)), errors


def test_rules_of_each_language(assets: Path, tmp_path: Path) -> None:
    """English and French stay under their own thresholds; a language without any is left out, by name."""
    sentences: dict[str, list[str]] = {}
    with lzma.open(assets / "curation/language/sentences.jsonl.xz", "rt", encoding="utf8") as file:
        for row in map(json.loads, file):
            sentences.setdefault(row["language"], []).append(row["text"])
    with (tmp_path / "web.jsonl").open("w", encoding="utf8") as file:
        for language in ("fr", "hu", "el", "sw"):
            for start in range(0, 100, 20):
                file.write(json.dumps({"text": "\n".join(sentences[language][start : start + 20])}) + "\n")
        file.write(json.dumps({"text": "これは日本語の文章です。とても長い文章ではありません。" * 20}) + "\n")
    source = f"sources.web={{kind: jsonl, path: {tmp_path}/web.jsonl, license: unknown}}"
    words = [source, "rules=web_multilingual", "language=any", "workers=1"]
    every = curate(settings(*words, f"output={tmp_path}/every"), report=lambda line: None)
    assert set(every["languages"]) >= {"fr", "hu", "el"}
    assert every["sources"]["web"]["documents"]["removed"]["language.kept"]["first"] == 1
    (left_out,) = explain_rule(tmp_path / "every", "language.kept")
    assert left_out.language == "ja"
    some = curate(
        settings(*words, "language.keep=[fr]", "language.min_score=0.5", f"output={tmp_path}/some"),
        report=lambda line: None,
    )
    assert set(some["languages"]) == {"fr"}
    assert some["settings"]["rules_of_languages"]["web"]["fr"]["gopher.word_length"]["high"] == 11.0
    assert read_manifest(tmp_path / "some")["settings"]["language"]["keep"] == ["fr"]


def test_languages_of_texts(assets: Path) -> None:
    """On paragraphs of ten sentences and on single ones, of the languages that the model knows."""
    path = str(model_file(None))
    sentences: dict[str, list[str]] = {}
    with lzma.open(assets / "curation/language/sentences.jsonl.xz", "rt", encoding="utf8") as file:
        for row in map(json.loads, file):
            sentences.setdefault(row["language"], []).append(row["text"])
    large = ["bg", "cs", "da", "el", "et", "fa", "fr", "hi", "hu", "it", "ko", "pl", "ro", "tr", "uk", "vi"]
    right: Counter[str] = Counter()
    for language in large:
        texts = sentences[language]
        paragraphs = [" ".join(texts[n : n + 10]) for n in range(0, len(texts), 10)]
        right["paragraphs"] += sum(each == language for each, _ in languages_of(paragraphs, path, 2000))
        right["sentences"] += sum(each == language for each, _ in languages_of(texts, path, 2000))
    assert right["paragraphs"] >= 0.995 * 30 * len(large)
    assert right["sentences"] >= 0.97 * 300 * len(large)
    shouted = "THIS IS A NOTICE TO ALL OF OUR READERS: THE OFFICE IS CLOSED ON MONDAY."
    assert languages_of([shouted, "", "\n\t", "The dog is here.\nIt sleeps."], path, 2000)[0][0] == "en"
    assert languages_of(["", "a" * 10_000_000], path, 2000)[0] == ("", 0.0)
    assert one_line("A\nb\u2028c") == "A b c"
    labels = {"de": "de", "no": "nb", "deu_Latn": "de", "als_Latn": "sq", "als": "als", "xyz_Latn": "xyz"}
    assert {label: language_of_label(f"__label__{label}") for label in labels} == labels
    assert model_record(None)["sha256"].startswith("8f3472cf")


def test_a_model_with_labels_of_language_and_script(assets: Path, tmp_path: Path) -> None:
    """GlotLID names languages as deu_Latn: lid.176 with such labels gives the same languages, named by its path."""
    data = model_file(None).read_bytes()
    for label, other in ((b"en", b"eng_Latn"), (b"fr", b"fra_Latn"), (b"hu", b"hun_Latn"), (b"el", b"ell_Grek")):
        assert data.count(b"__label__" + label + b"\0") == 1
        data = data.replace(b"__label__" + label + b"\0", b"__label__" + other + b"\0")
    model = tmp_path / "glot.ftz"
    model.write_bytes(data)
    with lzma.open(assets / "curation/language/sentences.jsonl.xz", "rt", encoding="utf8") as file:
        rows = [row for row in map(json.loads, file) if row["language"] in ("fr", "hu", "el")]
    texts = [row["text"] for row in rows]
    assert languages_of(texts, str(model), 2000) == languages_of(texts, str(model_file(None)), 2000)
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": each * 3}) + "\n" for each in texts[:40]))
    words = [f"sources.web={{kind: jsonl, path: {tmp_path}/web.jsonl, license: unknown}}", "rules=none", "workers=1"]
    more = ["language=any", f"language.model={model}", f"output={tmp_path}/corpus"]
    manifest = curate(settings(*words, *more), report=lambda line: None)
    record = manifest["settings"]["language"]["model"]
    assert (record["file"], record["license"]) == ("glot.ftz", "unknown")
    assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["languages"].keys() <= {"fr", "hu", "el", "en"}


def test_toxicity_by_a_classifier(tmp_path: Path) -> None:
    """Any fastText model by path; that of languages stands in for one, with French as what is looked for."""
    texts = ["Le chat est assis sur la table de la cuisine.", "The cat sits on the table of the kitchen."]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = model_file(None)
    words = [f"sources.web={{kind: jsonl, path: {tmp_path}/web.jsonl, license: unknown}}", "rules=none", "workers=1"]
    words += [f"toxicity.model={model}", f"output={tmp_path}/corpus"]
    with pytest.raises(ConfigError, match=r"toxicity\.label=toxic is no label of the model\. It has af, als"):
        curate(settings(*words), report=lambda line: None)
    manifest = curate(settings(*words, "toxicity.label=fr", "rules.max_toxicity=0.5"), report=lambda line: None)
    assert manifest["toxicity"] == {
        "model": model.name, "label": "fr", "documents": 1, "sha256": model_record(None)["sha256"],
    }  # fmt: skip
    (kept,) = [row for path in (tmp_path / "corpus" / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert kept["text"] == texts[1]
    with pytest.raises(ConfigError, match=r"toxicity\.model=none\.bin is no file"):
        model_file("none.bin", "toxicity.model")


def test_models_and_domains_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"language\.model=.*none\.bin is no file\. Name a fastText model"):
        model_file(str(tmp_path / "none.bin"))
    (tmp_path / "bad.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"language\.model=.*bad\.bin is no fastText model: "):
        languages_of(["x"], str(tmp_path / "bad.bin"), 100)


def test_extraction_scores_do_not_fall(assets: Path) -> None:
    """F1 on 181 pages, as benchmarks/extraction.py measures it."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from extraction import scores
    finally:
        sys.path.pop(0)
    assert scores(assets, "resiliparse").f1 >= 0.91
    assert scores(assets, "trafilatura").f1 >= 0.955
