"""The input of a curation in units: what one task reads, about equally large whatever the files are.

A file is cut between records: JSON lines at line ends, parquet between row groups. A compressed file and a table of
text are read whole. Small files share a unit. Every file is hashed in blocks before, and compared as it is read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from pretrain.data.config import Format, HuggingFaceConfig
from pretrain.data.curation.config import CorpusSource, FilesSource, HuggingFaceSource
from pretrain.data.curation.engine import Counts, Stage, Task, file_of
from pretrain.data.curation.web.warc import MEMBER_HEAD_BYTES, record_start
from pretrain.data.sources.compressed_files import compression_of, head_of, opened
from pretrain.data.sources.corpus_files import find_files
from pretrain.data.sources.file_formats import FileKind, kind_of_file
from pretrain.data.sources.hugging_face import HuggingFace, files_digest
from pretrain.data.sources.source import counted
from pretrain.data.sources.unchanged_files import BLOCK_BYTES, HashedFile, hash_file
from pretrain.errors import ConfigError, DataError
from pretrain.files.atomic_files import write_atomically
from pretrain.files.untrusted_files import read_json

FILES_VERSION, UNITS_VERSION = 1, 1
FILES_OF_A_TASK = 1000
HUGGING_FACE = "hugging_face"
HTML, WARC, WET = "html", "warc", "wet"
WEB_FILES = {
    HTML: re.compile(r"\.(?:x?html?)(?:\.(?:gz|xz|zst|zstd|bz2))?$", re.IGNORECASE),
    WARC: re.compile(r"\.warc(?:\.(?:gz|zst|zstd|xz))?$", re.IGNORECASE),
    WET: re.compile(r"\.wet(?:\.(?:gz|zst|zstd|xz))?$", re.IGNORECASE),
}  # of a folder


@dataclass(frozen=True)
class Part:
    """A part of a file, or all of it."""

    file: str  # its name within the source
    path: str
    form: str  # a Format, or hugging_face
    compression: str | None
    start: int  # bytes, or row groups of parquet
    stop: int
    record: int  # number of its first line or row, from 0
    task: int  # of the stage `files`, which has the block hashes
    block: int  # first block hash of the file there
    size: int  # bytes of the file


@contextmanager
def source_errors(name: str) -> Iterator[None]:
    """Have errors name the settings of a source as a user writes them: sources.<name>.path=..."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(_in_source(name, str(error))) from error


def _in_source(name: str, text: str) -> str:
    """Return a text about settings of data with those of a source of a curation."""
    text = text.replace("data=text_files", f"sources.{name}.kind=text_files")
    return text.replace("sources.<name>.", f"sources.{name}.").replace("data.", f"sources.{name}.")


def files_stage(
    sources: Mapping[str, CorpusSource], unit_bytes: int, report: Callable[[str], object] = lambda line: None
) -> Stage:
    """Return the stage that hashes the files of all sources and finds where to cut them; report those not read."""
    tasks: list[list[list[Any]]] = [[]]
    total = 0
    for name in sorted(sources):
        for file in _listed(name, sources[name], report):
            if tasks[-1] and (total >= 4 * unit_bytes or len(tasks[-1]) == FILES_OF_A_TASK):
                tasks.append([])
                total = 0
            tasks[-1].append([name, *file])
            total += file[2]
    reading = {name: _hugging_face_settings(source) for name, source in sources.items()}
    settings = {"files": tasks, "unit_bytes": unit_bytes, "reading": reading}
    return Stage("files", inventory, len(tasks), FILES_VERSION, settings, {})


def _listed(name: str, source: CorpusSource, report: Callable[[str], object]) -> list[list[Any]]:
    """Return name, path, size, time of change and format of each file of a source.

    The files of a folder of Hugging Face are one, whose time is a hash of all.
    """
    with source_errors(name):
        if isinstance(source, HuggingFaceSource):
            folder = Path(source.path).expanduser()
            named = [folder.name if folder.is_dir() else source.path, source.subset, source.split]
            changed = files_digest(folder) if folder.is_dir() else 0
            for remark in HuggingFace(HuggingFaceConfig(**_hugging_face_settings(source))).remarks():
                report(_in_source(name, remark))
            return [[" ".join(filter(None, [*named, source.revision])), source.path, 0, changed, HUGGING_FACE]]
        is_read = WEB_FILES[source.kind].search if source.kind in WEB_FILES else None
        form = source.format.name if isinstance(source, FilesSource) else source.kind
        listed = []
        passed_over = Counter[str]()
        for file, path in find_files(source.path, "data.path", passed_over, is_read).items():
            status = path.stat()
            listed.append([file, str(path.resolve()), status.st_size, status.st_mtime_ns, form])
        if passed_over:
            report(f"sources.{name}: files passed over: {passed_over.total():,} ({counted(passed_over)})")
        return listed


