"""A checkpoint in an object storage is complete or not seen; its copy is verified before it appears."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_storage import URL, FaultyStorage, Killed, steps_at
from fsspec.implementations.memory import MemoryFileSystem

from pretrain.checkpoint.read import open_checkpoint, problem_of, step_folders
from pretrain.checkpoint.remote import (
    DamagedError,
    fetch,
    fetch_newest,
    local_copy,
    local_path,
    newest_run,
    settings_at,
    split_step,
)
from pretrain.checkpoint.upload import Uploads, check_writable, delete_old, upload_checkpoint
from pretrain.checkpoint.write import Contents, write
from pretrain.config.scripts import AverageConfig, CompareConfig, ExportConfig, ReportConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.files.object_storage import RemoteFolder
from pretrain.planning.config import LadderConfig

RUN = RemoteFolder(f"{URL}/gpt/one", retry_s=0.0)


def save(parent: Path, step: int, value: float | None = None) -> Path:
    """Write a checkpoint with one weight, by default its step."""

    def save_tokenizer(folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")

    tensors = {"model": {"weight": torch.full((3,), float(step if value is None else value))}, "optimizer": {}}
    manifest = {"config": {"seed": 1}, "progress": {}, "saved_at": float(step)}
    return write(parent / "checkpoints", step, Contents({**tensors, "random": {}}, manifest, save_tokenizer))


def weight(folder: Path) -> float:
    return float(open_checkpoint(folder).tensors("model")["weight"][0])


def change(name: str, edit: Callable[[bytes], bytes]) -> None:
    """Damage an object behind the library's back."""
    system = MemoryFileSystem()
    (path,) = (each for each in system.store if each.endswith(name))
    system.pipe_file(path, edit(system.cat_file(path)))


