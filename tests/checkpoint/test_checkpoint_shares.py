"""A checkpoint written by several processes is as complete as one written by one process."""

import errno
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import write as checkpoint_writing
from pretrain.checkpoint.read import open_checkpoint
from pretrain.checkpoint.safetensors_file import TensorShard
from pretrain.checkpoint.write import Contents, Writers, write
from pretrain.errors import CheckpointError
from pretrain.files.records import sealed


def save_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")


class TwoProcesses:
    """Two threads that write one checkpoint as two processes would: each with its own share."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)
        self.given: list[Any] = [None, None]

    def all_gather(self, rank: int, value: Any) -> list[Any]:
        self.given[rank] = value
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found

    def write(self, folder: Path, shares: list[dict[str, dict[str, Any]]]) -> list[Path | CheckpointError]:
        def one(rank: int) -> Path | CheckpointError:
            try:
                contents = Contents(shares[rank], {"config": {}, "progress": {}}, save_tokenizer)
                return write(folder, 12, contents, Writers(rank, 2, partial(self.all_gather, rank)))
            except CheckpointError as error:
                return error

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(one, range(2)))


WHOLE = torch.arange(15.0).view(5, 3)


def halves() -> list[dict[str, dict[str, Any]]]:
    """Return the shares of two processes: three rows of a matrix and two, what is not sharded with the first."""
    pieces = [TensorShard(WHOLE[:3], WHOLE.shape, (0, 0)), TensorShard(WHOLE[3:], WHOLE.shape, (3, 0))]
    first = {"model": {"weight": pieces[0]}, "optimizer": {"weight/step": torch.tensor(1.0)}, "random": {"0/a": WHOLE}}
    return [first, {"model": {"weight": pieces[1]}, "optimizer": {}, "random": {}}]


def test_each_process_writes_its_share(tmp_path: Path) -> None:
    assert TwoProcesses().write(tmp_path, halves()) == [tmp_path / "step-00000012"] * 2
    found = open_checkpoint(tmp_path / "step-00000012")
    assert sorted(path.name for path in found.folder.glob("*.safetensors")) == [
        "model-rank-00000.safetensors", "model-rank-00001.safetensors", "optimizer.safetensors", "random.safetensors",
    ]  # fmt: skip
    assert found.manifest["ranks"] == 2
    assert torch.equal(found.tensors("model")["weight"], WHOLE)
    assert found.tensors("optimizer").keys() == {"weight/step"}
    assert TwoProcesses().write(tmp_path, halves()) == [found.folder] * 2  # is there already


@pytest.mark.fault("F03")
def test_a_missing_share_is_noticed(tmp_path: Path) -> None:
    TwoProcesses().write(tmp_path, halves())
    folder = tmp_path / "step-00000012"
    (folder / "model-rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-rank-00001\.safetensors is missing"):
        open_checkpoint(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["model-rank-00001.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(CheckpointError, match=r"holds 9 of the 15 numbers of 'weight': a file is missing"):
        open_checkpoint(folder).tensors("model")


@pytest.mark.fault("F04")
@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_cannot_write_all_of_them_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    original = checkpoint_writing.write_tensors

    def full(path: Path, tensors: Any) -> str:
        if path.name == f"model-rank-0000{rank}.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, tensors)

    monkeypatch.setattr(checkpoint_writing, "write_tensors", full)
    found = TwoProcesses().write(tmp_path, halves())
    assert all(isinstance(error, CheckpointError) for error in found)
    assert str(found[0]) == str(found[1])
    assert "No space left on device" + (" (rank 1)" if rank else "") + ". It needs" in str(found[0])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_not_all_machines_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writing, "_begin", lambda *arguments: False)
    found = TwoProcesses().write(tmp_path, halves())
    assert "the run folder is not on storage that all machines share" in str(found[1])


MEASURED = """
import sys
from pathlib import Path
import torch
from pretrain.checkpoint.write import Contents, write
from pretrain.training.host_copies import HostCopies
from pretrain.training.run_state import RunState

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

def tokenizer(folder):
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")

parts = {"model": {f"w{number}": torch.randn(1_000_000) for number in range(60)}}
size, before, folder = 240_000_000, peak(), Path(sys.argv[1])
manifest = {"config": {}, "progress": {}}
write(folder, 1, Contents(parts, manifest, tokenizer))
at_once = peak() - before
state = RunState.__new__(RunState)
state._copies = HostCopies()
for step in (2, 3):
    write(folder, step, Contents(state._copy(parts), manifest, tokenizer))
print(at_once / size, (peak() - before) / size)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the highest memory is asked of Linux")
def test_saving_takes_no_memory_but_for_one_copy_in_the_background(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    at_once, in_background = map(float, found.stdout.split())
    assert at_once < 0.15
    assert 0.9 < in_background < 1.15
