"""Tables with odd line ends and quotation marks: what is read of them, and what is counted."""

from pathlib import Path

import pytest

from pretrain.data.config import TextFilesConfig
from pretrain.data.sources import column_files
from pretrain.data.sources.source import Source
from pretrain.errors import DataError


def text_source(path: Path) -> Source:
    return TextFilesConfig(path=str(path)).open()


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def test_what_a_quotation_mark_that_is_never_closed_swallows_is_counted_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"two\n' + "3,three\n" * 20)
    source = text_source(tmp_path / "a.csv")
    assert texts(source) == ["one"]
    assert dict(source.skipped) == {"lines of a quoted field that never ends": 21}


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_lines_of_a_table_may_end_as_on_old_macs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(column_files, "BLOCK_BYTES", block)
    for name, mark in (("a.csv", b","), ("a.tsv", b"\t")):
        rows = b'\xef\xbb\xbfid,text\r1,one\r2,"two\nlines"\r\r3,three'.replace(b",", mark)
        for end in (b"", b"\r"):
            (tmp_path / name).write_bytes(rows + end)
            source = text_source(tmp_path / name)
            assert texts(source) == ["one", "two\nlines", "three"]
            assert not source.skipped.total()
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a bare\rend\n2,two\n")
    source = text_source(tmp_path / "a.csv")
    assert texts(source) == ["two"]
    assert dict(source.skipped) == {"not CSV": 1}
    monkeypatch.setattr(column_files, "MAX_DOCUMENT_BYTES", 50)
    (tmp_path / "a.csv").write_bytes(b"id,text\r1,one\r2," + b"x" * 60)
    with pytest.raises(DataError, match=r"a\.csv:3 is over 50 bytes as one document\. Write one document a line\."):
        texts(text_source(tmp_path / "a.csv"))


def test_the_name_of_a_column_may_have_a_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,"number\nof ""words"""\r\none,1\r\n')
    assert [(each.text, each.name) for each in text_source(tmp_path / "a.csv").documents()] == [("one", "a.csv:3")]
    (tmp_path / "a.csv").write_bytes(b'text,"number\n' + b"one,1\n" * 100)
    with pytest.raises(DataError, match=r"a\.csv has no data\.text_column=text\."):
        texts(text_source(tmp_path / "a.csv"))
