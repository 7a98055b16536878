"""What happens to a curation whose input, disk or process fails: an exit code that says which, and nothing lost."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from curation_documents import lines, settings

from pretrain.data.curation.curate import curate
from pretrain.data.curation.engine import Task
from pretrain.data.curation.verify import verify
from pretrain.data.sources import column_files
from pretrain.errors import CheckpointError, DataError, PretrainError

SCRIPT = Path(__file__).parents[3] / "src" / "curate.py"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}  # fmt: skip
STAGES = (
    "files", "read", "measure", "signatures", "decide", "exact", "bands", "buckets", "components", "members", "routed",
    "near", "paragraphs", "repeats", "write",
)  # fmt: skip


def run(path: Path | str, output: Path, *more: str, kind: str = "jsonl") -> dict[str, Any]:
    return curate(settings(path, output, *more, kind=kind), report=lambda line: None)


def failure(path: Path | str, output: Path, *more: str, kind: str = "jsonl") -> tuple[int, str]:
    """Return exit code and message of a curation that fails; there must be no manifest and no half-written file."""
    with pytest.raises(PretrainError) as caught:
        run(path, output, *more, kind=kind)
    assert not (output / "manifest.json").exists()
    assert not list(output.glob("work/*/.*.tmp"))
    return caught.value.exit_code, str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [*COMPRESS, "parquet"])
def test_damaged_files_are_named_and_whole_ones_are_then_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / ("pages.parquet" if suffix == "parquet" else f"pages.jsonl.{suffix}")
    kind = "parquet" if suffix == "parquet" else "jsonl"
    if suffix == "parquet":
        texts = [json.loads(line)["text"] for line in lines().splitlines()]
        pq.write_table(pa.table({"text": texts}), path, write_page_checksum=True)
        whole = path.read_bytes()
    else:
        whole = COMPRESS[suffix](lines())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    for number, damaged in enumerate((whole[:-20], whole[: len(whole) // 2], bytes(flipped))):
        path.write_bytes(damaged)
        code, message = failure(path, tmp_path / f"out-{number}", kind=kind)
        assert (code, path.name in message) == (3, True), message
        path.write_bytes(whole)  # then the file is fetched again
        if suffix == "parquet" and number < 2:  # it was refused before anything was read
            assert "cannot be read as parquet: " in message
            assert message.endswith("Fetch it again or leave it out.")
            assert run(path, tmp_path / f"out-{number}", kind=kind)["documents"] == 40
            continue
        with pytest.raises(DataError, match="has changed since this curation began"):
            run(path, tmp_path / f"out-{number}", kind=kind)
    path.write_bytes(whole)
    manifest = run(path, tmp_path / "out", kind=kind)
    assert (manifest["sources"]["web"]["documents"]["read"], manifest["duplicates"]["near"]) == (60, 20)


@pytest.mark.slow
def test_bytes_that_are_no_text_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    good = lines(3).splitlines(keepends=True)
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    address = json.dumps({"text": "one more page with its own words in it", "url": "https://a.org/" + "a" * 1_000_000})
    rest = [b'{"text": "half \\ud800"}\n', b'{"text": "a\\u0000b"}\n', b'{"text": "\xff\xfe"}\n', deep, b"{\n", b"[]\n"]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join([*good, *rest, address.encode(), b"\n"]))
    (folder / "b.jsonl").write_bytes(b"".join(lines(4, seed=1).splitlines(keepends=True)).replace(b"\n", b"\r\n"))
    (folder / "c.jsonl").write_bytes(b"")
    (folder / "\x1b[31mred\nline.jsonl").write_bytes(lines(2, seed=2))
    source = f"sources.web={{kind: jsonl, path: {folder}, license: MIT, url_column: url}}"
    manifest = run(folder, tmp_path / "out", source)
    counts = manifest["sources"]["web"]["documents"]
    assert counts["read"] == 3 + len(rest) + 1 + 4 + 2
    assert counts["unusable"]["lone surrogate"] == counts["unusable"]["NUL character"] == 1
    assert sum(counts["unusable"].values()) == len(rest)
    rows = [row for path in (tmp_path / "out" / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert max(len(row["url"] or "") for row in rows) == 2000
    assert not any("\x1b" in row["origin"] or "\r" in row["text"][-1:] for row in rows)
    assert verify(tmp_path / "out").documents == len(rows)


@pytest.mark.slow
def test_bombs_and_endless_lines_end_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_files, "MAX_DOCUMENT_BYTES", 1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zeros = bytes(1 << 20)
    for suffix, packed in (
        ("gz", gzip.compress(zeros) * 64),
        ("zst", zstandard.ZstdCompressor().compress(zeros * 64)),
    ):
        path = tmp_path / f"bomb.jsonl.{suffix}"
        path.write_bytes(packed)
        code, message = failure(path, tmp_path / f"out-{suffix}")
        assert (code, "as one document" in message) == (3, True), message
    path = tmp_path / "line.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 28)  # no line end in 256 MiB, of a gigabyte's limit scaled down
    code, message = failure(path, tmp_path / "out-line")
    assert (code, "line.jsonl" in message and "as one document" in message) == (3, True), message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.slow
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(lines(3))
    (folder / "loop").symlink_to(folder)
    (folder / "self.jsonl").symlink_to(folder / "self.jsonl")
    (tmp_path / "outside.jsonl").write_bytes(lines(2, seed=1))
    (folder / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    outcome: str | int
    try:
        outcome = run(folder, tmp_path / "out")["sources"]["web"]["documents"]["read"]
    except DataError as error:
        outcome = str(error)
    assert outcome == 5 or "pipe.jsonl" in str(outcome) or "self.jsonl" in str(outcome)
    (folder / "empty").mkdir()
    code, message = failure(folder / "empty", tmp_path / "none")
    assert (code, "has no file to read" in message) == (3, True)
    (folder / "empty" / "nothing.jsonl").write_bytes(b"")
    code, message = failure(folder / "empty", tmp_path / "none")
    assert (code, "no document is left of 0" in message) == (3, True), message
    code, message = failure(folder / "pipe.jsonl", tmp_path / "pipe")
    assert (code, "pipe.jsonl" in message) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("permissions", "Permission denied"), ("read error", "Input/output error"), ("folder", "it is a folder"),
        ("gone", "No such file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_named(
    fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start, or once the curation has begun; whole again, the same command goes on."""
    path, output = tmp_path / "raw" / "b.jsonl", tmp_path / "out"
    path.parent.mkdir()
    (path.parent / "a.jsonl").write_bytes(lines(30))
    path.write_bytes(lines(30, seed=1))
    with monkeypatch.context() as patch:
        if fault == "permissions":
            path.chmod(0)
            if os.geteuid() == 0:  # whom permissions do not bind
                patch.setattr(os, "open", _as_nobody)
        elif fault == "read error":
            path.rename(tmp_path / "whole")
            path.symlink_to("/proc/self/mem")  # a regular file whose first bytes no process can read
        else:
            finish = Task.finish

            def finish_and_lose(task: Task, counts: dict[str, Any]) -> None:
                finish(task, counts)
                if task.folder.name.startswith("files-"):
                    path.rename(tmp_path / "whole")
                    if fault == "folder":
                        path.mkdir()

            patch.setattr(Task, "finish", finish_and_lose)
        code, message = failure(path.parent, output)
        named = "/mem" if fault == "read error" else "b.jsonl"  # what a link names
        assert (code, named in message, reason in message) == (3, True, True), message
    if fault == "permissions":
        path.chmod(0o600)
    else:
        if path.is_dir():
            path.rmdir()
        (tmp_path / "whole").rename(path)
    manifest = run(path.parent, output)
    assert (manifest["documents"], manifest["duplicates"]["near"]) == (40, 20)


