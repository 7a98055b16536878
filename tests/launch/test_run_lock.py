"""Two runs never write to one folder; a killed run does not block it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.errors import CheckpointError
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


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x", "host": 1}', "\x1b[2J", "9" * 5000])
def test_the_content_of_the_lock_file_is_not_trusted(text: str) -> None:
    assert _holder(text) == "an unknown process"
