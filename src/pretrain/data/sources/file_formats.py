"""The format and compression of a corpus file, by its name and first bytes, or by `data.format`.

A name alone is unreliable: shards are called train.jsonl-00000-of-00002, downloads have no suffix, and an error page
may be saved as corpus.txt. What is no text must not be trained on, so it is an error that names the remedy.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.config import Format
from pretrain.data.sources.compressed_files import BYTE_ORDER_MARK, compression_of, decompressed, head_of, opened
from pretrain.errors import DataError, printable

FORMATS = {".txt": "text", ".md": "text", ".text": "text", ".utf8": "text", ".rst": "text"} | {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
HEAD_BYTES = 1 << 16  # of a file's text that are inspected
_SUFFIX = "|".join(suffix[1:] for suffix in (*FORMATS, *COMPRESSIONS))
_NUMBERS = r"(?:[-_.](?:(?:part|shard)-?)?\d+|[-_.]of[-_.]?\d+)*"  # train.jsonl-00000-of-00002, text.txt.003
_IN_FOLDER = re.compile(rf"\.(?:{_SUFFIX}){_NUMBERS}(?:\.(?:{_SUFFIX}))*$", re.IGNORECASE)
_MAGIC = {
    b"PAR1": "parquet", b"%PDF-": "a PDF document", b"PK\x03\x04": "a zip archive (or an Office document)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive", b"\x04\x22\x4d\x18": "an lz4 archive",
    b"\x02\x21\x4c\x18": "an lz4 archive", b"\xff\x06\0\0sNaPpY": "a snappy archive", b"\x1f\x9d": "a .Z archive",
    b"ARROW1": "an Arrow file", b"SQLite format 3\0": "an SQLite database", b"\x89PNG": "an image",
    b"\x93NUMPY": "a NumPy array", b"\x89HDF\r\n": "an HDF5 file", b"\x7fELF": "a program",
}  # fmt: skip
_ARCHIVES = "zip|7z|rar|lz4|br|sz|snappy|lzo|lz|z|tar|tgz|tbz2?|txz"
_LAST_COMPRESSION = re.compile(rf"(\.(?:{'|'.join(suffix[1:] for suffix in COMPRESSIONS)})){_NUMBERS}$", re.IGNORECASE)
_LAST_ARCHIVE = re.compile(rf"\.(?:{_ARCHIVES}){_NUMBERS}$", re.IGNORECASE)
_IN_WORDS = {
    Format.text: "plain text", Format.jsonl: "JSON lines", Format.json: "JSON", Format.csv: "CSV", Format.tsv: "TSV",
    Format.parquet: "parquet",
}  # fmt: skip
_UTF_16 = "UTF-16 text"
_NEVER_TEXT = ("binary", _UTF_16)  # in files named as text: their documents are counted as skipped
_HTML = re.compile(rb"(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>])", re.IGNORECASE | re.DOTALL)
_OBJECT = rb'\{\s*"(?:[^"\\\n]|\\.){0,200}"\s*:\s*["\[{\d\-tfn]'
_JSON_LINES = re.compile(_OBJECT)
_JSON_ARRAY = re.compile(rb"\[\s*" + _OBJECT)
_HEADING = re.compile(r"[^\W\d](?:.{0,38}\S)?")  # name of a column, without the white space of prose


@dataclass(frozen=True)
class FileKind:
    """Format and compression of a file."""

    form: Format  # not auto
    compression: str | None  # gzip, xz, zstd, bz2


def is_corpus_file(name: str) -> bool:
    """Return whether a folder's file is read, by its last suffix before compressions and shard numbers."""
    return bool(_IN_FOLDER.search(name)) and format_in_name(name) is not None


def format_in_name(name: str) -> Format | None:
    """Return the format of the last known suffix in a name, or None."""
    known = [FORMATS[suffix] for suffix in _suffixes(name) if suffix in FORMATS]
    return Format[known[-1]] if known else None


def compression_in_name(name: str) -> str | None:
    """Return the compression of a name's last suffix before shard numbers, or None."""
    last = _LAST_COMPRESSION.search(name)
    return COMPRESSIONS[last[1].lower()] if last else None


def suffix_of(name: str) -> str:
    """Return the suffix under which a passed-over file is counted."""
    return next(reversed(_suffixes(name)), "without a suffix")


