"""The files that a path names: itself, those of a folder, or those that match a pattern; regular files only."""

import glob
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from pretrain.data.sources.compressed_files import not_regular, opened
from pretrain.data.sources.file_formats import COMPRESSIONS, FORMATS, FileKind, is_corpus_file, kind_mark, suffix_of
from pretrain.data.sources.source import counted, printable
from pretrain.data.sources.unchanged_files import HashedFile, hash_file
from pretrain.errors import DataError
from pretrain.files.untrusted_files import kind_of_file


class FilePosition:
    """How far the reading of some files has come, by their bytes on the disk."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._spans: dict[Path, tuple[int, int]] = {}  # where the bytes of each begin and end among all
        self._total = 0
        for path in files.values():
            try:
                end = self._total + path.stat().st_size
            except OSError:  # gone since it was listed: whoever opens it says so
                end = self._total
            self._spans[path] = self._total, end
            self._total = end
        self._start, self._end = 0, 0
        self._file: IO[bytes] | None = None

    def enter(self, path: Path, file: IO[bytes]) -> None:
        """Take note that one of the files has been opened; other files do not count."""
        if path in self._spans:
            (self._start, self._end), self._file = self._spans[path], file

    def share(self) -> float | None:
        """Return the share of all bytes that have been read, 0 to 1; None where nothing has been opened."""
        if self._file is None or not self._total:
            return None
        place = self._end if self._file.closed else self._start + self._file.tell()
        return min(1.0, place / self._total)


def find_files(path: str, key: str, passed_over: Counter[str] | None = None) -> dict[str, Path]:
    """Return the files that `path` (a file, a folder or a pattern) names, by relative name, in sorted order.

    A folder gives its files of known suffix, at any depth, hidden ones left out; a file named directly or matched by
    a pattern is read whatever its suffix. A file reached twice, through links, appears once. What is left out is
    counted in `passed_over`, by suffix or by what it is.
    Raises DataError, naming the setting `key`, where there is none, and where `path` is no regular file.
    """
    left: Counter[str] = Counter()
    try:
        found, root = _matches(path, key, left)
    except OSError as error:
        raise DataError(
            f"{key}={printable(path)} cannot be listed: {error.strerror}. Name a folder that this user can read."
        ) from error
    named = {file.relative_to(root).as_posix(): file for file in found}
    by_depth = sorted(named, key=lambda name: (name.count("/"), name), reverse=True)
    distinct = {named[name].resolve(): name for name in by_depth}  # of a file's names, the shallowest stays
    if not distinct:
        raise DataError(
            f"{key}={printable(path)} has no file to read{f' (passed over: {counted(left)})' if left else ''}. "
            f"Name files that end in one of {' '.join(FORMATS)}, with or without {' '.join(COMPRESSIONS)}."
        )
    if passed_over is not None:
        passed_over.update(left)
    return {name: named[name] for name in sorted(distinct.values())}


def all_files(folder: Path) -> dict[str, Path]:
    """Return every file below a folder, hidden ones left out, by relative name, in sorted order.

    Raises DataError where one of them is a FIFO, a device or a socket, which a library might wait for.
    """
    return dict(sorted((file.relative_to(folder).as_posix(), file) for file in _walk(folder, None)))


def hash_files(
    files: dict[str, Path],
    kind_of: Callable[[Path], FileKind] | None = None,
    hashed: dict[str, HashedFile] | None = None,
) -> bytes:
    """Return a hash (16 bytes, xxh3_128) of the number of files and of each one's format and bytes.

    `kind_of` gives the format; none given: suffixes stand for it. `hashed` takes up what each file was, by its path.
    Raises DataError for a file that cannot be read.
    """
    import xxhash

    digest = xxhash.xxh3_128(str(len(files)).encode())
    for path in files.values():
        mark = "".join(path.suffixes[-2:]).lower().encode("utf-8", "replace")
        mark = mark if kind_of is None else kind_mark(path, kind_of(path))
        with opened(path) as stream:
            content, found = hash_file(stream)
        if hashed is not None:
            hashed[str(path)] = found
        digest.update(mark + content)
    return digest.digest()


def _matches(path: str, key: str, passed_over: Counter[str]) -> tuple[list[Path], Path]:
    """Return the files that a path or pattern names and the folder that their names are relative to."""
    place = Path(path).expanduser()
    if place.is_dir():
        found = list(_walk(place, passed_over))
        passed_over.update(suffix_of(file.name) for file in found if not is_corpus_file(file.name))
        return [file for file in found if is_corpus_file(file.name)], place
    if place.exists():
        if not place.is_file():
            kind = ValueError(f"it is {kind_of_file(place.stat().st_mode)}, and only a regular file is read here")
            raise not_regular(f"{key}={printable(path)}", kind)
        return [place], place.parent
    if not glob.has_magic(path):
        raise DataError(
            f"{key}={printable(path)} does not exist. Name a file, a folder or a pattern such as 'data/*.txt'."
        )
    matches = map(Path, glob.glob(str(place), recursive=True))  # noqa: PTH207  (Path.glob would match hidden files)
    found = [match for match in matches if _is_regular(match, passed_over)]
    return found, Path(os.path.commonpath([match.parent for match in found])) if found else place


def _walk(folder: Path, passed_over: Counter[str] | None) -> Iterator[Path]:
    """Yield the regular files below a folder, following links to folders, each folder once.

    Other files are counted; where there is no counter, DataError.
    """

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
        yield from (file for file in files if _is_regular(file, passed_over))


def _is_regular(file: Path, passed_over: Counter[str] | None) -> bool:
    """Return whether a name leads to a regular file; what else it leads to is counted, or refused."""
    try:
        mode = file.stat().st_mode
    except OSError:
        kind = "broken link"
    else:
        if stat.S_ISREG(mode):
            return True
        kind = kind_of_file(mode).removeprefix("a ")
    if passed_over is not None:
        passed_over[kind] += 1
    elif kind != "broken link":
        raise not_regular(repr(printable(file)), ValueError(f"it is a {kind}, and only a regular file is read here"))
    return False


def hash_corpus(reading: list[str | None], file_sets: Iterable[dict[str, Path]], hash_set: Callable[..., bytes]) -> str:
    """Return the hash of a corpus: of the settings by which its files are read, and of each set of files, in order.

    `hash_set` hashes one set, as `hash_files` does with a kind and a table of what each file was.
    """
    import xxhash

    digest = xxhash.xxh3_128(json.dumps(reading).encode())
    for files in file_sets:
        digest.update(hash_set(files))
    return digest.hexdigest()
