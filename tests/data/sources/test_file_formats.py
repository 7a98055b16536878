"""The format of a file follows from its name and first bytes; binary files are never read as text."""

import bz2
import gzip
import json
import lzma
import os
import random
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pretrain.data.config import Format, MixtureConfig, MixtureSource, TextFilesConfig
from pretrain.data.fine_tuning_config import LabeledTextConfig, PairsConfig
from pretrain.data.prepare import prepare
from pretrain.data.sources import column_files, compressed_files
from pretrain.data.sources.file_formats import is_corpus_file, kind_of_file
from pretrain.data.sources.source import Source
from pretrain.errors import DataError
from pretrain.evaluation.config import Task
from pretrain.evaluation.examples import read_examples

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def text_source(path: Path | str, **settings: Any) -> Source:
    return TextFilesConfig(path=str(path), **settings).open()


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


# By name and by a look


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl-00000-of-00002", LINES),
        ("train.jsonl.gz-00000-of-00002", gzip.compress(LINES)),
        ("train-00000-of-00002", LINES),  # a download of the hub's cache has no suffix at all
        ("c4-train.00000-of-01024.json.gz", gzip.compress(LINES)),
        ("part.jsonl.003", LINES),
        ("blob", gzip.compress(LINES)),
        ("blob.txt.1", bz2.compress(b"one")),
        ("array.json", b' [ {"text": "one"}, 5,\n {"text": "two"} ] '),
        ("array", b'[{"text": "one"}, {"text": "two"}]'),
        ("x.csv", b"id,text\r\n1,one\r\n2,two\r\n"),
        ("x.csv.zst", zstandard.ZstdCompressor().compress(b"text\none\ntwo\n")),
        ("x.tsv-00001", b"text\tid\none\t1\ntwo\t2\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # packed bytes hold the time
)
def test_a_shard_is_read_as_what_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    source = text_source(tmp_path / name)
    assert texts(source) == (["one"] if name == "blob.txt.1" else ["one", "two"])
    assert dict(source.skipped) == ({"not a JSON object": 1} if name == "array.json" else {})


def test_a_folder_gives_its_shards_and_counts_what_it_passes_over(tmp_path: Path) -> None:
    for name in (
        "a.jsonl-00000-of-00002",
        "a.jsonl-00001-of-00002",
        "b.ndjson.1.gz",
        "old.jsonl.bak",
        "index",
        "x.lz4",
    ):
        content = LINES.replace(b"one", name.encode())
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = text_source(tmp_path)
    assert texts(source)[::2] == ["a.jsonl-00000-of-00002", "a.jsonl-00001-of-00002", "b.ndjson.1.gz"]
    assert dict(source.passed_over) == {".bak": 1, "without a suffix": 1, ".lz4": 1}
    assert not any(map(is_corpus_file, ("model.bin", "a.jsonl.lock", "jsonl", "a.gz", "a.txt.zip")))


def test_a_format_that_is_asked_for_is_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(LINES)
    assert texts(text_source(path, format=Format.jsonl)) == ["one", "two"]
    assert texts(text_source(path, format=Format.text)) == [LINES.decode()]
    fingerprints = {text_source(path, format=form).fingerprint() for form in (Format.jsonl, Format.text, Format.csv)}
    assert len(fingerprints) == 3


def test_fingerprints_of_earlier_versions_stay(tmp_path: Path) -> None:
    """Stores that were made before formats were looked for are found again."""
    (tmp_path / "a.txt").write_bytes(b"text")
    (tmp_path / "c.json").write_bytes(LINES)
    assert text_source(tmp_path / "a.txt").fingerprint() == "ff6fd433b6ad40cc7224d773da5ce4f4"
    assert text_source(tmp_path / "c.json", separator="|").fingerprint() == "cbe52787d2f90761e0a76ded79b51900"


