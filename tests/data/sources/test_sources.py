"""Sources of text: every document is kept or counted, no corpus crashes, every error has a remedy."""

import bz2
import gzip
import json
import lzma
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.data.config import DataConfig, Format, PythonDocsConfig, TextFilesConfig
from pretrain.data.sources import column_files, compressed_files, text_files
from pretrain.data.sources.source import Source
from pretrain.errors import ConfigError, DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
}


def text_source(path: Path | str, **settings: Any) -> Source:
    return TextFilesConfig(path=str(path), **settings).open()


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def names(source: Source) -> list[str]:
    return [document.name for document in source.documents()]


def json_lines(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def write_parquet(path: Path, **columns: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=2)


# What is read


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_format_gives_its_documents_whatever_the_compression(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(json_lines({"text": "één", "id": 1}, {"text": "two"})))
    (tmp_path / f"b.txt{suffix}").write_bytes(compress(b"three\r\n"))
    source = text_source(tmp_path)
    assert [(document.text, document.name) for document in source.documents()] == [
        ("één", f"a.jsonl{suffix}:1"),
        ("two", f"a.jsonl{suffix}:2"),
        ("three\r\n", f"b.txt{suffix}"),
    ]
    assert not source.skipped


def test_parquet_is_read_by_column_with_bad_rows_counted(tmp_path: Path) -> None:
    import pyarrow as pa

    bad = pa.array([b"one", b"\xff", None, b"four"], pa.binary())
    write_parquet(tmp_path / "a.parquet", body=bad, id=[1, 2, 3, 4])
    write_parquet(tmp_path / "b.parquet", body=pa.array(["five", "five"]).dictionary_encode())
    source = text_source(tmp_path, text_column="body")
    assert texts(source) == ["one", "four", "five", "five"]
    assert names(source)[:2] == ["a.parquet:1", "a.parquet:4"]
    assert source.skipped == {"invalid UTF-8": 1, "text is no string": 1}


def test_a_date_of_parquet_may_be_a_number(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["a", "b"], year=[2024, None])
    columns = {"sources.<name>.text_column": "text", "sources.<name>.date_column": "year"}
    with (tmp_path / "a.parquet").open("rb") as stream:
        rows = [row for _, row in column_files.parquet_records(stream, "a.parquet", columns, Counter())]
    assert rows == [{"text": "a", "year": 2024}, {"text": "b", "year": None}]


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = [pa.array([text]) for text in "ab"]
    pyarrow.parquet.write_table(pa.table(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has two columns called text\. Give one another name"):
        texts(text_source(tmp_path))


def test_a_separator_splits_also_where_it_straddles_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one<|end|>two\n<|end|><|end|>three<|end|>")
    for block in (1, 2, 3, 7, 100):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
        source = text_source(tmp_path, separator="<|end|>")
        assert texts(source) == ["one", "two\n", "three"]
        assert names(source) == ["a.txt:1", "a.txt:2", "a.txt:4"]
        assert source.skipped == {"empty": 1}


@pytest.mark.parametrize("separator", ["\\n\\n", "\n\n", "\\r\\n\\r\\n", "\r\n\n"])
def test_a_separator_of_line_ends_splits_files_of_any_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\nlines\n\n")
    (tmp_path / "b.txt").write_bytes(b"one\r\n\r\ntwo\r\nlines\r\n\r\nthree\n")
    for block in (1, 2, 3, 100):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", block)
        source = text_source(tmp_path, separator=separator)
        assert texts(source) == ["one", "two\nlines", "one", "two\r\nlines", "three\n"]
        assert source.remarks() == []
    made = text_source(tmp_path, separator="\n\n").fingerprint()
    assert text_source(tmp_path, separator="\\n\\n").fingerprint() == made
    assert text_source(tmp_path, separator="\\\\n").fingerprint() != made


def test_a_separator_that_never_occurs_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\\n\\ntwo")
    source = text_source(tmp_path, separator="\\n\\n")
    assert texts(source) == ["one\\n\\ntwo"]
    (remark,) = source.remarks()
    assert remark.startswith(
        f"data.separator='\\n\\n' does not occur in data.path={tmp_path}, where text files are read"
    )
    assert texts(text_source(tmp_path, separator="\\\\n\\\\n")) == ["one", "two"]
    (tmp_path / "a.txt").rename(tmp_path / "a.bin")
    (tmp_path / "b.jsonl").write_bytes(json_lines({"text": "x"}))
    source = text_source(tmp_path, separator="|")
    assert texts(source) == ["x"]
    assert [remark.partition(", which has no plain text")[1] for remark in source.remarks()] == [
        "",
        ", which has no plain text",
    ]


def test_a_folder_is_read_in_sorted_order_each_file_once(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "c.md", ".hidden.txt", ".git/x.txt", "picture.png", "new\nline.txt", "😀.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "z.txt").symlink_to(tmp_path / "c.md")
    os.mkfifo(tmp_path / "pipe.txt")
    source = text_source(tmp_path)
    assert names(source) == ["a/1.txt", "b/2.txt", "c.md", "new\\nline.txt", "😀.txt"]
    counts = "1 .png, 1 FIFO, 1 broken link"
    assert source.remarks() == [f"data.path={tmp_path}: files passed over: 3 ({counts})"]
    assert names(text_source(tmp_path / "*" / "*.txt")) == ["a/1.txt", "b/2.txt"]
    assert names(text_source(tmp_path / "**" / "?.txt")) == ["a/1.txt", "b/2.txt", "z.txt", "😀.txt"]
    assert names(text_source(tmp_path / "picture.png")) == ["picture.png"]


def test_a_validation_path_gives_its_own_documents(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("train")
    (tmp_path / "valid.txt").write_text("valid")
    source = text_source(tmp_path / "train.txt", validation_path=str(tmp_path / "valid.txt"))
    documents = source.validation_documents()
    assert documents is not None
    assert [document.text for document in documents] == ["valid"]
    assert text_source(tmp_path / "train.txt").validation_documents() is None


def test_the_fingerprint_is_of_content_and_reading_settings_only(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.txt").write_text("text")
    first = text_source(tmp_path / "one").fingerprint()
    assert len(first) == 32
    assert text_source(tmp_path / "two", prefetch=3).fingerprint() == first
    changed = {
        text_source(tmp_path / "one", separator="x").fingerprint(),
        text_source(tmp_path / "one", text_column="x").fingerprint(),
        text_source(tmp_path / "one", validation_path=str(tmp_path / "two")).fingerprint(),
    }
    (tmp_path / "one" / "one.txt").write_text("other")
    changed.add(text_source(tmp_path / "one").fingerprint())
    assert len(changed - {first}) == 4


# Garbage


@pytest.mark.fault("F14")
def test_every_bad_document_is_counted_by_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "kept"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "a\\u0000b"}',
        b'{"text": "\\ud800"}',
        b'{"text": " \\n"}',
        b'{"text": 5}',
        b'{"other": "x"}',
        b'"a string"',
        b"{broken",
        b"[" * 200_000,
        b'{"n": ' + b"9" * 5000 + b', "text": "x"}',
        b"",
        b'{"text": "also kept"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = text_source(tmp_path)
    assert texts(source) == ["kept", "also kept"]
    assert source.skipped == {
        "invalid UTF-8": 1,
        "NUL character": 1,
        "lone surrogate": 1,
        "empty": 1,
        "text is no string": 1,
        "no text column": 1,
        "not a JSON object": 1,
        "not JSON": 3,
    }
    assert texts(source)  # a second pass counts anew
    assert source.skipped.total() == 10


@pytest.mark.fault("F14")
def test_text_files_that_are_no_text_are_counted(tmp_path: Path) -> None:
    contents = {
        "binary.txt": bytes(range(256)),
        "bom.txt": b"\xef\xbb\xbfwith a mark",
        "empty.txt": b"",
        "mark_only.txt": b"\xef\xbb\xbf",
        "nul.txt": b"a\0b",
        "spaces.txt": b" \n\t",
        "utf16.txt": "text".encode("utf-16"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    source = text_source(tmp_path)
    assert texts(source) == ["with a mark"]
    assert source.skipped == {"invalid UTF-8": 2, "empty": 3, "NUL character": 1}


@pytest.mark.fault("F14")
def test_one_very_long_line_is_one_document(tmp_path: Path) -> None:
    text = "a long line " * 250_000
    (tmp_path / "a.jsonl").write_bytes(json_lines({"text": text}))
    (tmp_path / "b.txt").write_text(text)
    assert texts(text_source(tmp_path)) == [text, text]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(st.binary(max_size=60) | st.text(max_size=30).map(lambda t: t.encode(errors="replace"))))
@pytest.mark.fault("F14")
def test_documents_in_are_documents_kept_or_skipped(tmp_path: Path, bodies: list[bytes]) -> None:
    lines = [b'{"text": "first"}'] + [body.replace(b"\n", b"").strip() or b"x" for body in bodies]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = text_source(tmp_path / "a.jsonl")
    assert len(texts(source)) + source.skipped.total() == len(lines)

    (tmp_path / "b.rst").write_bytes(b"first|" + b"|".join(body.replace(b"|", b"") for body in bodies) + b"|last")
    source = text_source(tmp_path / "b.rst", separator="|", format=Format.text)  # as it stands, whatever it looks like
    assert len(texts(source)) + source.skipped.total() == 2 + max(1, len(bodies))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
@pytest.mark.parametrize("form", ["jsonl", "txt"])
@pytest.mark.fault("F14")
def test_a_truncated_or_damaged_archive_names_its_file(tmp_path: Path, suffix: str, form: str) -> None:
    lines = json_lines(*({"text": f"document {n * n} {n**9}"} for n in range(5000)))
    whole = COMPRESS[suffix](lines if form == "jsonl" else lines.replace(b"{", b""))
    path = tmp_path / f"a.{form}{suffix}"
    for content in (whole[:-9], whole[: len(whole) // 2], b"no archive at all", whole[:500] + b"\0" * 99 + whole[600:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.{form}\{suffix}' cannot be read to its end"):
            texts(text_source(path))


def test_an_archive_of_several_frames_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1, 5, 4096):
        monkeypatch.setattr(compressed_files, "PACKED_BLOCK_BYTES", block)
        for suffix, compress in COMPRESS.items():
            (tmp_path / f"a.txt{suffix}").write_bytes(compress(b"one ") + compress(b"") + compress(b"two"))
            assert texts(text_source(tmp_path / f"a.txt{suffix}")) == ["one two"]


# Refusals: one sentence that names the setting or the file


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
        DataConfig().open()


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
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:4] + b"\xff" * 36 + content[40:])
    with pytest.raises(DataError, match=r"a\.parquet' cannot be read to its end") as refused:
        texts(text_source(tmp_path / "a.parquet"))
    assert "\n" not in str(refused.value)  # though the library writes two lines
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"a\.parquet\.gz is parquet inside another compression"):
        texts(text_source(tmp_path / "a.parquet.gz"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(gzip.compress(b'{"text": "x"}\n')))
    with pytest.raises(DataError, match=r"b\.jsonl\.gz' is gzip inside gzip, and one compression is undone here"):
        texts(text_source(tmp_path / "b.jsonl.gz"))


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


# Other sources


def test_the_python_documentation_is_a_source() -> None:
    source = PythonDocsConfig().open()
    assert next(source.documents()).name.startswith("help:")
    assert source.validation_documents() is None
    assert len(source.fingerprint()) == 32


def test_a_source_that_never_yields_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match=r"data\.kind=python_docs: .* holds no text \(documents skipped: none\)"):
        texts(PythonDocsConfig().open())


def test_real_corpora_are_read_whole() -> None:
    assets = os.environ.get("PRETRAIN_ASSETS")
    if not assets:
        pytest.skip("PRETRAIN_ASSETS is not set: no real corpora on this machine")
    stories = text_source(Path(assets, "corpora/tinystories_sample/tiny.utf8"), separator="<|endoftext|>")
    assert len(texts(stories)) in range(310, 325)
    novels = text_source(Path(assets, "corpora/english_novels/valid.jsonl.xz"))
    assert len(texts(novels)) == 4
    assert not novels.skipped