def _hugging_face_settings(source: CorpusSource) -> dict[str, Any]:
    if not isinstance(source, HuggingFaceSource):
        return {}
    names = ("path", "subset", "split", "revision")
    return {name: getattr(source, name) for name in names}


def inventory(task: Task) -> Counts:
    """Hash the files of a task in blocks, and list each with its format and the positions to cut it at."""
    blocks: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
    count = 0
    found = []
    for source, name, path, _, _, form in task.settings["files"][task.index]:
        with source_errors(source):
            if form == HUGGING_FACE:
                identity = HuggingFace(HuggingFaceConfig(**task.settings["reading"][source])).fingerprint()
                file = {"form": form, "compression": None, "bytes": 0, "xxh3_128": identity, "cuts": [[0, 1, 0]]}
            else:
                if form in WEB_FILES:
                    file, hashes = _hashed_web(Path(path), form, task.settings["unit_bytes"])
                else:
                    kind = kind_of_file(Path(path), Format[form])
                    file, hashes = _hashed(Path(path), kind, task.settings["unit_bytes"])
                blocks.append(hashes)
        found.append({"source": source, "file": name, "path": path, "block": count, **file})
        count += 0 if form == HUGGING_FACE else len(hashes)
    hashes = np.concatenate([np.empty(0, np.uint64), *blocks])
    task.output("blocks").write_bytes(hashes.astype("<u8").tobytes())
    task.output("files.json").write_text(json.dumps(found), encoding="utf8")
    return {"files": len(found), "bytes": sum(file["bytes"] for file in found)}


def _hashed(path: Path, kind: FileKind, unit_bytes: int) -> tuple[dict[str, Any], Any]:
    """Return a file's entry of the inventory and its block hashes."""
    lines = _LineCuts(unit_bytes) if kind.form is Format.jsonl and kind.compression is None else None
    with opened(path) as stream:
        digest, hashed = hash_file(stream, lines.read if lines else None)
        if kind.form is Format.parquet:
            stream.seek(0)
            cuts = _row_groups(stream, str(path), unit_bytes)
        else:
            cuts = lines.to_the_end() if lines else [[0, hashed.size, 0]]
    entry = {
        "form": kind.form.name, "compression": kind.compression, "bytes": hashed.size, "xxh3_128": digest.hex(),
        "cuts": cuts,
    }  # fmt: skip
    return entry, hashed.blocks


def _hashed_web(path: Path, form: str, unit_bytes: int) -> tuple[dict[str, Any], Any]:
    """Return the entry of a file of pages or of a crawl, and its block hashes."""
    with opened(path) as stream:
        compression = compression_of(head_of(stream, 16))
        members = _MemberCuts(unit_bytes) if form != HTML and compression == "gzip" else None
        digest, hashed = hash_file(stream, members.read if members else None)
    cuts = members.to_the_end() if members else [[0, hashed.size, 0]]
    entry = {"form": form, "compression": compression, "bytes": hashed.size, "xxh3_128": digest.hex(), "cuts": cuts}
    return entry, hashed.blocks


class _MemberCuts:
    """Ranges of a compressed crawl, each of whole gzip members that begin with a record."""

    def __init__(self, unit_bytes: int) -> None:
        self._unit_bytes = unit_bytes
        self._cuts: list[list[int]] = []
        self._start = self._size = 0  # of the range that is not complete; read so far
        self._kept = b""  # the end of what was read, where a member may begin

    def read(self, block: bytes) -> None:
        """Read the next block of the file."""
        data, offset = self._kept + block, self._size - len(self._kept)
        self._size += len(block)
        at = max(0, self._start + self._unit_bytes - offset)
        while at < len(data) and (found := record_start(data[at:])) is not None:
            start = offset + at + found
            self._cuts.append([self._start, start, 0])
            self._start = start
            at += found + self._unit_bytes
        self._kept = data[-MEMBER_HEAD_BYTES:]

    def to_the_end(self) -> list[list[int]]:
        """Return all ranges, the last up to the end of what was read."""
        return [*self._cuts, [self._start, self._size, 0]]