REFUSED: dict[str, tuple[bytes, str]] = {
    "page.txt": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML, not like plain text. Extract its text"),
    "page.jsonl": (b"\n<html lang='en'>", "HTML, not like JSON lines"),
    "rows.txt": (
        LINES,
        "JSON lines, not like plain text. Read it as such by data.format=jsonl, or .* data.format=text",
    ),
    "pretty.md": (b'{\n  "a": [1, 2]\n}\n', "JSON lines, not like plain text"),
    "list.text": (b'[{"text": "x"}]', "JSON, not like plain text. Read it as such by data.format=json"),
    "table.txt": (b"id,text\n1,a\n2,b\n", "CSV, not like plain text. Read it as such by data.format=csv"),
    "table": (b"id\ttext\n1\ta\n2\tb\n", "TSV, not like plain text. Read it as such by data.format=tsv"),
    "paper.txt": (b"%PDF-1.7\n1 0 obj", "a PDF document, not like plain text. Extract its text"),
    "rows.md": (b"PAR1\x15\x04", "parquet, not like plain text. Read it as such by data.format=parquet"),
    "texts.zip": (b"PK\x03\x04rest", r"an archive \(\.zip\), not like plain text\. Unpack it and name"),
    "texts.txt": (b"PK\x03\x04rest", "a zip archive .* Unpack it"),
    "rows.jsonl.lz4": (b"\x04\x22\x4d\x18rest", r"an archive \(\.lz4\), not like JSON lines\. Unpack it"),
    "rows.jsonl.br": (b"\x8b\x05\x80rest", r"an archive \(\.br\)"),
    "weights": (b"\x7fELF\x02\x01\x01\0\0", "a program, not like plain text"),
    "numbers": (b"\x01\0\x02\0\x03\0", "binary, not like plain text"),
    "notes": ("text".encode("utf-16"), "UTF-16 text, not like plain text. Write it as UTF-8: iconv"),
    "sheet.tsv": ("id\ttext\r\n1\ta\r\n".encode("utf-16"), "UTF-16 text, not like TSV. Write it as UTF-8: iconv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_with_what_to_type(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    source = text_source(tmp_path / name)
    for read in (texts, lambda source: source.fingerprint()):
        with pytest.raises(DataError, match=f"{name}' looks like {message}"):
            read(source)


def test_a_tar_is_refused_also_in_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    with tarfile.open(tmp_path / "texts.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", "a.txt")
    with pytest.raises(DataError, match=r"looks like a tar archive, not like plain text\. Unpack it"):
        texts(text_source(tmp_path / "texts.tar.gz"))


@pytest.mark.parametrize(
    "prose",
    [
        "Roses are red,\nviolets are blue,\nsugar is sweet,\n",
        "Hello, world\nGoodbye, moon\nGood night, stars\n",
        "Once, twice\n",
        "1,234 sheep\n1,235 goats\n",
        "\tdef f():\n\t\treturn 1\n",
        "[1] A note\n",
        "{see below}\n",
        '{"quoted words"} in braces\n',
        "<b>bold</b> words\n",
        "",
    ],
)
def test_prose_is_text_whatever_it_looks_like(tmp_path: Path, prose: str) -> None:
    for name in ("a.txt", "noname"):
        (tmp_path / name).write_text(prose)
        assert kind_of_file(tmp_path / name).form is Format.text


# CSV and TSV


def test_rows_of_csv_are_documents_and_bad_ones_are_counted(tmp_path: Path) -> None:
    long = "x" * 200_000  # above the csv module's own limit
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbfid,text\r\n"
        b'1,"two\nlines, and a ""quote"""\r\n'
        b"2,too,many\r\n"
        b"\r\n"
        b"3,\xff\r\n"
        b'4,"broken" quote\r\n'
        b"5,\r\n" + f"6,{long}\r\n".encode() + b'7,"never closed'
    )
    source = text_source(tmp_path / "a.csv")
    assert [(document.text, document.name) for document in source.documents()] == [
        ('two\nlines, and a "quote"', "a.csv:2"),
        (long, "a.csv:9"),
    ]
    assert dict(source.skipped) == {"wrong number of fields": 1, "invalid UTF-8": 1, "not CSV": 1, "empty": 1} | {
        "lines of a quoted field that never ends": 1
    }


def test_a_field_beyond_memory_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_files, "MAX_FIELD_CHARACTERS", 1000)
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 1001}\nshort\n")
    source = text_source(tmp_path / "a.csv")
    assert texts(source) == ["short"]
    assert dict(source.skipped) == {"field too long": 1}


def test_a_heading_decides_the_delimiter_and_lacking_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;one, two\n")
    assert texts(text_source(tmp_path / "a.csv")) == ["one, two"]
    with pytest.raises(DataError, match=r"a\.csv has no data\.text_column=body\. Try one of its columns: id, text\."):
        texts(text_source(tmp_path / "a.csv", text_column="body"))
    (tmp_path / "b.tsv").write_text("text\ttext\na\tb\n")
    with pytest.raises(DataError, match=r"b\.tsv has two columns called text\. Give one another name"):
        texts(text_source(tmp_path / "b.tsv"))


