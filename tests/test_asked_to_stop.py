"""Who receives a signal to stop, what it does there, and how a process ends that does not hear it."""

import os
import signal
import subprocess
import sys
import time

import pytest

BEGIN = """
import os, signal, subprocess, sys, time
from pretrain import asked_to_stop
from pretrain.asked_to_stop import AskedToStop, cause_of, listen
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
asked_to_stop.CLEAN_UP_S = 0.2
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
EARLY = "print('ready', flush=True); time.sleep(30)"


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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)], ids=str
)
@pytest.mark.parametrize("words", [(), ("replaced",)], ids=["as it is", "replaced by a library's error"])
def test_a_signal_ends_what_waits_and_is_known_whatever_becomes_of_it(
    number: signal.Signals, code: int, words: tuple[str, ...]
) -> None:
    assert signalled(ENDS, number, words=words) == (0, f"AskedToStop('{number.name}') {code}\n", "")


def test_children_do_not_hear_what_is_sent_to_all_of_the_group() -> None:
    assert signalled(SHIELDS, signal.SIGINT, signal.SIGTERM) == (0, "lived\n", "")


def test_who_swallows_it_is_ended() -> None:
    assert signalled(DEAF, signal.SIGTERM) == (143, "", "Interrupted: SIGTERM: ended at once\n")


def test_a_second_interrupt_ends_a_process_at_once() -> None:
    slow = DEAF.replace("= 0.2", "= 60; asked_to_stop.SAME_KEY_S = 0.05")
    assert signalled(slow, signal.SIGINT, signal.SIGINT, apart_s=0.5) == (
        130,
        "",
        "Interrupted: SIGINT: ended at once\n",
    )


def test_handlers_that_are_set_later_decide() -> None:
    assert signalled(DECIDED, signal.SIGTERM) == (7, "noted\n", "")


def test_ctrl_c_while_a_script_loads_is_one_line() -> None:
    assert signalled(EARLY, signal.SIGINT) == (-signal.SIGINT, "", "Interrupted: SIGINT\n")
