"""A checkpoint is complete or ignored; an older one is deleted only after a newer one is verified."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from saved_checkpoints import contents, flip, save

from pretrain.checkpoint.read import open_checkpoint, step_folders
from pretrain.checkpoint.write import prune, set_aside, sweep, write
from pretrain.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match=r"is after step \d+, from which .* and cannot be set aside"):
        set_aside(parent, last - 1)


def test_a_folder_that_cannot_be_deleted_is_named(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"an old checkpoint below .* could not be deleted: .*busy"):
        prune(run_folder / "checkpoints", 1)
    assert [path.name for path in step_folders(run_folder / "checkpoints")] == ["step-00000020"]  # none half-deleted


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