def test_a_quotation_mark_in_a_table_with_tabs_is_text_where_it_quotes_nothing(tmp_path: Path) -> None:
    """GLUE's tables never quote; those of spreadsheets and pandas do."""
    path = tmp_path / "a.tsv"
    path.write_text(
        'id\ttext\tlabel\n1\t"I am here,\t0\n2\the said."\t1\n3\t"Yes" it is\t0\n4\ta 5" disk\t1\n'
        '5\t"two\n\nlines, ""quoted"""\t0\n6\t"a\ttab"\t1\n7\t"never closed\t0\n8\tlast\t1\n'
    )
    source = LabeledTextConfig(path=str(path)).open()
    assert [(document.text, document.label) for document in source.documents()] == [
        ('"I am here,', "0"), ('he said."', "1"), ('"Yes" it is', "0"), ('a 5" disk', "1"),
        ('two\n\nlines, "quoted"', "0"), ("a\ttab", "1"), ('"never closed', "0"), ("last", "1"),
    ]  # fmt: skip
    assert not source.skipped
    path.write_text('prompt\tresponse\nWrite f\t"def f():\n\treturn ""x"""\n"Why?\tBecause\nSo "what"\tno\n')
    pairs = PairsConfig(path=str(path)).open()
    assert [document.text for document in pairs.documents()] == [
        'Write f\ndef f():\n\treturn "x"', '"Why?\nBecause', 'So "what"\nno',
    ]  # fmt: skip
    assert [document.name for document in pairs.documents()] == ["a.tsv:2", "a.tsv:4", "a.tsv:5"]


# JSON arrays


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_an_array_is_read_value_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(column_files, "BLOCK_BYTES", block)
    values = [{"text": "één ]}, "}, 12, None, {"text": "two", "more": [[], {}]}, {"text": 3}]
    (tmp_path / "a.json").write_text(json.dumps(values, indent=1, ensure_ascii=False))
    source = text_source(tmp_path / "a.json")
    assert texts(source) == ["één ]}, ", "two"]
    assert dict(source.skipped) == {"not a JSON object": 2, "text is no string": 1}


@pytest.mark.parametrize("block", [1000, 1 << 20])
def test_an_integer_that_python_does_not_read_spoils_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(column_files, "BLOCK_BYTES", block)
    values = ['{"text": "a"}', f'{{"text": "b", "n": [{"9" * 5000}]}}', "9" * 5000, '{"text": "c"}']
    for name, mark in (("a.json", ","), ("a.jsonl", "\n")):
        content = mark.join(values)
        (tmp_path / name).write_text(f"[{content}]" if mark == "," else content)
        source = text_source(tmp_path / name)
        assert texts(source) == ["a", "c"]
        assert dict(source.skipped) == {"not JSON": 2}


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_arrays_of_files_that_were_joined_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(column_files, "BLOCK_BYTES", block)
    parts = [b'[{"text": "a"}]\n', b"[]", b'\xef\xbb\xbf[{"text": "b"}, {"text": "c"}]\n\n']
    (tmp_path / "a.json.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    source = text_source(tmp_path / "a.json.gz")
    assert [(document.text, document.name) for document in source.documents()] == [
        ("a", "a.json.gz:1"), ("b", "a.json.gz:2"), ("c", "a.json.gz:3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}',
        '[{"text": "a"} {',
        '[{"text": "a"}, {"te',
        "[" * 100_000,
        '[{"text": "a"}] {',
        '[{"text": ""}][',
    ],
)
def test_a_broken_array_names_the_last_good_value(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json is no JSON array after its first [01] values\. Repair it"):
        texts(text_source(tmp_path / "a.json"))


# Columns of pairs and labels


def write_table(path: Path, rows: dict[str, list[Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]))
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(rows), *(mark.join(map(str, row)) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "json"])
def test_pairs_and_labels_come_from_any_file_with_columns(tmp_path: Path, suffix: str) -> None:
    path = write_table(tmp_path / f"a.{suffix}", {"id": [1, 2], "prompt": ["p", "q"], "response": ["r", "s"]})
    source = PairsConfig(path=str(path)).open()
    assert [(document.text, document.prompt_characters) for document in source.documents()] == [
        ("p\nr", 1),
        ("q\ns", 1),
    ]
    path = write_table(tmp_path / f"b.{suffix}", {"id": [1, 2], "text": ["x", "y"], "label": [0, 1]})
    labeled = LabeledTextConfig(path=str(path)).open()
    assert [(document.text, document.label) for document in labeled.documents()] == [("x", "0"), ("y", "1")]


def test_lines_of_text_tab_label_stay_what_they_were(tmp_path: Path) -> None:
    for name in ("a.txt", "a.tsv", "noname"):
        (tmp_path / name).write_text('sentence\tlabel\n"Open quote\t1\nfine\t0\n')
        found = LabeledTextConfig(path=str(tmp_path / name)).open().documents()
        assert [(document.text, document.label) for document in found] == [('"Open quote', "1"), ("fine", "0")]


# Compressions


def test_a_long_window_is_read_and_memory_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    ).compressobj()  # of unknown size, as `zstd --long=31` reads from a pipe
    (tmp_path / "a.jsonl.zst").write_bytes(compress.compress(LINES) + compress.flush())
    assert texts(text_source(tmp_path / "a.jsonl.zst")) == ["one", "two"]
    dictionary = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 27}]
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(LINES, filters=dictionary) + b"\0" * 8)  # padded, as xz may
    assert texts(text_source(tmp_path / "b.jsonl.xz")) == ["one", "two"]
    monkeypatch.setattr(compressed_files, "MAX_WINDOW_BYTES", 1 << 26)
    for name, reason in (("a.jsonl.zst", "too much memory"), ("b.jsonl.xz", "Memory usage limit exceeded")):
        with pytest.raises(DataError, match=rf"{name}' cannot be read to its end.*{reason}"):
            texts(text_source(tmp_path / name))


