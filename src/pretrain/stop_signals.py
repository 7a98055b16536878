"""Signals that ask a process to stop: SIGINT of Ctrl-C, SIGHUP of a closed terminal, SIGTERM, and SIGUSR1 of Slurm.

After `listen`, only the process itself receives them. Its children start with these signals blocked, so a signal to the
whole process group, as a terminal sends it, has the same effect as one to this process, which ends its children.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAME_KEY_S = 1.0  # one Ctrl-C reaches a process twice, from the terminal and from its launcher
RELAY_AGAIN_S = 0.2  # after which a signal that the main thread has not handled is sent to it again
CLEAN_UP_S = 15.0  # time for a process to end by itself, before it is ended
_RELAY = signal.SIGURG  # wakes the main thread; ignored by default


class AskedToStop(BaseException):
    """Raised in the main thread by a stop signal; not an Exception, so that no library handles it as an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code after the signal: 130 for SIGINT, 129 for SIGHUP, else 143."""
        return 128 + (self.number if self.number in (signal.SIGINT, signal.SIGHUP) else signal.SIGTERM)


_received: deque[int] = deque()
_raised: AskedToStop | None = None
_raised_at = 0.0
_is_reported = False  # whether the process has printed its last line
_listening = False
_inside_program = False  # whether a run is inside another program, which no signal of ours may end
_terminals: list[int] = []  # file descriptors of this process that are terminals


def handled_signals() -> list[signal.Signals]:
    """Return the signals that stop this process: all but SIGHUP if that is ignored, as under nohup."""
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def listen() -> None:
    """Raise AskedToStop in the main thread on stop signals, and keep them from processes started from now on.

    They are blocked in every thread but one, which waits for them and makes the main thread call the handler that
    `signal.signal` has set by then. Blocked signals are inherited, unlike handlers, which shields children.
    """
    global _listening
    _listening = True
    _terminals[:] = [number for number in (0, 1, 2) if os.isatty(number)]
    for number in handled_signals():
        signal.signal(number, _raise)
    signal.signal(_RELAY, _hand_over)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_wait_for_signals, name="stop-signals", daemon=True).start()


@contextmanager
def interrupts_raised() -> Iterator[None]:
    """Raise AskedToStop on Ctrl-C, for a run inside another program, whose handler comes back afterwards.

    Only the main thread may enter it.
    """
    global _inside_program

    def ask(number: int, frame: FrameType | None) -> None:
        raise AskedToStop(number)

    handler, outer = signal.signal(signal.SIGINT, ask), _inside_program
    _inside_program = True
    try:
        yield
    finally:
        _inside_program = outer
        signal.signal(signal.SIGINT, handler)


def keep_from_children() -> None:
    """Block stop signals again before multiprocessing, which may have unblocked them, starts a process."""
    if _listening:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # starting Python's helper process unblocks them in the main thread
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def join_no_group() -> None:
    """Move a helper process into a process group of its own, and unblock SIGTERM in it."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def end_at_once(asked: AskedToStop) -> None:
    """End the process without cleaning up, with one line unless it has printed its last one.

    Inside another program, raise KeyboardInterrupt instead.
    """
    if _inside_program:
        raise KeyboardInterrupt
    if not _is_reported:
        os.write(2, f"Interrupted: {asked}: ended at once\n".encode())
    os._exit(asked.exit_code)


def cause_of(error: BaseException) -> AskedToStop | None:
    """Return the stop signal behind an error, which a library may have replaced by one of its own, or None."""
    return error if isinstance(error, AskedToStop) else _raised


def stop_listening() -> None:
    """Ignore further signals while the process prints its last line and ends."""
    global _is_reported
    _is_reported = True
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    global _raised, _raised_at
    now, asked = time.monotonic(), AskedToStop(number)
    if _raised is None:
        _raised, _raised_at = asked, now
        backstop = threading.Timer(CLEAN_UP_S, end_at_once, [asked])
        backstop.daemon = True
        backstop.start()
        raise asked
    if number == signal.SIGINT and now - _raised_at > SAME_KEY_S:
        end_at_once(asked)


def _wait_for_signals() -> None:
    main = threading.main_thread().ident
    assert main is not None
    while True:
        number = signal.sigwait(STOP_SIGNALS)
        if number == signal.SIGHUP and signal.getsignal(number) != signal.SIG_IGN:
            _leave_terminals()
        _received.append(number)
        while _received:  # again: a signal between the main thread's last look and its wait does not end the wait
            signal.pthread_kill(main, _RELAY)  # also ends a system call that the main thread waits in
            time.sleep(RELAY_AGAIN_S)


def _leave_terminals() -> None:
    """Redirect closed terminals to /dev/null: writing to one is an error, and the run has yet to save."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in _terminals:
        os.dup2(null, number)
    os.close(null)


def _hand_over(relay: int, frame: FrameType | None) -> None:
    while _received:
        number = _received.popleft()
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            end_at_once(AskedToStop(number))


def _quiet(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print Ctrl-C before `listen` as one line; Python then ends the process as the signal would."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted: SIGINT", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:  # at import: the slow imports that follow can be interrupted too
    sys.excepthook = _quiet