_open = os.open


def _as_nobody(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
    """Open a file as a user to whom others' private files are closed; folders on the way stay root's to pass."""
    if os.fspath(path).endswith("b.jsonl") and not Path(path).stat().st_mode & 0o004:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return _open(path, flags, mode, **more)


@pytest.mark.slow
def test_texts_of_other_encodings_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    text = "Über die Brücke führte früher ein schmaler Weg, den nur wenige kannten. "
    encodings = ("utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift-jis")
    for number, encoding in enumerate(encodings):
        written = (
            f"Text {number}: {text}"
            if encoding != "shift-jis"
            else "橋を渡る細い道は、昔はほとんど知られていなかった。"
        )
        (folder / f"{encoding}.txt").write_bytes(written.encode(encoding))
    manifest = run(folder, tmp_path / "out", "duplicates.near=false", kind="text_files")
    counts = manifest["sources"]["web"]["documents"]
    assert (counts["read"], counts["kept"], sum(counts["unusable"].values())) == (len(encodings), 2, len(encodings) - 2)
    rows = [row for path in (tmp_path / "out" / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    assert [row["text"] for row in rows] == [f"Text {number}: {text}" for number in (1, 0)]


@pytest.mark.slow
def test_archives_and_endless_windows_are_refused(tmp_path: Path) -> None:
    header = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xff"  # zstd, and a window of 3.75 TB
    for name, content, reason in (
        ("window.jsonl.zst", header + b"\x01\x00\x00", "cannot be read to its end"),
        ("pages.zip", _zipped(lines(3)), "no document is left"),
        ("nested.jsonl.gz", gzip.compress(_zipped(lines(3))), "no document is left"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        code, message = failure(path, tmp_path / f"out-{name}")
        assert (code, reason in message) == (3, True), message


def _zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pages.jsonl", content)
    return packed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_in_a_stage_loses_nothing(
    stage: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start goes on, and makes the same corpus as if nothing had been."""
    (tmp_path / "a.jsonl").write_bytes(lines(15))
    finish = Task.finish

    def full(task: Task, counts: dict[str, Any]) -> None:
        if task.folder.name.startswith(f"{stage}-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(task, counts)

    monkeypatch.setattr(Task, "finish", full)
    code, message = failure(tmp_path / "a.jsonl", tmp_path / "out", "unit_bytes=4000")
    assert (code, f"{stage}-" in message and "it goes on where it was" in message) == (4, True), message
    monkeypatch.undo()
    manifest = run(tmp_path / "a.jsonl", tmp_path / "out", "unit_bytes=4000")
    assert manifest["duplicates"]["near"] == 5
    reference = tmp_path_factory.getbasetemp() / "whole"
    if not (reference / "manifest.json").exists():
        run(tmp_path / "a.jsonl", reference, "unit_bytes=4000")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (reference / "manifest.json").read_bytes()


@pytest.mark.slow
def test_the_lock_is_free_after_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"no json\n")
    for _ in range(2):
        code, message = failure(tmp_path / "a.jsonl", tmp_path / "out")
        assert (code, "no document is left of 1: none can be used: 1" in message) == (3, True)
    assert issubclass(CheckpointError, PretrainError)


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").write_bytes(lines(3))
    (tmp_path / "raw" / "b.txt").write_text("Plain text.")
    (tmp_path / "raw" / "c.pdf").write_text("none")
    said = list[str]()
    curate(settings(tmp_path / "raw", tmp_path / "out", kind="text_files"), said.append)
    assert "sources.web: files passed over: 1 (1 .pdf)" in said
    curate(settings(tmp_path / "raw", tmp_path / "hub", kind="hugging_face"), said.append)
    unread = f"sources.web.path={tmp_path / 'raw'}: files that the datasets library puts into no split are not read"
    assert f"{unread}: 1 .txt. To read all files of a folder: sources.web.kind=text_files" in said
