"""The files that a path names, regular files only, and the sources that read their documents from them."""

import glob
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from pretrain.data.config import Format, TextFilesConfig
from pretrain.data.fine_tuning_config import AnnotatedConfig
from pretrain.data.sources.compressed_files import not_regular, opened
from pretrain.data.sources.file_formats import (
    COMPRESSIONS,
    FORMATS,
    FileKind,
    is_corpus_file,
    kind_mark,
    kind_of_file,
    suffix_of,
)
from pretrain.data.sources.source import Document, Source, counted, printable
from pretrain.data.sources.unchanged_files import HashedFile, hash_file
from pretrain.errors import DataError
from pretrain.files import untrusted_files
from pretrain.files.object_storage import is_remote


class FileSource(Source):
    """The documents of a file, of a folder's files, or of the files that match a pattern.

    A subclass reads one open file, and names the settings that decide how files are read.
    """

    config: TextFilesConfig | AnnotatedConfig

    def __init__(self, config: TextFilesConfig | AnnotatedConfig) -> None:
        super().__init__(config)
        self.files = find_files(config.path, "data.path", self.passed_over)
        self.validation_files: dict[str, Path] | None = None
        if config.validation_path:
            self.validation_files = find_files(config.validation_path, "data.validation_path", self.passed_over)
        self._position = _FilePosition(self.files)

    def validation_documents(self) -> Iterator[Document] | None:
        """Return the documents of `data.validation_path`; None if it is not set."""
        if self.validation_files is None:
            return None
        origin = f"data.validation_path={printable(self.config.validation_path)}"
        return self._screened(self._read_files(self.validation_files), origin)

    def fingerprint(self) -> str:
        """Return the hash of the reading settings and of all files' formats and bytes, in order."""
        import xxhash

        digest = xxhash.xxh3_128(json.dumps(self._reading_settings()).encode())
        for files in (self.files, self.validation_files or {}):
            digest.update(hash_files(files, self._kind, self.hashed))
        return digest.hexdigest()

    def share_read(self) -> float | None:
        """Return the fraction of the files' bytes that has been read, 0 to 1."""
        return self._position.share()

    def origin(self) -> str:
        return f"data.path={printable(self.config.path)}"

    def read(self, position: Any = None) -> Iterator[Document]:
        return self._read_files(self.files)

    def _read_files(self, files: dict[str, Path]) -> Iterator[Document]:
        for name, path in files.items():
            kind, hashed = self._kind(path), self.hashed.get(str(path))
            with opened(path, kind.compression, partial(self._position.enter, path), hashed) as stream:
                yield from self._read_stream(stream, printable(name), kind.form)

    def _kind(self, path: Path) -> FileKind:
        return kind_of_file(path, self.config.format)

    def _reading_settings(self) -> list[str | None]:
        """Return the settings by which the files are read, for the fingerprint."""
        raise NotImplementedError

    def _read_stream(self, stream: IO[bytes], name: str, form: Format) -> Iterator[Document]:
        """Yield the raw documents of one file."""
        raise NotImplementedError


