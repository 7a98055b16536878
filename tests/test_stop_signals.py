"""Which process receives a stop signal, what it does there, and how a process ends that ignores it."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

BEGIN = """
import os, signal, subprocess, sys, time
from pretrain import stop_signals
from pretrain.stop_signals import AskedToStop, cause_of, listen
"""
ENDS = """
listen()
try:
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        raise AttributeError("a library's own") if "replaced" in sys.argv else None
except BaseException as error:
    print(repr(cause_of(error)), cause_of(error).exit_code)
"""
SHIELDS = """
listen()
code = "import time; print('ready', flush=True); time.sleep(1); print('lived')"
child = subprocess.Popen([sys.executable, "-c", code])
try:
    time.sleep(30)
except AskedToStop:
    child.wait()
"""
DEAF = """
stop_signals.CLEAN_UP_S = 0.2
listen()
words = ["ready"]
while True:
    try:
        print(words.pop(), flush=True) if words else None
        time.sleep(30)
    except BaseException:
        pass
"""
DECIDED = """
listen()
signal.signal(signal.SIGTERM, lambda number, frame: print("noted", flush=True) or sys.exit(7))
print("ready", flush=True)
time.sleep(30)
"""
UNDER_NOHUP = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
listen()
try:
    print("ready", flush=True)
    time.sleep(0.5)
    print([number.name for number in stop_signals.handled_signals()], flush=True)
    time.sleep(30)
except AskedToStop as asked:
    print(asked)
"""
LOSES_TERMINAL = """
from pathlib import Path
listen()
try:
    print("ready", flush=True)
    time.sleep(30)
except AskedToStop as asked:
    for _ in range(3):
        print("saving ...", flush=True)
        print("a warning", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(f"{asked} saved")
    sys.exit(asked.exit_code)
"""
EARLY = "print('ready', flush=True); [time.sleep(0.1) for _ in range(300)]  # one long sleep may miss a signal"


def signalled(code: str, *numbers: int, words: tuple[str, ...] = (), apart_s: float = 0.0) -> tuple[int, str, str]:
    """Run code in a process group, send all of the group signals, and return exit code and what was printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        os.killpg(process.pid, number)
        time.sleep(apart_s)
    out, errors = process.communicate(timeout=30)
    return process.returncode, out, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, 129)],
    ids=str,
)
@pytest.mark.parametrize("words", [(), ("replaced",)], ids=["as it is", "replaced by a library's error"])
def test_a_signal_ends_a_wait_and_survives_a_librarys_own_error(
    number: signal.Signals, code: int, words: tuple[str, ...]
) -> None:
    assert signalled(ENDS, number, words=words) == (0, f"AskedToStop('{number.name}') {code}\n", "")


@pytest.mark.slow
def test_children_receive_no_signal_sent_to_the_group() -> None:
    assert signalled(SHIELDS, signal.SIGINT, signal.SIGTERM) == (0, "lived\n", "")


def test_a_process_that_swallows_the_exception_is_ended() -> None:
    assert signalled(DEAF, signal.SIGTERM) == (143, "", "Interrupted: SIGTERM: ended at once\n")


@pytest.mark.slow
def test_a_second_interrupt_ends_a_process_at_once() -> None:
    slow = DEAF.replace("= 0.2", "= 60; stop_signals.SAME_KEY_S = 0.05")
    assert signalled(slow, signal.SIGINT, signal.SIGINT, apart_s=0.5) == (
        130,
        "",
        "Interrupted: SIGINT: ended at once\n",
    )


def test_handlers_that_are_set_later_decide() -> None:
    assert signalled(DECIDED, signal.SIGTERM) == (7, "noted\n", "")


@pytest.mark.slow
def test_behind_nohup_a_closed_terminal_changes_nothing() -> None:
    names = "['SIGTERM', 'SIGINT', 'SIGUSR1']"
    assert signalled(UNDER_NOHUP, signal.SIGHUP, signal.SIGTERM, apart_s=1.5) == (0, f"{names}\nSIGTERM\n", "")


def test_a_closed_terminal_keeps_no_run_from_saving(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + LOSES_TERMINAL, str(tmp_path / "state")],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while not said.endswith(b"\n"):  # which is written by itself: without it, the line itself would fail
        said += os.read(ours, 100)
    assert said.strip() == b"ready"
    os.close(ours)  # the kernel sends SIGHUP to the session's leader, and every write fails from now on
    assert process.wait(timeout=60) == 129
    assert (tmp_path / "state").read_text() == "SIGHUP saved"


@pytest.mark.long
def test_ctrl_c_while_a_script_loads_is_one_line() -> None:
    assert signalled(EARLY, signal.SIGINT) == (-signal.SIGINT, "", "Interrupted: SIGINT\n")
