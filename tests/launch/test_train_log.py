"""The log of a run folder: every line of the terminal with its time, through kills, links and full disks."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from pretrain.errors import CheckpointError, ConfigError, show
from pretrain.launch.run_folder import check_folder
from pretrain.launch.train_log import copied_output, log_unseen
from pretrain.stop_signals import AskedToStop

STAMPED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4} ")


def lines(path: Path) -> list[str]:
    """Return the lines of a log without their times, which each must have."""
    text = path.read_bytes().decode()
    assert text == "" or text.endswith("\n")
    found = [STAMPED.match(line) for line in text.splitlines()]
    assert all(found)
    return [line[match.end() :] for line, match in zip(text.splitlines(), found, strict=True) if match]


def test_what_is_printed_is_in_the_log_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    streams = sys.stdout, sys.stderr
    with copied_output() as log:
        print("before the folder is known")
        log.open(tmp_path, rank=0)
        show("two\nlines")
        print("\x1b[1;31mred\x1b[0m \x1b]0;title\x07and \x07bell \u202e", file=sys.stderr)
        for _ in tqdm(range(3), file=sys.stderr, mininterval=0):
            tqdm.write("beside the bar", file=sys.stderr)
        print("no ", end="")
        print("line yet")
        print("windows\r\n", end="")
        log_unseen("not on the terminal")
        assert sys.stdout.encoding == streams[0].encoding
    print("afterwards")
    log_unseen("nor here")
    assert (sys.stdout, sys.stderr) == streams
    found = lines(tmp_path / "train.log")
    bar = found.pop(7)
    assert bar.startswith("100%")
    assert "3/3" in bar
    assert found == [
        "before the folder is known", "two", "lines", "red and \\x07bell \\u202e", *3 * ["beside the bar"],
        "no line yet", "windows", "not on the terminal",
    ]  # fmt: skip
    shown = capsys.readouterr()
    assert shown.out == "before the folder is known\ntwo\nlines\nno line yet\nwindows\r\nafterwards\n"
    assert "\x1b[1;31mred" in shown.err


def _end_with(error: BaseException, folder: Path) -> None:
    with copied_output() as log:
        log.open(folder, rank=0)
        raise error


def test_a_stream_that_returns_no_count_is_copied_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class WorkerStream:  # as those of Ray's workers
        def write(self, text: str) -> None:
            said.append(text)

        def flush(self) -> None:
            pass

    said = list[str]()
    monkeypatch.setattr(sys, "stdout", WorkerStream())
    with copied_output() as log:
        log.open(tmp_path, rank=0)
        print("from a worker")
    assert "".join(said) == "from a worker\n"
    assert lines(tmp_path / "train.log") == ["from a worker"]


def test_the_error_that_ends_a_run_is_its_last_line_and_a_resume_appends(tmp_path: Path):
    for error, message in (
        (ConfigError("too\nmuch"), ["ConfigError: too", "  much"]),
        (AskedToStop(signal.SIGTERM), ["Interrupted: SIGTERM"]),
        (ValueError("a defect"), ["ValueError: a defect"]),
    ):
        with pytest.raises(type(error)):
            _end_with(error, tmp_path)
        assert lines(tmp_path / "train.log")[-len(message) :] == message
    assert lines(tmp_path / "train.log")[0] == "ConfigError: too"


def test_another_rank_has_a_log_of_its_own_of_what_it_prints(tmp_path: Path):
    with copied_output() as log:
        print("like every rank")
        log.open(tmp_path, rank=3)
        print("warning: of rank 3")
    assert lines(tmp_path / "train.rank3.log") == ["warning: of rank 3"]


@pytest.mark.slow
def test_a_kill_loses_no_line(tmp_path: Path):
    code = f"""
import os, pathlib, signal
from pretrain.launch.train_log import copied_output
with copied_output() as log:
    log.open(pathlib.Path({str(tmp_path)!r}), rank=0)
    for number in range(500):
        print("line", number)
    if os.fork() == 0:
        print("of a fork")
        os._exit(0)
    os.wait()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL
    assert lines(tmp_path / "train.log") == [f"line {number}" for number in range(500)]


def test_a_log_goes_through_no_link_and_a_disk_that_fails_ends_only_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    outside = tmp_path / "outside"
    (tmp_path / "train.log").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"train\.log is a link"), copied_output() as log:
        log.open(tmp_path, rank=0)
    with pytest.raises(CheckpointError, match=r"train\.log is a link"):
        check_folder(tmp_path)
    assert not outside.exists()
    (tmp_path / "train.log").unlink()
    with copied_output() as log:
        log.open(tmp_path, rank=0)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, log._descriptor)  # type: ignore[arg-type]
        os.close(full)
        print("goes on")
        print("and on")
    shown = capsys.readouterr()
    assert shown.out == "goes on\nand on\n"
    assert shown.err == "warning: train.log ends here: [Errno 28] No space left on device\n"
