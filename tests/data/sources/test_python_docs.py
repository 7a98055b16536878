"""The built-in corpus: English, without tests or duplicates, read without running any module."""

import sys
import sysconfig
from pathlib import Path

import pytest

from pretrain.data.sources import python_docs
from pretrain.data.sources.source import Document


@pytest.fixture(scope="module")
def corpus() -> list[Document]:
    return list(python_docs.documents())


@pytest.mark.long
def test_the_corpus_has_its_known_size(corpus: list[Document]) -> None:
    size = sum(len(document.text.encode()) for document in corpus)
    assert 400 <= len(corpus) <= 1200
    assert 1_500_000 <= size <= 5_000_000
    assert min(len(document.text.encode()) for document in corpus) >= python_docs.MIN_BYTES


@pytest.mark.long
def test_documents_are_distinct_and_leave_out_tests(corpus: list[Document]) -> None:
    assert len({document.text for document in corpus}) == len(corpus)
    assert len({document.name for document in corpus}) == len(corpus)
    parts = {part for document in corpus for part in document.name.split(".")}
    assert not parts & python_docs.SKIPPED_FOLDERS


def test_a_module_reads_as_its_docstrings(corpus: list[Document]) -> None:
    text = next(document.text for document in corpus if document.name == "textwrap")
    assert text.startswith("Text wrapping and filling.\n\nObject for wrapping/filling text.")


def test_no_paragraph_appears_twice(corpus: list[Document]) -> None:
    """What is held out for validation must not have been read in training."""
    paragraphs = [
        " ".join(paragraph.split())
        for document in corpus
        for paragraph in document.text.split("\n\n")
        if len(" ".join(paragraph.split())) >= python_docs.MIN_BYTES
    ]
    assert len(paragraphs) > 5_000
    assert len(set(paragraphs)) == len(paragraphs)


def test_a_passage_that_is_mostly_known_goes_as_a_whole() -> None:
    known = "A paragraph that another document has already told at some length."
    fresh = "A paragraph that nobody has told before, and that is also quite long."
    seen = {known}
    assert python_docs._fresh(f"Title\n\n{known}\n\nNote", seen) == ""
    assert python_docs._fresh(f"Title\n\n{known}\n\n{fresh}", seen) == f"Title\n\n{fresh}"
    assert python_docs._fresh(fresh, seen) == ""


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str | bytes) -> list[Document]:
    """Return the documents of a standard library that holds nothing but these modules."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return list(python_docs.documents())


def test_what_does_not_parse_or_is_no_documentation_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "A sentence that is long enough to be a document of its own."
    documents = library(
        tmp_path,
        monkeypatch,
        good=f'"""{long}"""\ndef f(a, /, b, *c, d=1, **e):\n    """Do\n      it "\\d".\n    """\n',
        same=f'"""{long}"""\n',
        short='"""Too short."""\n',
        broken="def",
        nul=b'"""\0"""',
        latin=b'"""\xe9 is not UTF-8, and no coding line says what it is."""',
        runs=f'"""{long} Imported."""\nraise SystemExit("a module was imported")\n',
        test__case=f'"""{long} Of a test."""\n',
    )
    assert documents == [
        Document(f'{long}\n\nDo\nit "\\d".\n', "good"),
        Document(f"{long} Imported.\n", "runs"),
    ]


@pytest.mark.parametrize("statement", ["topics = {}", "topics: dict[str, str] = {}"])
def test_help_topics_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    topic = "A topic is a page of the reference that help() shows.\n"
    listed = statement.replace("{}", repr({"b": "short", "a": "\n" + topic}))
    assert library(tmp_path, monkeypatch, pydoc_data__topics=listed) == [Document(topic, "help:a")]


def test_the_fingerprint_follows_the_files_and_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, monkeypatch, one="1")
    first = python_docs.fingerprint()
    assert python_docs.fingerprint() == first
    library(tmp_path, monkeypatch, one="2")
    second = python_docs.fingerprint()
    monkeypatch.setattr(sys, "version", "4.0")
    assert len({first, second, python_docs.fingerprint()}) == 3
