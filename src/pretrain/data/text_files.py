"""Documents from files of this machine: plain text, JSON lines and parquet, compressed or not, read as a stream."""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pretrain.data.config import TextFilesConfig
from pretrain.data.file_streams import BLOCK_BYTES, opened
from pretrain.data.sources import Bookmark, Document, Source, printable
from pretrain.errors import ConfigError, DataError

MAX_DOCUMENT_BYTES = 1 << 30  # a document is held in memory whole: beyond this it is a mistake or a decompression bomb
COMPRESSIONS = (".gz", ".xz", ".zst")
FORMATS = {".txt": "text", ".md": "text", ".text": "text", ".utf8": "text", ".rst": "text"} | {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"
}  # fmt: skip
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextFiles(Source):
    """The documents of a file, of a folder's files, or of the files that match a pattern."""

    config: TextFilesConfig

    def __init__(self, config: TextFilesConfig) -> None:
        if config.separator == "":
            raise ConfigError("data.separator='' separates nothing. Try data.separator=null for one document a file.")
        super().__init__(config)
        self.files = find_files(config.path, "data.path")
        self.validation_files = (
            find_files(config.validation_path, "data.validation_path") if config.validation_path else None
        )
        self._bookmark: Bookmark | None = None

    def bookmark(self) -> Bookmark | None:
        """Return the beginning of the file that is being read."""
        return self._bookmark

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_path`; None where it is not set."""
        if self.validation_files is None:
            return None
        origin = f"data.validation_path={printable(self.config.validation_path)}"
        return self._screened(self._read_files(self.validation_files), origin)

    def fingerprint(self) -> str:
        """Return the hash of all files' formats and bytes, in order, and of the column and separator."""
        import xxhash

        digest = xxhash.xxh3_128(json.dumps([self.config.text_column, self.config.separator]).encode())
        for files in (self.files, self.validation_files or {}):
            digest.update(hash_files(files))
        return digest.hexdigest()

    def _origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def _read(self, place: Any = None) -> Iterator[Document]:
        files = list(self.files.items())
        for number in range(place or 0, len(files)):
            self._bookmark = Bookmark(self.kept, dict(self.skipped), number)
            yield from self._read_file(*files[number])

    def _read_files(self, files: dict[str, Path]) -> Iterator[Document]:
        for name, path in files.items():
            yield from self._read_file(name, path)

    def _read_file(self, name: str, path: Path) -> Iterator[Document]:
        shown, form = printable(name), file_format(path) or "text"
        with opened(path) as stream:
            if form == "parquet":
                yield from _read_parquet(stream, shown, self.config.text_column, self.skipped)
            elif form == "json":
                yield from _read_json_lines(stream, shown, self.config.text_column, self.skipped)
            else:
                yield from _read_text(stream, shown, self.config.separator, self.skipped)


def file_format(path: Path) -> str | None:
    """Return "text", "json" or "parquet" by the suffix before any compression's; None for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def find_files(path: str, key: str) -> dict[str, Path]:
    """Return the files that `path` (a file, a folder or a pattern) names, by relative name, in sorted order.

    A folder gives its files of known suffix, at any depth, hidden ones left out; a file named directly or matched by
    a pattern is read whatever its suffix. A file reached twice, through links, appears once.
    Raises DataError, naming the setting `key`, where there is none.
    """
    try:
        found, root = _matches(path, key)
    except OSError as error:
        raise DataError(
            f"{key}={printable(path)} cannot be listed: {error.strerror}. Name a folder that this user can read."
        ) from error
    named = {file.relative_to(root).as_posix(): file for file in found}
    by_depth = sorted(named, key=lambda name: (name.count("/"), name), reverse=True)
    distinct = {named[name].resolve(): name for name in by_depth}  # of a file's names, the shallowest stays
    if not distinct:
        raise DataError(
            f"{key}={printable(path)} has no file to read. "
            f"Name files that end in one of {' '.join(FORMATS)}, with or without .gz .xz .zst."
        )
    return {name: named[name] for name in sorted(distinct.values())}


def all_files(folder: Path) -> dict[str, Path]:
    """Return every file below a folder, hidden ones left out, by relative name, in sorted order."""
    return dict(sorted((file.relative_to(folder).as_posix(), file) for file in _walk(folder)))


def _matches(path: str, key: str) -> tuple[list[Path], Path]:
    """Return the files that a path or pattern names and the folder that their names are relative to."""
    place = Path(path).expanduser()
    if place.is_dir():
        return [file for file in _walk(place) if file_format(file)], place
    if place.exists():
        return [place], place.parent
    if not glob.has_magic(path):
        raise DataError(
            f"{key}={printable(path)} does not exist. Name a file, a folder or a pattern such as 'data/*.txt'."
        )
    matches = glob.glob(str(place), recursive=True)  # noqa: PTH207  (Path.glob would match hidden files)
    found = [match for match in map(Path, matches) if match.is_file()]
    return found, Path(os.path.commonpath([match.parent for match in found])) if found else place


def hash_files(files: dict[str, Path]) -> bytes:
    """Return a hash (16 bytes, xxh3_128) of the number of files and of each one's format and bytes."""
    import xxhash

    digest = xxhash.xxh3_128(str(len(files)).encode())
    for path in files.values():
        content = xxhash.xxh3_128()
        with opened(path, decompress=False) as stream:
            while block := stream.read(BLOCK_BYTES):
                content.update(block)
        digest.update("".join(path.suffixes[-2:]).lower().encode("utf-8", "replace") + content.digest())
    return digest.digest()


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, following links to folders, each folder once."""

    def refuse(error: OSError) -> None:
        raise error  # os.walk would silently leave the folder's documents out

    visited: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = Path(place).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(place, name) for name in names if not name.startswith("."))
        yield from (file for file in files if file.is_file())


def _decoded(content: bytes, name: str, skipped: Counter[str]) -> Iterator[Document]:
    try:
        yield Document(content.decode(), name)
    except UnicodeDecodeError:
        skipped["invalid UTF-8"] += 1


def _too_large(name: str, remedy: str) -> DataError:
    return DataError(f"{name} is over {MAX_DOCUMENT_BYTES:,} bytes as one document. {remedy}")


def _read_text(stream: IO[bytes], name: str, separator: str | None, skipped: Counter[str]) -> Iterator[Document]:
    """Yield the whole stream as one document, or its parts between separators."""
    if separator is None:
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise _too_large(name, "Set the string between its documents, such as data.separator='<|endoftext|>'.")
        yield from _decoded(content, name, skipped)
        return
    for number, part in enumerate(_split(stream, separator.encode(), name), start=1):
        yield from _decoded(part, f"{name}:{number}", skipped)


def _split(stream: IO[bytes], separator: bytes, name: str) -> Iterator[bytes]:
    """Yield what lies between separators; nothing after a last separator that ends the stream."""
    buffer, count = bytearray(), 0
    while block := stream.read(BLOCK_BYTES):
        searched = max(0, len(buffer) - len(separator) + 1)  # a separator may straddle two blocks
        buffer += block
        while (place := buffer.find(separator, searched)) >= 0:
            yield bytes(buffer[:place])
            del buffer[: place + len(separator)]
            searched, count = 0, count + 1
        if len(buffer) > MAX_DOCUMENT_BYTES:
            raise _too_large(f"{name}:{count + 1}", f"Check data.separator={separator.decode()!r}.")
    if buffer or not count:
        yield bytes(buffer)


def _read_json_lines(stream: IO[bytes], name: str, column: str, skipped: Counter[str]) -> Iterator[Document]:
    for place, record in json_records(stream, name, {"data.text_column": column}, skipped):
        if isinstance(record.get(column), str):
            yield Document(record[column], place)
        else:
            skipped["text is no string" if column in record else "no text column"] += 1


def lines_of(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1 on; DataError for one that no memory should hold."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
        if len(line) > MAX_DOCUMENT_BYTES:
            raise _too_large(f"{name}:{number}", "Write one document a line.")
        yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def json_records(
    stream: IO[bytes], name: str, columns: dict[str, str], skipped: Counter[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object of each line with its place, <name>:<line>; count in `skipped` the lines that hold none.

    Raises DataError where the first object lacks one of `columns`, given by the setting that names it.
    """
    first_record = True
    for number, line in lines_of(stream, name):
        record = _parse(line, name, number)
        if isinstance(record, str):
            skipped[record] += 1
        elif record is not None:
            for setting, column in columns.items() if first_record else ():
                if column not in record:
                    raise missing_column(name, column, record, setting)
            first_record = False
            yield f"{name}:{number}", record


def _parse(line: bytes, name: str, number: int) -> dict[str, Any] | str | None:
    """Return the JSON object of a line, or the reason to skip it, or None for a blank line."""
    if number == 1 and line.startswith(b"["):
        raise DataError(f'{name} is one JSON array. Write one JSON object a line, such as {{"text": "..."}}.')
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _read_parquet(stream: IO[bytes], name: str, column: str, skipped: Counter[str]) -> Iterator[Document]:
    """Yield the rows of one column, read a few at a time."""
    import pyarrow as pa
    import pyarrow.parquet

    if Path(name).suffix.lower() in COMPRESSIONS:
        raise DataError(f"{name} is parquet inside another compression. Unpack it to a file that ends in .parquet.")
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        if column not in file.schema_arrow.names:
            raise missing_column(name, column, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():  # bytes: a bad row must not stop the rest
                number += 1
                if value is None:
                    skipped["text is no string"] += 1
                else:
                    yield from _decoded(value, f"{name}:{number}", skipped)
    except pa.ArrowException as error:
        raise DataError(
            f"{name} cannot be read as parquet with text in data.text_column={printable(column)}: {error}. "
            "Try another file or column."
        ) from error


def missing_column(name: str, column: str, present: Any, setting: str = "data.text_column") -> DataError:
    """Return the error for a file whose records have no such column; `present` names those that they have."""
    columns = ", ".join(printable(key) for key in sorted(present))
    return DataError(f"{name} has no {setting}={printable(column)}. Try one of its columns: {columns or 'none'}.")
