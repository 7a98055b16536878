"""A checkpoint is read back as it was written; one that is damaged, foreign or newer than the program is refused."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import flip, parts, save

from pretrain.checkpoint import read as checkpoint
from pretrain.checkpoint.read import latest_run, newest, open_checkpoint, read_manifest, step_folders
from pretrain.errors import CheckpointError
from pretrain.files.records import SEAL, sealed


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
    with pytest.raises(CheckpointError, match=r"nowhere does not exist\. Name the folder of a run, or one of its"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "exported").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no usable checkpoint\. It has no checkpoints folder\. Name the "):
        open_checkpoint(tmp_path / "exported")
    (tmp_path / "exported" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no usable checkpoint\. Its checkpoints folder has none"):
        open_checkpoint(tmp_path / "exported")
    with pytest.raises(CheckpointError, match=rf"\. The newest run below it is {re.escape(str(run_folder))}\."):
        open_checkpoint(run_folder.parent)
    with pytest.raises(CheckpointError, match=r"step-00000099 is not a usable checkpoint: manifest\.json is missing"):
        open_checkpoint(tmp_path / "step-00000099")
    for folder in step_folders(run_folder / "checkpoints"):
        (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000020: manifest.json is missing\. step-00000012: manifest"):
        open_checkpoint(run_folder)


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