class _LineCuts:
    """Ranges of a file of JSON lines, each of whole lines: first byte, end, and number of the first line."""

    def __init__(self, unit_bytes: int) -> None:
        self._unit_bytes = unit_bytes
        self._cuts: list[list[int]] = []
        self._start, self._first = 0, 0  # of the range that is not complete
        self._size, self._lines = 0, 0  # read so far

    def read(self, block: bytes) -> None:
        """Read the next block of the file; at most one range ends in it."""
        due = max(0, self._start + self._unit_bytes - 1 - self._size)
        end = block.find(b"\n", due) + 1 if due < len(block) else 0
        if end:
            self._cuts.append([self._start, self._size + end, self._first])
            self._start, self._first = self._size + end, self._lines + block.count(b"\n", 0, end)
        self._lines += block.count(b"\n")
        self._size += len(block)

    def to_the_end(self) -> list[list[int]]:
        """Return all ranges, the last up to the end of what was read."""
        rest = [[self._start, self._size, self._first]] if self._start < self._size or not self._cuts else []
        return self._cuts + rest


def _row_groups(stream: IO[bytes], path: str, unit_bytes: int) -> list[list[int]]:
    """Return ranges of the row groups of a parquet file, each with the number of its first row."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.ParquetFile(stream).metadata
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path} cannot be read as parquet: {reason}. Fetch it again or leave it out.") from error
    cuts, start, size, first, rows = [], 0, 0, 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= unit_bytes or number == metadata.num_row_groups - 1:
            cuts.append([start, number + 1, first])
            start, size, first = number + 1, 0, rows
    return cuts or [[0, 0, 0]]


def read_inventory(folder: Path, tasks: int) -> list[dict[str, Any]]:
    """Return the entries of all files, each with the number of its task, sorted by source and name."""
    entries = [
        entry | {"task": task}
        for task in range(tasks)
        for entry in read_json(file_of(folder, task, "files.json"), 1 << 30)
    ]
    return sorted(entries, key=lambda entry: (entry["source"], entry["file"]))


def write_units(work: Path, entries: list[dict[str, Any]], unit_bytes: int) -> tuple[str, int]:
    """Write one file for each unit; return their folder's name and how many there are."""
    units: list[dict[str, Any]] = []
    room = 0
    for entry in entries:
        for start, stop, record in entry["cuts"]:
            if room <= 0 or units[-1]["source"] != entry["source"]:
                units.append({"source": entry["source"], "parts": []})
                room = unit_bytes
            part = Part(
                entry["file"], entry["path"], entry["form"], entry["compression"], start, stop, record, entry["task"],
                entry["block"], entry["bytes"],
            )  # fmt: skip
            units[-1]["parts"].append(asdict(part))
            room -= stop - start if entry["form"] != "parquet" else unit_bytes
    contents = [json.dumps(unit, sort_keys=True).encode() for unit in units]
    identity = [[entry["file"], entry["xxh3_128"]] for entry in entries]  # paths may change, contents may not
    key = xxhash.xxh3_128_hexdigest(json.dumps([UNITS_VERSION, identity]).encode() + b"".join(contents))
    folder = work / f"units-{key[:20]}"
    folder.mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(contents):
        path = file_of(folder, index, "unit.json")
        if not path.exists():
            write_atomically(path, content)
    return folder.name, len(units)


def read_unit(task: Task) -> tuple[str, list[Part]]:
    """Return the source and the parts of the task's unit."""
    unit = read_json(task.input("units", "unit.json"), 1 << 28)
    return unit["source"], [Part(**part) for part in unit["parts"]]


def hashes_of(task: Task, part: Part) -> HashedFile:
    """Return the block hashes of a part's file as it was when the curation began."""
    path, count = task.input("files", "blocks", part.task), -(-part.size // BLOCK_BYTES)
    return HashedFile(part.size, np.fromfile(path, "<u8", count, offset=8 * part.block).astype(np.uint64))
