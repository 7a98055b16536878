"""A checkpoint is complete or ignored; an older one is deleted only after a newer one is verified."""

import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.checkpoint import read as checkpoint
from pretrain.checkpoint.read import latest_run, newest, open_checkpoint, read_manifest, step_folders
from pretrain.checkpoint.write import Contents, prune, set_aside, sweep, write
from pretrain.errors import CheckpointError
from pretrain.files.records import SEAL, sealed


def save_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text("{}")


def parts(step: int) -> dict[str, dict[str, Tensor]]:
    return {
        "model": {"weight": torch.full((3, 2), float(step))},
        "optimizer": {"weight/exp_avg": torch.zeros(3, 2), "weight/step": torch.tensor(1.0)},
        "random": {"torch": torch.get_rng_state(), "python_gauss": torch.zeros(0)},
    }


def contents(step: int, save_tokenizer: Callable[[Path], None] = save_tokenizer) -> Contents:
    return Contents(parts(step), {"config": {"seed": 1}, "progress": {"tokens_seen": 7}}, save_tokenizer)


def save(parent: Path, step: int = 12) -> Path:
    return write(parent, step, contents(step))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 12 and 20."""
    for step in (12, 20):
        save(tmp_path / "checkpoints", step)
    return tmp_path


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(sealed(manifest)))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    folder = save(tmp_path)
    assert folder == tmp_path / "step-00000012"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    found = open_checkpoint(folder)
    assert (found.step, found.config, found.progress) == (12, {"seed": 1}, {"tokens_seen": 7})
    assert (found.tokenizer_folder / "tokenizer.json").read_text() == '{"a": 1}'
    for part, tensors in parts(12).items():
        read = found.tensors(part)
        assert read.keys() == tensors.keys()
        assert part == "random" or all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_runs_newest_checkpoint_that_verifies_is_opened(run_folder: Path) -> None:
    assert open_checkpoint(run_folder).step == 20
    model = run_folder / "checkpoints" / "step-00000020" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    found, passed_over = newest(run_folder)
    assert found is not None
    assert found.step == 12
    assert [folder.name for folder, _ in passed_over] == ["step-00000020"]
    copy = shutil.copytree(run_folder / "checkpoints" / "step-00000012", run_folder / "best")
    assert open_checkpoint(run_folder).step == open_checkpoint(copy).step == 12
    with pytest.raises(CheckpointError, match=r"step-00000020 is not a usable checkpoint: model\.safetensors has "):
        open_checkpoint(model.parent)


FILES = ["model.safetensors", "optimizer.safetensors", "random.safetensors", "tokenizer/tokenizer.json",
         "tokenizer/tokenizer_config.json", "manifest.json"]  # fmt: skip


FACTS = {"bytes": 1, "sha256": ""}


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size(path.stat().st_size))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "emptied": cut(lambda size: 0),
    "one byte": cut(lambda size: 1),
    "half": cut(lambda size: size // 2),
    "all but one": cut(lambda size: size - 1),
    "bit flipped": flip,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.fault("F03")
def test_damage_to_any_file_is_found(run_folder: Path, name: str, damage: str) -> None:
    folder = run_folder / "checkpoints" / "step-00000020"
    DAMAGE[damage](folder / name)
    with pytest.raises(CheckpointError, match=r"step-00000020 is not a usable checkpoint: .+\."):
        open_checkpoint(folder)
    assert open_checkpoint(run_folder).step == 12


@pytest.mark.slow
@pytest.mark.fault("F03")
def test_no_bit_of_a_manifest_can_change_what_is_read(run_folder: Path) -> None:
    """Of every byte one bit: the manifest is refused, or holds what it held."""
    folder = run_folder / "checkpoints" / "step-00000020"
    path = folder / "manifest.json"
    good, right = path.read_bytes(), {key: value for key, value in read_manifest(folder).items() if key != SEAL}
    noticed = 0
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_manifest(folder)
            assert {key: found[key] for key in right} == right
        except ValueError:
            noticed += 1
    assert noticed > len(good) // 2


def test_a_manifest_of_an_earlier_version_has_no_hash_of_its_own(run_folder: Path) -> None:
    path = run_folder / "checkpoints" / "step-00000020" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop(SEAL)
    path.write_text(json.dumps(manifest))
    assert open_checkpoint(run_folder).step == 20
    path.write_text(json.dumps(sealed(manifest) | {"config": {"seed": 2}}))
    with pytest.raises(CheckpointError, match=r"manifest\.json is not as it was written: its record_sha256 is that of"):
        open_checkpoint(path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer", "tokenizer/tokenizer.json", "manifest.json", "."])
def test_what_lies_elsewhere_is_not_read(run_folder: Path, name: str) -> None:
    path = run_folder / "checkpoints" / "step-00000020" / name
    path.rename(run_folder / "elsewhere")
    path.symlink_to(run_folder / "elsewhere")
    found, ((_, reason),) = newest(run_folder)
    assert found is not None
    assert found.step == 12
    assert re.search("it is a link, and (links are not|only a regular file is) read|tokenizer is a link, and", reason)


def test_a_file_of_the_tokenizer_that_no_hash_vouches_for_is_refused(run_folder: Path) -> None:
    folder = run_folder / "checkpoints" / "step-00000020"
    (folder / "tokenizer" / ".DS_Store").write_text("")
    assert open_checkpoint(folder).step == 20
    (folder / "tokenizer" / "special_tokens_map.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json does not list tokenizer/special_tokens_map\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_devices_and_fifos_are_not_read(run_folder: Path, name: str) -> None:
    path = run_folder / "checkpoints" / "step-00000020" / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: it is a FIFO"):
        open_checkpoint(path.parent)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: it is a link"):
        open_checkpoint(path.parent)


def test_only_checkpoints_of_ours_are_pruned(run_folder: Path) -> None:
    parent = run_folder / "checkpoints"
    for name in ("step-00000001", "step-00000002.tmp", "step-3.tmp"):
        (parent / name).mkdir()
        (parent / name / "mine.txt").write_text("mine")
    (parent / "step-00000004").symlink_to(save(run_folder / "other", 4))
    (parent / "step-00000005.tmp").symlink_to(save(run_folder / "other", 5))
    (save(parent, 13) / "notes.txt").write_text("mine")
    flip(save(parent, 14) / "manifest.json")
    (parent / "step-00000015.tmp").mkdir()
    (parent / "step-00000015.tmp" / "model.safetensors").write_text("half")
    left = sweep(parent)
    assert {path.name: reason for path, reason in left.items()} == {
        "step-00000002.tmp": "it holds 'mine.txt', which is not a file of a checkpoint",
        "step-00000005.tmp": "it is a link",
    }
    left = prune(parent, keep=1)
    assert {path.name: reason[:20] for path, reason in left.items()} == {
        "step-00000001": "[Errno 2] No such fi",
        "step-00000004": "it is a link, and li",
        "step-00000013": "it holds 'notes.txt'",
        "step-00000014": "manifest.json cannot",
    }
    assert sorted(path.name for path in parent.iterdir()) == [
        "step-00000001", "step-00000002.tmp", "step-00000004", "step-00000005.tmp", "step-00000013", "step-00000014",
        "step-00000020", "step-3.tmp",
    ]  # fmt: skip
    assert len(list((run_folder / "other").glob("step-*/manifest.json"))) == 2


@pytest.mark.parametrize("name", ["step-00000021", "step-00000021.tmp"])
def test_what_is_in_the_way_of_a_checkpoint_is_not_deleted(run_folder: Path, name: str) -> None:
    mine = run_folder / "checkpoints" / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(CheckpointError, match=rf"{name} is in the way: it holds 'mine.txt', which is not a file of a"):
        save(run_folder / "checkpoints", 21)
    assert mine.read_text() == "mine"


@pytest.mark.fault("F19")
@pytest.mark.parametrize("newer", [2, 99])
def test_a_newer_format_is_refused_by_name(run_folder: Path, newer: int) -> None:
    edit_manifest(run_folder / "checkpoints" / "step-00000020", format=newer)
    with pytest.raises(CheckpointError, match=rf"it has format {newer}, and this version reads up to 1") as caught:
        open_checkpoint(run_folder / "checkpoints" / "step-00000020")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "it has format 2, and this version reads up to 1"),
        ({"format": 99, "files": None, "config": None}, "it has format 99, and this version reads up to 1"),
        ({"format": None}, "manifest.json has no format"),
        ({"step": 13}, "manifest.json is of step 13"),
        ({"step": "20"}, "manifest.json has step='20', which is no whole number"),
        ({"files": []}, r"manifest.json has files=\[\], which is no object"),
        ({"files": {}}, "manifest.json lists no model.safetensors"),
        ({"files": {"model.safetensors": {}}}, "files.model.safetensors of manifest.json has no bytes"),
        ({"files": {"model.safetensors": 3}}, "files.model.safetensors of manifest.json is 3, which is no object"),
        ({"files": {"model.safetensors": {"bytes": True, "sha256": ""}}}, "has bytes=True, which is no whole number"),
        ({"files": {"model.safetensors": {"bytes": -1, "sha256": ""}}}, "has bytes=-1, which is below 0"),
        ({"files": {"../step-00000012/manifest.json": FACTS}}, "names a file outside the folder: ../step-00000012"),
        ({"files": {"/etc/passwd": FACTS}}, "names a file outside the folder: /etc/passwd"),
        ({"files": {"a/b/c": FACTS}}, "names a file outside the folder: a/b/c"),
        ({"files": {"gone": FACTS}}, "gone is missing"),
        ({"config": None}, "manifest.json has no config"),
        ({"format": 0}, "manifest.json has format=0, which is below 1"),
        ({"format": 1.0}, "manifest.json has format=1.0, which is no whole number"),
        ({"progress": {"seconds": "1"}}, "progress of manifest.json has seconds='1', which is no number"),
        ({"progress": {"seconds": 10**400}}, "has seconds=1000.*, which is no number"),
        ({"progress": {"tokens_seen": 2**63}}, "has tokens_seen=9223372036854775808, which is no whole number"),
        ({"progress": {"left_out": [1]}}, "has left_out=1, which is no text"),
        ({"progress": {"losses": {}}}, "has losses={}, which is no list"),
        (
            {"progress": {"first_validation": {"val\x1b": None}}},
            r"has first_validation.val.x1b=None, which is no number",
        ),
        ({"progress": None}, "manifest.json has no progress"),
    ],
)
@pytest.mark.fault("F03")
def test_a_manifest_that_does_not_hold_is_refused(run_folder: Path, changes: dict[str, Any], reason: str) -> None:
    folder = run_folder / "checkpoints" / "step-00000020"
    edit_manifest(folder, **changes)
    with pytest.raises(CheckpointError, match=rf"step-00000020 is not a usable checkpoint: .*{reason}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "[" * 100_000, '{"step": 1e999}', "\ud800"])
@pytest.mark.fault("F03")
def test_a_manifest_that_is_no_record_is_refused(run_folder: Path, text: str) -> None:
    folder = run_folder / "checkpoints" / "step-00000020"
    (folder / "manifest.json").write_text(text, encoding="utf8", errors="surrogatepass")
    with pytest.raises(CheckpointError, match=r"step-00000020 is not a usable checkpoint: .+"):
        open_checkpoint(folder)


def test_a_manifest_larger_than_any_of_ours_is_not_read(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read: it is larger than the 100 bytes"):
        open_checkpoint(run_folder / "checkpoints" / "step-00000020")


def test_where_there_is_none_the_reason_is_given(tmp_path: Path, run_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no usable checkpoint\. Its checkpoints folder has none"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=rf"\. The newest run below it is {re.escape(str(run_folder))}\."):
        open_checkpoint(run_folder.parent)
    with pytest.raises(CheckpointError, match=r"step-00000099 is not a usable checkpoint: manifest\.json is missing"):
        open_checkpoint(tmp_path / "step-00000099")
    for folder in step_folders(run_folder / "checkpoints"):
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000020: manifest.json is missing\. step-00000012: manifest"):
        open_checkpoint(run_folder)


def test_a_good_checkpoint_is_never_overwritten_and_a_damaged_one_is(run_folder: Path) -> None:
    folder = run_folder / "checkpoints" / "step-00000020"
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert save(folder.parent, 20) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    flip(folder / "model.safetensors")
    assert save(folder.parent, 20) == folder
    assert open_checkpoint(folder).step == 20


def failing_call(number: int) -> Callable[[int], None]:
    """Return an `os.fsync` whose `number`th call meets a full disk."""
    real, calls = os.fsync, iter(range(1, 1000))

    def fsync(descriptor: int) -> None:
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    return fsync


FLUSHES = (
    9  # three files of tensors, two of the tokenizer and its folder, the manifest, the folder; then, renamed, parent
)


@pytest.mark.parametrize("number", range(1, FLUSHES))
@pytest.mark.fault("F04")
def test_a_disk_that_fills_up_leaves_what_was_there(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = run_folder / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_call(number))
        with pytest.raises(CheckpointError, match=r"checkpoint of step 30 could not be written .*No space left.*MiB"):
            save(folder, 30)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000020"]
    assert open_checkpoint(run_folder).step == 20
    save(folder, 30)
    assert open_checkpoint(run_folder).step == 30


def test_the_last_flush_comes_behind_the_rename(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing_call(FLUSHES))
    with pytest.raises(CheckpointError, match=r"could not be written"):
        save(run_folder / "checkpoints", 30)  # it may not survive a loss of power, which is all that was asked for
    assert open_checkpoint(run_folder).step == 30


@pytest.mark.fault("F04")
def test_a_file_that_may_not_grow_leaves_what_was_there(run_folder: Path) -> None:
    folder = run_folder / "checkpoints"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the generators' states are larger
    try:
        with pytest.raises(CheckpointError, match=r"could not be written .*File too large"):
            save(folder, 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000020"]
    assert open_checkpoint(run_folder).step == 20


def test_the_systems_error_behind_torchs_is_named(tmp_path: Path) -> None:
    def save_tokenizer_like_torch(folder: Path) -> None:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as PyTorch's writer does

    with pytest.raises(CheckpointError, match=r"step 3 could not be written .*Disk quota exceeded\. It needs"):
        write(tmp_path, 3, contents(3, save_tokenizer_like_torch))
    assert not list(tmp_path.iterdir())


def test_whatever_stops_a_write_leaves_nothing_half_done(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 3, contents(3, interrupted))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_write_left_is_no_checkpoint_and_goes_away(run_folder: Path) -> None:
    folder = run_folder / "checkpoints"
    for step in (30, 40):
        shutil.copytree(folder / "step-00000020", folder / f"step-000000{step}.tmp")
    assert open_checkpoint(run_folder).step == 20
    save(folder, 30)
    assert open_checkpoint(run_folder).step == 30
    sweep(folder)
    sweep(folder / "nowhere")
    assert sorted(path.name for path in folder.iterdir()) == [f"step-000000{step}" for step in (12, 20, 30)]


def test_pruning_keeps_the_newest_and_only_once_it_is_known_to_be_good(run_folder: Path) -> None:
    folder = run_folder / "checkpoints"
    save(folder, 100_000_000)  # sorted by step, not by name
    prune(folder, 0)
    prune(folder, 3)
    assert [int(path.name[5:]) for path in step_folders(folder)] == [12, 20, 100_000_000]
    prune(folder, 2)
    assert [int(path.name[5:]) for path in step_folders(folder)] == [20, 100_000_000]
    flip(folder / "step-100000000" / "optimizer.safetensors")
    with pytest.raises(
        CheckpointError, match=r"step-100000000 does not verify after writing, so nothing older was del"
    ):
        prune(folder, 1)
    assert open_checkpoint(run_folder).step == 20


def test_later_checkpoints_are_set_aside_under_names_of_their_own(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = run_folder / "checkpoints"
    names = [path.name for path in step_folders(parent)]
    last = int(names[-1].removeprefix("step-"))
    assert set_aside(parent, last) == []
    assert [path.name for path in set_aside(parent, last - 1)] == [f"{names[-1]}.left"]
    shutil.copytree(parent / f"{names[-1]}.left", parent / names[-1])
    assert [path.name for path in set_aside(parent, last - 1)] == [f"{names[-1]}.left-2"]
    assert [path.name for path in step_folders(parent)] == names[:-1]
    shutil.copytree(parent / f"{names[-1]}.left", parent / names[-1])

    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"is behind step \d+, from which .* and cannot be set aside"):
        set_aside(parent, last - 1)


def test_a_folder_that_cannot_be_deleted_is_named(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"an old checkpoint below .* could not be deleted: .*busy"):
        prune(run_folder / "checkpoints", 1)
    assert [path.name for path in step_folders(run_folder / "checkpoints")] == ["step-00000020"]  # none half-deleted


def test_the_latest_run_is_the_one_that_wrote_last(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run with a checkpoint was found below .*\. Train one: python src"):
        latest_run(tmp_path)
    for age, (run, step) in enumerate([("b/old", 99), ("a/new", 1), ("c/oldest", 5)]):
        manifest = save(tmp_path / run / "checkpoints", step) / "manifest.json"
        os.utime(manifest, (1000.0 - (age - 1) ** 2, 1000.0 - (age - 1) ** 2))
    unfinished = tmp_path / "d" / "checkpoints" / "step-00000001.tmp"
    shutil.copytree(tmp_path / "a/new/checkpoints/step-00000001", unfinished)
    os.utime(unfinished / "manifest.json", (2000.0, 2000.0))
    assert latest_run(str(tmp_path)) == tmp_path / "a" / "new"