class _FilePosition:
    """The reading position among all files, in bytes on the disk."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._spans: dict[Path, tuple[int, int]] = {}  # first byte and end of each file among all
        self._total = 0
        for path in files.values():
            try:
                end = self._total + path.stat().st_size
            except OSError:  # deleted since it was listed: opening it raises the error
                end = self._total
            self._spans[path] = self._total, end
            self._total = end
        self._start, self._end = 0, 0
        self._file: IO[bytes] | None = None

    def enter(self, path: Path, file: IO[bytes]) -> None:
        """Set the current file; others than those of the list do not count."""
        if path in self._spans:
            (self._start, self._end), self._file = self._spans[path], file

    def share(self) -> float | None:
        """Return the fraction of all bytes read, 0 to 1; None before the first file."""
        if self._file is None or not self._total:
            return None
        position = self._end if self._file.closed else self._start + self._file.tell()
        return min(1.0, position / self._total)


def find_files(
    path: str,
    key: str,
    passed_over: Counter[str] | None = None,
    is_read: Callable[[str], object] | None = None,
) -> dict[str, Path]:
    """Return the files that `path` names, by relative name, in sorted order.

    `path` is a file, a folder or a pattern. A folder gives its files of known suffix, at any depth, without hidden
    ones; a file named directly or matched by a pattern is read whatever its suffix. A file reached twice, through
    links, appears once. Omitted files are counted in `passed_over`, by suffix or kind. `is_read` says by name which
    files of a folder are read, if not those of text.
    Raises DataError, naming the setting `key`, if there is none, and if `path` is no regular file.
    """
    refuse_remote(path, key)
    omitted: Counter[str] = Counter()
    try:
        files, root = _matches(path, key, omitted, is_read or is_corpus_file)
    except OSError as error:
        raise DataError(
            f"{key}={printable(path)} cannot be listed: {error.strerror}. Name a folder that this user can read."
        ) from error
    named = {file.relative_to(root).as_posix(): file for file in files}
    by_depth = sorted(named, key=lambda name: (name.count("/"), name), reverse=True)
    distinct = {named[name].resolve(): name for name in by_depth}  # the shallowest name of a file stays
    if not distinct:
        raise DataError(
            f"{key}={printable(path)} has no file to read{f' (passed over: {counted(omitted)})' if omitted else ''}. "
            + (
                "Name a file itself, or give the folder's files the suffix of their kind."
                if is_read
                else f"Name files that end in one of {' '.join(FORMATS)}, with or without {' '.join(COMPRESSIONS)}."
            )
        )
    if passed_over is not None:
        passed_over.update(omitted)
    return {name: named[name] for name in sorted(distinct.values())}


def refuse_remote(path: str, key: str) -> None:
    """Raise DataError, naming the setting `key`, for a path in an object storage, where no manifest lists the files."""
    if is_remote(path):
        raise DataError(
            f"{key}={printable(path)} is in an object storage. Of text, only a curated corpus is read from there, "
            f"whose manifest has the hash of every file: data=curated data.path={printable(path)}. Copy other files "
            f"first, such as by aws s3 sync {printable(path)} <folder>, and name that folder."
        )


def all_files(folder: Path) -> dict[str, Path]:
    """Return all files below a folder except hidden ones, by sorted relative name.

    Raises DataError for a FIFO, a device or a socket, which a library might wait for.
    """
    return dict(sorted((file.relative_to(folder).as_posix(), file) for file in _walk(folder, None)))


def hash_files(
    files: dict[str, Path],
    kind_of: Callable[[Path], FileKind] | None = None,
    hashed: dict[str, HashedFile] | None = None,
) -> bytes:
    """Return a hash (16 bytes, xxh3_128) of the formats and bytes of all files.

    `kind_of` gives the format of a file; without it, suffixes stand for formats. `hashed` receives the block hashes of
    each file, by its path. Raises DataError for a file that cannot be read.
    """
    import xxhash

    digest = xxhash.xxh3_128(str(len(files)).encode())
    for path in files.values():
        mark = "".join(path.suffixes[-2:]).lower().encode("utf-8", "replace")
        mark = mark if kind_of is None else kind_mark(path, kind_of(path))
        with opened(path) as stream:
            content, blocks = hash_file(stream)
        if hashed is not None:
            hashed[str(path)] = blocks
        digest.update(mark + content)
    return digest.digest()


def _matches(
    path: str, key: str, passed_over: Counter[str], is_read: Callable[[str], object]
) -> tuple[list[Path], Path]:
    """Return the files that a path or pattern names, and the folder of their relative names."""
    root = Path(path).expanduser()
    if root.is_dir():
        files = list(_walk(root, passed_over))
        passed_over.update(suffix_of(file.name) for file in files if not is_read(file.name))
        return [file for file in files if is_read(file.name)], root
    if root.exists():
        if not root.is_file():
            kind = untrusted_files.kind_of_file(root.stat().st_mode)
            reason = ValueError(f"it is {kind}, and only a regular file is read here")
            raise not_regular(f"{key}={printable(path)}", reason)
        return [root], root.parent
    if not glob.has_magic(path):
        raise DataError(
            f"{key}={printable(path)} does not exist. Name a file, a folder or a pattern such as 'data/*.txt'."
        )
    matches = map(Path, glob.glob(str(root), recursive=True))  # noqa: PTH207  (Path.glob would match hidden files)
    files = [match for match in matches if _is_regular(match, passed_over)]
    return files, Path(os.path.commonpath([match.parent for match in files])) if files else root


def _walk(folder: Path, passed_over: Counter[str] | None) -> Iterator[Path]:
    """Yield the regular files below a folder, following links to folders, each folder once.

    Other files are counted in `passed_over`; without it, they raise DataError.
    """

    def refuse(error: OSError) -> None:
        raise error  # os.walk would silently omit the folder's documents

    visited: set[Path] = set()
    for current, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = Path(current).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = (Path(current, name) for name in names if not name.startswith("."))
        yield from (file for file in files if _is_regular(file, passed_over))


def _is_regular(file: Path, passed_over: Counter[str] | None) -> bool:
    """Return whether a name leads to a regular file; count anything else, or refuse it."""
    try:
        mode = file.stat().st_mode
    except OSError:
        kind = "broken link"
    else:
        if stat.S_ISREG(mode):
            return True
        kind = untrusted_files.kind_of_file(mode).removeprefix("a ")
    if passed_over is not None:
        passed_over[kind] += 1
    elif kind != "broken link":
        raise not_regular(repr(printable(file)), ValueError(f"it is a {kind}, and only a regular file is read here"))
    return False
