"""Sources that cannot be read are refused with one sentence that names the setting or the file."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.config import DataConfig, TextFilesConfig
from pretrain.data.sources import column_files
from pretrain.data.sources.open_source import open_source
from pretrain.data.sources.source import Source
from pretrain.errors import ConfigError, DataError


def text_source(path: Path | str, **settings: Any) -> Source:
    return open_source(TextFilesConfig(path=str(path), **settings))


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def json_lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def write_parquet(path: Path, **columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path=.*nowhere does not exist"):
        text_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.path=.*\*\.txt has no file to read"):
        text_source(tmp_path / "*.txt")
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"data\.path=.* has no file to read \(passed over: 1 \.png\)\. Name .* in one of \.txt"
    ):
        text_source(tmp_path)
    with pytest.raises(DataError, match=r"data\.validation_path=.*gone does not exist"):
        text_source(tmp_path / "picture.png", validation_path=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"cannot be listed: File name too long"):
        text_source("x" * 5000)
    with pytest.raises(ConfigError, match=r"data\.separator='' separates nothing"):
        text_source(tmp_path, separator="")
    with pytest.raises(ConfigError, match=r"data\.kind=\? is not a source of text"):
        open_source(DataConfig())


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(top: Path, **options: Any) -> list[Any]:
        options["onerror"](PermissionError(13, "Permission denied", str(top)))
        return []

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(DataError, match=r"cannot be listed: Permission denied"):
        text_source(tmp_path)


def test_a_source_without_text_says_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no text \(documents skipped: 2 empty, 1 invalid UTF-8\)"):
        texts(text_source(tmp_path))


def test_a_missing_column_names_those_present(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines({"title": "x", "body": "y"}, {"text": "z"}))
    with pytest.raises(
        DataError, match=r"a\.jsonl has no data\.text_column=text\. Try one of its columns: body, title"
    ):
        texts(text_source(tmp_path))
    write_parquet(tmp_path / "a.parquet", body=["x"], number=[1])
    with pytest.raises(DataError, match=r"a\.parquet has no data\.text_column=text\. .*: body, number"):
        texts(text_source(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet with text in data\.text_column=number"):
        texts(text_source(tmp_path / "a.parquet", text_column="number"))


def test_files_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[{"text": "x"}]')
    with pytest.raises(DataError, match=r"a\.jsonl is one JSON array\. Read it by data\.format=json, or"):
        texts(text_source(tmp_path / "a.jsonl"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DataError, match=r"a\.parquet.* cannot be read"):
        texts(text_source(tmp_path / "a.parquet"))
    write_parquet(tmp_path / "a.parquet", text=["x"] * 100)
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    for place in range(4, 40):
        whole[place] = 0xFF
    (tmp_path / "a.parquet").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.parquet' cannot be read to its end") as refused:
        texts(text_source(tmp_path / "a.parquet"))
    assert "\n" not in str(refused.value)  # though the library writes two lines
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"a\.parquet\.gz is parquet inside another compression"):
        texts(text_source(tmp_path / "a.parquet.gz"))


def test_a_document_too_large_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_files, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.txt").write_text("x" * 101)
    with pytest.raises(DataError, match=r"a\.txt is over 100 bytes .* data\.separator="):
        texts(text_source(tmp_path))
    with pytest.raises(DataError, match=r"a\.txt:1 is over 100 bytes .*Check data\.separator='\|'"):
        texts(text_source(tmp_path, separator="|"))
    (tmp_path / "b.jsonl").write_bytes(json_lines({"text": "x"}, {"text": "x" * 101}))
    with pytest.raises(DataError, match=r"b\.jsonl:2 is over 100 bytes"):
        texts(text_source(tmp_path / "b.jsonl"))