def test_a_checkpoint_comes_back_as_it_was(storage: FaultyStorage, tmp_path: Path) -> None:
    local = save(tmp_path / "here", 12)
    upload_checkpoint(local, RUN)
    copy = fetch(newest_run(URL), "step-00000012", tmp_path / "there", replace=False)
    files = {path.relative_to(local): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert files == {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    count = len(storage.requests)
    upload_checkpoint(local, RUN)  # it is there
    assert [name for name, _ in storage.requests[count:]] == ["find", "open"]
    assert fetch(newest_run(URL), "step-00000012", tmp_path / "there", replace=False) == copy


def test_a_killed_upload_is_never_seen_as_a_checkpoint(storage: FaultyStorage, tmp_path: Path) -> None:
    """Killed at each request in turn, and gone on with: at every moment the newest that is seen verifies."""
    old, new = save(tmp_path, 12), save(tmp_path, 20)
    upload_checkpoint(old, RUN)
    for number in range(100):
        storage.kill_at(number)
        try:
            upload_checkpoint(new, RUN)
        except Killed:
            storage.heal()
            assert steps_at() == [12]
            assert weight(local_copy(URL, tmp_path / "cache")) == 12
        else:
            break
    storage.heal()
    assert number > 6
    assert steps_at() == [12, 20]
    assert weight(local_copy(URL, tmp_path / "cache")) == 20


def test_another_checkpoint_of_the_same_step_replaces_it(storage: FaultyStorage, tmp_path: Path) -> None:
    """Killed at each request: a reader sees the old one, the new one or an earlier one, never a mixture."""
    first, second = save(tmp_path / "first", 20), save(tmp_path / "second", 20, value=7)
    upload_checkpoint(save(tmp_path, 12), RUN)
    seen = []
    for number in range(100):
        storage.heal()
        upload_checkpoint(first, RUN)
        storage.kill_at(number)
        try:
            upload_checkpoint(second, RUN)
        except Killed:
            storage.heal()
            seen.append(weight(local_copy(URL, tmp_path / "cache")))
        else:
            break
    storage.heal()
    assert set(seen) == {20.0, 12.0}
    assert weight(local_copy(URL, tmp_path / "cache")) == 7


def test_a_deletion_that_is_killed_leaves_no_damaged_checkpoint(storage: FaultyStorage, tmp_path: Path) -> None:
    for step in (4, 8, 12):
        upload_checkpoint(save(tmp_path, step), RUN)
    RUN.write("checkpoints/step-00000004/notes.txt", b"mine")
    RUN.write("checkpoints/step-00000010/model.safetensors", b"of an upload that was killed")
    for number in range(100):
        storage.kill_at(number)
        try:
            delete_old(RUN, 1, "step-00000012")
        except Killed:
            storage.heal()
            for step, files in newest_run(URL).checkpoints.items():
                assert fetch(newest_run(URL), step, tmp_path / "copies", replace=True)
                assert "manifest.json" in files
        else:
            break
    storage.heal()
    assert steps_at() == [12]
    left = {name for name in RUN.files() if "12" not in name}
    assert left == {"checkpoints/step-00000004/notes.txt"}


def test_the_checkpoint_just_copied_and_with_keep_0_all_stay(storage: FaultyStorage, tmp_path: Path) -> None:
    for step in (4, 8, 12):
        upload_checkpoint(save(tmp_path, step), RUN)
    delete_old(RUN, 0, "step-00000012")
    assert steps_at() == [4, 8, 12]
    delete_old(RUN, 1, "step-00000004")  # of a run that went back
    assert steps_at() == [4, 12]


def test_checkpoints_of_a_course_that_the_run_has_left_are_not_seen(storage: FaultyStorage, tmp_path: Path) -> None:
    """As in its folder: else a machine that has lost the folder goes on with the newest of the other course."""
    for step in (4, 8, 12):
        upload_checkpoint(save(tmp_path / "before", step), RUN)
    lines: list[str] = []
    uploads = Uploads(tmp_path, RUN, 2, (), lines.append)

    def copy(step: int, value: float) -> None:
        uploads.submit(save(tmp_path, step, value))
        assert uploads.finish() is None

    copy(4, 4.0)  # from which it goes on
    assert steps_at() == [4]
    assert lines == [
        "warning: the run goes on from step-00000004. Its later checkpoints in the object storage are set aside, free "
        "to delete: step-00000008, step-00000012"
    ]
    copy(6, 60.0)
    assert weight(fetch_newest(newest_run(URL), tmp_path / "copy", lines.append, replace=True)) == 60
    copy(8, 80.0)
    assert (steps_at(), len(lines)) == ([6, 8], 1)
    hidden = {name for name in RUN.files() if name.endswith(".left") or "12/model" in name}
    assert hidden == {f"checkpoints/step-00000012/{name}" for name in ("manifest.json.left", "model.safetensors")}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        ("20/model.safetensors", flip, "model.safetensors does not match its sha256"),
        ("20/model.safetensors", lambda data: data[:-1], "'model.safetensors' has .* bytes in the manifest, and"),
        ("20/manifest.json", lambda data: data[: len(data) // 2], "manifest.json cannot be read"),
        ("20/manifest.json", lambda data: data.replace(b'"step": 20', b'"step": 21'), "not as it was written"),
        ("20/manifest.json", lambda data: b"x" * 17_000_000, "larger than the 16,000,000 bytes"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    storage: FaultyStorage, tmp_path: Path, name: str, edit: Callable[[bytes], bytes], reason: str
) -> None:
    for step in (12, 20):
        upload_checkpoint(save(tmp_path, step), RUN)
    change(name, edit)
    with pytest.raises(DamagedError, match=f"memory://bucket/logs/gpt/one/checkpoints/step-00000020 .*{reason}"):
        fetch(newest_run(URL), "step-00000020", tmp_path / "copy", replace=False)
    assert not list((tmp_path / "copy").glob("*"))
    lines: list[str] = []
    assert fetch_newest(newest_run(URL), tmp_path / "copy", lines.append, replace=False).name == "step-00000012"
    assert len(lines) == 1
    change("12/model.safetensors", flip)
    with pytest.raises(CheckpointError, match="holds checkpoints, but all are damaged"):
        fetch_newest(newest_run(URL), tmp_path / "other", lines.append, replace=False)


def test_a_checkpoint_that_is_deleted_or_renamed_while_it_is_copied_is_damaged(
    storage: FaultyStorage, tmp_path: Path
) -> None:
    upload_checkpoint(save(tmp_path, 12), RUN)
    found, system = newest_run(URL), MemoryFileSystem()
    (path,) = (each for each in system.store if each.endswith("model.safetensors"))
    system.mv(path.rpartition("/")[0], path.rpartition("/")[0].replace("00012", "00013"), recursive=True)
    with pytest.raises(DamagedError, match=r"step-00000012 cannot be used: .*manifest\.json does not exist"):
        fetch(found, "step-00000012", tmp_path / "copy", replace=False)
    with pytest.raises(DamagedError, match=r"step-00000013 cannot be used: manifest\.json is of step 12\."):
        fetch(newest_run(URL), "step-00000013", tmp_path / "copy", replace=False)
    found = newest_run(URL)
    system.rm(path.replace("00012", "00013"))
    with pytest.raises(DamagedError, match=r"step-00000013 cannot be used: .*model\.safetensors does not exist"):
        fetch(found, "step-00000013", tmp_path / "copy", replace=False)
    assert not list((tmp_path / "copy").glob("*"))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda data: data[: len(data) // 2], "manifest.json cannot be read"),
        (lambda data: data, "has missing mandatory value: data"),  # `save` writes a seed alone
    ],
)
def test_settings_of_a_damaged_checkpoint_are_refused(
    storage: FaultyStorage, tmp_path: Path, edit: Callable[[bytes], bytes], reason: str
) -> None:
    upload_checkpoint(save(tmp_path, 12), RUN)
    change("manifest.json", edit)
    for url in (RUN.url, f"{RUN.url}/checkpoints/step-00000012"):
        with pytest.raises(DamagedError, match=rf"^{url} cannot be used: .*{reason}"):
            settings_at(url)


def test_a_manifest_cannot_name_files_elsewhere(storage: FaultyStorage, tmp_path: Path) -> None:
    from pretrain.files.records import sealed

    upload_checkpoint(save(tmp_path, 12), RUN)

    def add(data: bytes) -> bytes:
        manifest = json.loads(data)
        manifest["files"]["../../../out"] = {"bytes": 1, "sha256": "0"}
        return json.dumps(sealed(manifest)).encode()

    change("manifest.json", add)
    with pytest.raises(DamagedError, match=r"'\.\./\.\./\.\./out' has 1 bytes in the manifest, and no such file"):
        fetch(newest_run(URL), "step-00000012", tmp_path / "copy", replace=False)


def test_bytes_that_change_on_the_way_are_found_before_the_manifest(
    storage: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = MemoryFileSystem.put_file
    local = save(tmp_path, 12)

    def damaging(system: MemoryFileSystem, path: str, to: str, **named: object) -> None:
        put(system, path, to, **named)
        system.pipe_file(to, flip(system.cat_file(to)))

    monkeypatch.setattr(MemoryFileSystem, "put_file", damaging)
    with pytest.raises(CheckpointError, match=r"one/checkpoints/step-00000012/\S+ was written, and other bytes are"):
        upload_checkpoint(local, RUN)
    assert steps_at() == []


def test_a_folder_of_another_run_is_not_written_to(storage: FaultyStorage, tmp_path: Path) -> None:
    upload_checkpoint(save(tmp_path / "a", 12), RUN)
    other = save(tmp_path / "b", 12, value=5)
    with pytest.raises(CheckpointError, match=r"is not the checkpoint memory://.*paths\.run_dir=<folder>"):
        fetch(newest_run(URL), other.name, other.parent, replace=False)
    assert weight(other) == 5


def test_the_cache_follows_the_storage(storage: FaultyStorage, tmp_path: Path) -> None:
    for step in (4, 8):
        upload_checkpoint(save(tmp_path, step), RUN)
    one = local_copy(URL, tmp_path / "cache", last=2)
    assert [path.name for path in step_folders(one / "checkpoints")] == ["step-00000004", "step-00000008"]
    upload_checkpoint(save(tmp_path, 12), RUN)
    delete_old(RUN, 1, "step-00000012")
    assert local_copy(RUN.url, tmp_path / "cache") == one
    assert [path.name for path in step_folders(one / "checkpoints")] == ["step-00000012"]
    (one / "checkpoints" / "step-00000012" / "model.safetensors").write_bytes(b"damaged")
    assert weight(local_copy(f"{RUN.url}/checkpoints/step-00000012", tmp_path / "cache")) == 12
    with pytest.raises(CheckpointError, match=r"step-00000004 does not exist, .* There are: step-00000012\."):
        local_copy(f"{RUN.url}/checkpoints/step-00000004", tmp_path / "cache")
    with pytest.raises(CheckpointError, match="memory://bucket/none holds no run with a complete checkpoint"):
        local_copy("memory://bucket/none", tmp_path / "cache")
    assert local_path("logs/a", tmp_path) == Path("logs/a")


def test_of_a_folder_of_runs_the_one_that_was_saved_last_is_taken(storage: FaultyStorage, tmp_path: Path) -> None:
    upload_checkpoint(save(tmp_path / "late", 20), RemoteFolder(f"{URL}/gpt/a"))
    upload_checkpoint(save(tmp_path / "early", 12), RemoteFolder(f"{URL}/gpt/b"))
    lines: list[str] = []
    assert weight(local_copy(URL, tmp_path / "cache", lines.append)) == 20
    assert lines == [f"taking the newest run below {URL}: {URL}/gpt/a"]


def test_an_address_is_split_at_its_step() -> None:
    assert split_step("s3://b/run/checkpoints/step-00000012/") == ("s3://b/run", "step-00000012")
    assert split_step("s3://b/run/") == ("s3://b/run", None)
    assert split_step("s3://b/step-00000012") == ("s3://b/step-00000012", None)


def uploads(folder: Path, lines: list[str], keep: int = 2) -> Uploads:
    return Uploads(folder, RUN, keep, ("config.yaml",), lines.append)


@pytest.mark.slow
def test_a_slow_storage_gets_the_newest_checkpoint(storage: FaultyStorage, tmp_path: Path) -> None:
    """One is copied, one waits, those between are left out; neither may be deleted meanwhile."""
    (tmp_path / "config.yaml").write_text("seed: 1")
    saved = {step: save(tmp_path, step) for step in (4, 8, 12, 16)}
    storage.slow_down(0.1)
    copying = uploads(tmp_path, [])
    copying.submit(saved[4])
    deadline = time.monotonic() + 60
    while not any("step-00000004" in path for _, path in storage.requests):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for step in (8, 12, 16):
        copying.submit(saved[step])
    assert copying.in_use() == {saved[4], saved[16]}
    assert copying.finish() is None
    assert steps_at() == [4, 16]
    assert RUN.read("config.yaml", 100) == b"seed: 1"
    assert not copying.in_use()


def test_a_copy_that_fails_is_reported_and_the_next_one_tried(storage: FaultyStorage, tmp_path: Path) -> None:
    lines: list[str] = []
    copying = uploads(tmp_path, lines)
    storage.refuse(OSError("503 slow down"))
    copying.submit(save(tmp_path, 4))
    problem = copying.finish()
    assert problem is not None
    assert "503 slow down" in problem
    assert lines == [f"warning: step-00000004 is not in the object storage: {problem}"]
    storage.heal()
    copying.submit(save(tmp_path, 8))
    assert copying.finish() is None
    assert steps_at() == [8]
    storage.refuse(OSError("503 slow down"), only=("rm_file",))
    for step in (12, 16):
        copying.submit(save(tmp_path, step))
        assert copying.finish() is None  # all is there, and more than is kept
    assert lines[-1].startswith("warning: old checkpoints in the object storage were not deleted: cannot delete")
    assert steps_at() == [8, 12, 16]
    (tmp_path / "config.yaml").write_text("seed: 1")
    storage.refuse(OSError("503 slow down"))
    assert "config.yaml" in str(copying.finish())


def test_a_storage_that_cannot_be_written_is_found_before_a_run(storage: FaultyStorage, tmp_path: Path) -> None:
    check_writable(RUN)
    assert RUN.files() == {}
    storage.refuse(PermissionError("access denied"), only=("pipe_file",))
    with pytest.raises(CheckpointError, match=r"cannot write \S+/\.probe: access denied"):
        check_writable(RUN)


def test_a_copy_needs_room(storage: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = save(tmp_path, 12)
    upload_checkpoint(local, RUN)

    class Full:
        free = 10

    monkeypatch.setattr("pretrain.checkpoint.remote.shutil.disk_usage", lambda folder: Full)
    with pytest.raises(CheckpointError, match=r"has 0\.0 MiB, and 0\.0 MiB are free below .*paths\.cache_dir"):
        fetch(newest_run(URL), local.name, tmp_path / "copy", replace=False)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be copied to"):
        fetch(newest_run(URL), local.name, tmp_path / "file", replace=False)
    with pytest.raises(CheckpointError, match="cannot be written"):
        local_copy(URL, tmp_path / "file")
    assert problem_of(local) is None


@pytest.mark.parametrize(
    ("kind", "instead"),
    [(AverageConfig, "averaged"), (ExportConfig, "my_model"), (ReportConfig, "report.html"),
     (CompareConfig, "compare.html"), (LadderConfig, "logs/scale/mine")],
)  # fmt: skip
def test_what_a_command_writes_is_no_address(kind: Any, instead: str) -> None:
    """It would be written below a folder called s3: of the working folder."""
    with pytest.raises(ConfigError, match=rf"output=s3://bucket/a is in an object storage, .*output={instead}"):
        kind(output="s3://bucket/a")