def kind_of_file(path: Path, wanted: Format = Format.auto, tabs_are_text: bool = False) -> FileKind:
    """Return how to read a file: as `wanted`; if auto, by its name and first bytes.

    With `tabs_are_text`, a table with tabs is plain text. Raises DataError for a file that cannot be read, and for one
    whose content is no text and whose name gives no other format.
    """
    with opened(path) as file:
        compression = compression_of(head_of(file, 16)) or compression_in_name(path.name)
        form = wanted
        if wanted is Format.auto:
            head = decompressed(file, compression).read(HEAD_BYTES)
            if compression and (inner := compression_of(head)):
                raise DataError(
                    f"{printable(repr(str(path)))} is {inner} inside {compression}, and one compression is undone "
                    "here. Unpack the outer one."
                )
            form = _form(path, head, compression is None, tabs_are_text)
    if form is Format.parquet and compression:
        raise DataError(
            f"{printable(path.name)} is parquet inside another compression. Unpack it to a file that ends in .parquet."
        )
    return FileKind(form, compression)


def _form(path: Path, head: bytes, is_unpacked: bool, tabs_are_text: bool) -> Format:
    """Return the format on which a file's name and first bytes agree; DataError if they do not."""
    by_name = format_in_name(path.name)
    content = _content(head, is_whole=len(head) < HEAD_BYTES)
    if is_unpacked and (archive := _LAST_ARCHIVE.search(path.name)):
        content = f"an archive ({archive[0]})"
    is_table = by_name in (Format.csv, Format.tsv) and content == _UTF_16  # whose columns would not be found
    is_counted = by_name and content in _NEVER_TEXT and not is_table
    if isinstance(content, str) and by_name is not Format.parquet and not is_counted:
        raise _looks_like(path, content, by_name)
    if by_name not in (None, Format.text):
        return by_name
    if content is None or isinstance(content, str) or (tabs_are_text and content is Format.tsv):
        return Format.text
    if by_name is None and content in (Format.jsonl, Format.json, Format.parquet):
        return content
    raise _looks_like(path, content, by_name)


def kind_mark(path: Path, kind: FileKind) -> bytes:
    """Return the mark of a file's format for its hash, which must change if it is read otherwise.

    A file that earlier versions read in the same way has the mark that they gave it.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    mark = "".join(path.suffixes[-2:]).lower().encode("utf-8", "replace")
    compression = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes.pop()
    form = FORMATS.get(suffixes[-1], "text") if suffixes else "text"
    old = {"json": "lines", "jsonl": "lines", "text": "text", "parquet": "parquet"}.get(form, "text")
    now = {Format.json: "lines", Format.jsonl: "lines"}.get(kind.form, kind.form.name)
    quotes = b"|quotation marks as text" if kind.form is Format.tsv else b""  # which earlier versions did not know
    return mark if (old, compression) == (now, kind.compression) else mark + f"|{kind}".encode() + quotes


def _suffixes(name: str) -> list[str]:
    return re.findall(r"\.[a-z][a-z0-9]*", name.lower())


def _looks_like(path: Path, content: Format | str, by_name: Format | None) -> DataError:
    """Return the error for a file whose content is not the expected text."""
    if isinstance(content, Format):
        remedy = f"Read it as such by data.format={content.name}, or as plain text by data.format=text."
    elif "archive" in content:
        remedy = "Unpack it and name its files (.gz, .xz, .zst and .bz2 need no unpacking)."
    elif content == _UTF_16:
        remedy = "Write it as UTF-8: iconv -f UTF-16 -t UTF-8 <file>."
    else:
        remedy = "Extract its text, or exclude it; data.format=text reads its bytes as text nevertheless."
    actual = content if isinstance(content, str) else _IN_WORDS[content]
    expected = _IN_WORDS[by_name or Format.text]
    return DataError(f"{printable(repr(str(path)))} looks like {actual}, not like {expected}. {remedy}")


def _content(head: bytes, is_whole: bool) -> Format | str | None:
    """Return the format of a file's first bytes, a description of what is no text, or None."""
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return Format.parquet if name == "parquet" else name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _UTF_16
    if b"\0" in head:
        return "binary"
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    if _HTML.match(text):
        return "HTML"
    if _JSON_LINES.match(text):
        return Format.jsonl
    if _JSON_ARRAY.match(text):
        return Format.json
    return _table(text, is_whole)


def _table(text: bytes, is_whole: bool) -> Format | None:
    """Return csv or tsv if a heading and all rows have equally many fields, else None.

    Prose has a space after its commas, so its first line is no heading.
    """
    lines = text.decode("utf8", "replace").splitlines()
    lines = [line for line in (lines if is_whole else lines[:-1])[:100] if line]
    for form, delimiter in ((Format.tsv, "\t"), (Format.csv, ",")):
        if len(lines) < 2 or delimiter not in lines[0]:
            continue
        try:
            rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, strict=True))
        except csv.Error:
            continue
        names = rows[0]
        is_heading = all(_HEADING.fullmatch(name) for name in names) and len(set(names)) == len(names)
        if is_heading and all(len(row) == len(names) for row in rows[1:]):
            return form
    return None
