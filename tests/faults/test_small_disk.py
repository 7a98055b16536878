"""A disk that is too small for the next checkpoint."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.config import BytesTokenizerConfig, Mode, TextFilesConfig
from pretrain.data.prepare import prepare
from pretrain.errors import CheckpointError
from pretrain.training.train import run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a file system of 4 MiB in memory; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.fault("F04")
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_the_run_ends_and_the_checkpoint_before_goes_on(tiny, small_disk: Path, asynchronous: str):
    words = [
        "model=gpt_nano", "model.d_model=96", "optimizer=adamw", "logger=none", f"paths.run_dir={small_disk / 'run'}",
        f"checkpoint.asynchronous={asynchronous}",
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match=r"step 8 could not be written .*No space left on device\. It needs") as e:
        run(tiny.plan(*words))
    assert e.value.exit_code == 4
    assert [path.name for path in (small_disk / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert open_checkpoint(small_disk / "run").step == 4
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert run(tiny.plan(*words, "resume=auto")).steps == 12


@pytest.mark.fault("F04")
@pytest.mark.parametrize("mode", list(Mode))
def test_prepared_data_that_finds_no_room_is_told(tmp_path: Path, small_disk: Path, mode: Mode):
    text = tmp_path / "text.txt"
    text.write_text("All work and no play.\n\n" * 300_000, encoding="utf8")  # 2 bytes for each of its 6.9 MB
    data = TextFilesConfig(path=str(text), mode=mode)
    told = rf"^prepared data cannot be written to {small_disk}: %s\. Make it writable and free some space, .*cache_dir="
    with pytest.raises(CheckpointError, match=told % "No space left on device"):
        prepare(data, BytesTokenizerConfig(), small_disk, report=lambda line: None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=told % "Read-only file system"):
        prepare(data, BytesTokenizerConfig(), small_disk, report=lambda line: None)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    prepared = prepare(data, BytesTokenizerConfig(), small_disk, report=lambda line: None)
    assert (prepared.stream or prepared.train[""]).n_tokens > 6_000_000
    assert not list(small_disk.rglob("*.tmp*"))