# Damage


@pytest.mark.slow
def test_no_damage_ends_in_anything_but_a_refusal(tmp_path: Path) -> None:
    """Cut, flipped and zeroed files of every format and compression are read, counted or refused in one line."""
    draw = random.Random(0)
    rows = {"text": ["a, b", 'c "d"', "é"], "label": ["1", "2", "3"], "prompt": ["p"] * 3, "response": ["r"] * 3}
    wholes = {
        form: write_table(tmp_path / f"whole.{form}", rows).read_bytes() for form in ("csv", "tsv", "json", "parquet")
    }
    wholes |= {"jsonl": LINES * 20, "txt": b"some text\n\n" * 20}
    packs: dict[str, Callable[[bytes], bytes]] = {
        "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }  # fmt: skip
    read, refusals = 0, list[str]()
    for number in range(240):
        form, suffix = draw.choice(list(wholes)), draw.choice(list(packs))
        content = bytearray(packs[suffix](wholes[form]))
        start = draw.randrange(len(content))
        damage = (
            b"",
            content[start + 1 :],
            b"\0" * 9 + content[start:],
            bytes([content[start] ^ 4]) + content[start + 1 :],
        )
        path = tmp_path / f"{number}.{form}{suffix}"
        path.write_bytes(content[:start] + draw.choice(damage))
        for config in (TextFilesConfig, PairsConfig, LabeledTextConfig):
            try:
                source = config(path=str(path)).open()
                source.fingerprint()
                read += sum(1 for _ in source.documents())
            except DataError as error:
                refusals.append(str(error))
    assert read > 100
    assert len(refusals) > 100
    assert not [message for message in refusals if "\n" in message]


# Special files


@pytest.fixture(params=["fifo", "device", "socket"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A file that would be read without end, or waited for, and what it is."""
    if request.param == "device":
        return "/dev/zero", "a character device"
    path = tmp_path / "x.jsonl"
    if request.param == "fifo":
        os.mkfifo(path)
        return str(path), "a FIFO"
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.jsonl")
    return str(path), "a socket"


def test_special_files_are_refused_by_every_reader(tmp_path: Path, special: tuple[str, str]) -> None:
    path, kind = special
    text = tmp_path / "text.txt"
    text.write_text("text")
    readers: dict[str, Callable[[], object]] = {
        "data.path": lambda: text_source(path),
        "data.validation_path": lambda: text_source(text, validation_path=path),
        "data.path, pairs": lambda: PairsConfig(path=path).open(),
        "data.path, labels": lambda: LabeledTextConfig(path=path).open(),
        "data.sources.a.path": lambda: prepare(
            MixtureConfig(sources={"a": MixtureSource(TextFilesConfig(path=path), weight=1)}), None, tmp_path  # type: ignore[arg-type]
        ),
        "path": lambda: read_examples(Task.cloze, path),
    }  # fmt: skip
    for key, read in readers.items():
        with pytest.raises(DataError, match=rf"{key.split(',')[0]}=.* cannot be read as text: it is {kind}, and only"):
            read()


def test_a_file_that_becomes_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    source = text_source(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"a\.txt' cannot be read as text: it is a FIFO"):
        texts(source)


def test_a_data_set_with_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    from pretrain.data.config import HuggingFaceConfig

    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl' cannot be read as text: it is a FIFO"):
        HuggingFaceConfig(path=str(tmp_path)).open()
