"""Two runs never write to one folder; a killed run does not block it."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from pretrain.errors import CheckpointError
from pretrain.launch.run_folder import storage_errors_of
from pretrain.launch.run_lock import _holder, only_run_in

HOLD = "import sys, time; from pathlib import Path; from pretrain.launch.run_lock import only_run_in\n"
HOLD += "with only_run_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.mark.slow
@pytest.mark.fault("F12")
def test_a_second_run_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError) as caught, only_run_in(tmp_path):
            pass
        assert f"{tmp_path} is in use by another run (process {process.pid} on '{socket.gethostname()}')" in str(
            caught.value
        )
        assert caught.value.exit_code == 4
    finally:
        process.kill()
        process.communicate()
    with only_run_in(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    with only_run_in(tmp_path):
        pass  # and again


def test_an_error_of_the_run_is_none_of_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionError, match="no answer"), only_run_in(tmp_path):
        raise ConnectionError("no answer")
    with only_run_in(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert (tmp_path / "lock").read_text() == ""
    with (
        pytest.raises(
            CheckpointError,
            match=r"lock/below cannot be written: Not a directory\. Try another folder",
        ),
        only_run_in(tmp_path / "lock" / "below"),
    ):
        pass
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "write", Mock(side_effect=full))
    with pytest.raises(CheckpointError, match=r"lock cannot be written: No space left"), only_run_in(tmp_path):
        pass


def test_a_full_disk_names_the_file_of_the_run_folder(tmp_path: Path) -> None:
    inside, full = tmp_path / "report.json", OSError(errno.ENOSPC, "No space left on device")
    for error, told in (
        (OSError(errno.EROFS, "Read-only", str(inside)), rf"{inside} cannot be written: Read-only file system"),
        (full, rf"{tmp_path} cannot be written: No space left on device"),
    ):
        with pytest.raises(CheckpointError, match=told), storage_errors_of(tmp_path):
            raise error
    for other in (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(other)), storage_errors_of(tmp_path):
            raise other


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x", "host": 1}', "\x1b[2J", "9" * 5000])
def test_the_content_of_the_lock_file_is_not_trusted(text: str) -> None:
    assert _holder(text) == "an unknown process"
