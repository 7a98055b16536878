"""The error of a run on several processes is that of the process that failed first."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.errors import CheckpointError, DataError, Interrupted, RankLostError
from pretrain.stop_signals import AskedToStop
from pretrain.training import elastic
from pretrain.training.elastic import Failure, first_failure, interruption, lasting_failure


def leave(folder: Path, rank: int, time: float, exit_code: int, message: str) -> None:
    failure = {"time": time, "rank": rank, "exit_code": exit_code, "message": message}
    (folder / f"rank-{rank}.json").write_text(json.dumps(failure))


def test_a_process_that_wrote_no_failure_was_lost(tmp_path: Path):
    failures = tmp_path / "failures"
    failures.mkdir()
    leave(failures, 0, 5.0, 1, "Connection closed by peer")
    error = first_failure(failures, 2, 0, 1)
    assert isinstance(error, RankLostError)
    assert str(error) == "rank 1 was lost; nothing was saved yet"
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    assert (
        str(first_failure(failures, 2, 0, 1)) == "rank 1 was lost; continue from the last checkpoint with resume=auto"
    )
    (failures / "rank-0.json").unlink()
    assert "rank 1 was lost (SIGKILL)" in str(first_failure(failures, 2, 1, -9))


def test_a_lost_process_differs_from_one_that_the_launcher_stopped(tmp_path: Path):
    failures = tmp_path / "failures"
    failures.mkdir()
    leave(failures, 0, 5.0, 143, "SIGTERM at step 15: saved; go on with resume=auto")
    assert "rank 1 was lost (SIGKILL)" in str(first_failure(failures, 2, 1, -9))
    assert isinstance(first_failure(failures, 2, 1, 3), RankLostError)
    assert isinstance(first_failure(failures, 2, 1, -signal.SIGTERM), Interrupted)


@pytest.mark.parametrize(
    ("codes", "lasting"),
    [
        ({0: 1, 1: 1}, None),
        ({0: 1}, None),
        ({0: 143}, None),  # rank 1 was killed, and the launcher stopped rank 0 before it noticed
        ({0: 143, 1: 143}, 143),  # a signal to both of them
        ({0: 3}, 3),  # damaged data, whatever became of rank 1
        ({0: 143, 1: 3}, 3),
    ],
)
def test_a_restart_goes_on_unless_the_failure_would_come_again(codes: dict[int, int], lasting: int | None):
    written = [Failure(0.0, rank, code, "") for rank, code in codes.items()]
    assert lasting_failure(written, ranks=2) == lasting


def test_a_failure_that_its_process_deletes_meanwhile_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The processes of a restart read all failures, and each deletes its own."""
    leave(tmp_path, 0, 5.0, 1, "Connection closed by peer")
    there = [tmp_path / "rank-0.json", tmp_path / "rank-1.json"]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(there))
    assert [failure.rank for failure in elastic._failures(tmp_path)] == [0]
    there[1].write_text("{")
    with pytest.raises(CheckpointError, match=r"rank-1\.json cannot be read"):
        elastic._failures(tmp_path)


def test_the_first_failure_with_a_reason_is_raised(tmp_path: Path):
    leave(tmp_path, 0, 1.0, 1, "Connection closed by peer")
    leave(tmp_path, 2, 3.0, 3, "later")
    leave(tmp_path, 1, 2.0, 3, "shard 7 is damaged")
    error = first_failure(tmp_path, 3, 0, 1)
    assert isinstance(error, DataError)
    assert str(error) == "shard 7 is damaged"


def test_a_signal_keeps_its_exit_code(tmp_path: Path):
    leave(tmp_path, 0, 1.0, 143, "SIGTERM at step 3")
    leave(tmp_path, 1, 1.0, 143, "SIGTERM at step 3")
    error = first_failure(tmp_path, 2, 0, 0)
    assert isinstance(error, Interrupted)
    assert error.exit_code == 143


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143), (signal.SIGHUP, 129)])
def test_processes_that_were_stopped_before_they_began_were_not_lost(tmp_path: Path, number: int, code: int):
    error = interruption(tmp_path / "failures", AskedToStop(number))
    assert isinstance(error, Interrupted)
    assert (error.exit_code, str(error)) == (code, f"{signal.Signals(number).name} at step 0: nothing was trained yet")
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    message = str(interruption(tmp_path / "failures", AskedToStop(number)))
    assert message.endswith("at step 7: saved; go on with resume=auto")


def test_a_fault_of_the_program_shows_its_traceback(tmp_path: Path):
    for rank in range(2):
        leave(tmp_path, rank, float(rank), 1, f"Traceback of {rank}")
    assert str(first_failure(tmp_path, 2, 1, 1)) == "rank 0 failed:\nTraceback of 0"


def test_a_run_whose_output_is_no_longer_read_continues():
    code = "log('1'), input(), log('2'), log('3'), print('ran on', file=sys.stderr)"
    words = [sys.executable, "-c", f"import sys\nfrom pretrain.launch.rank import log\n{code}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.stdout.close()  # as `| head -1` does
        process.stdout = None
        _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (0, "ran on\n")
