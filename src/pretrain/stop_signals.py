"""Signals that ask a process to stop: SIGINT of Ctrl-C, SIGHUP of a closed terminal, SIGTERM, and SIGUSR1 of Slurm.

From `listen` on, only the process itself receives them. Its children start with these signals blocked, so that one to
the whole process group, as a terminal sends it, does what one to this process does: it decides, and ends them.
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


SAME_KEY_S = 1.0  # one Ctrl-C reaches a process twice, from the terminal and from its launcher


CLEAN_UP_S = 15.0  # for a process to end by itself: where the exception is lost or code is deaf, it is ended


_RELAY = signal.SIGURG  # wakes the main thread; ignored by whoever does not know it


class AskedToStop(BaseException):
    """Raised in the main thread by a stop signal; no Exception, so that no library takes it for a fault of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code of a process that was asked to stop: 130 by the keyboard, 129 by its terminal, else 143."""
        return 128 + (self.number if self.number in (signal.SIGINT, signal.SIGHUP) else signal.SIGTERM)


_received: deque[int] = deque()


_raised: AskedToStop | None = None


_raised_at = 0.0


_told = False


_listening = False


_terminals: list[int] = []  # file descriptors of this process that are terminals


def heeded() -> list[signal.Signals]:
    """Return the signals that stop this process: not SIGHUP where that is ignored, as behind nohup."""
    return [each for each in STOP_SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


def listen() -> None:
    """Have stop signals raise AskedToStop in the main thread, and keep them from all processes started from here on.

    They are blocked in every thread but one, which waits for them and has the main thread call whatever handler
    `signal.signal` has set by then. Blocked signals are inherited, unlike handlers: that is what shields children.
    """
    global _listening
    _listening = True
    _terminals[:] = [number for number in (0, 1, 2) if os.isatty(number)]
    for number in heeded():
        signal.signal(number, _raise)
    signal.signal(_RELAY, _hand_over)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_wait_for_signals, name="stop-signals", daemon=True).start()


def keep_from_children() -> None:
    """Block stop signals once more before a process is started by multiprocessing, which may have unblocked them."""
    if _listening:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # Python's own helper: as it starts, the main thread gets them again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def join_no_group() -> None:
    """Take a helper process out of its parent's process group, and let SIGTERM end it again."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def end_at_once(asked: AskedToStop) -> None:
    """End the process without cleaning up, with one line unless it was told already."""
    if not _told:
        os.write(2, f"Interrupted: {asked}: ended at once\n".encode())
    os._exit(asked.exit_code)


def cause_of(error: BaseException) -> AskedToStop | None:
    """Return the request to stop that an error comes from: a library may have put its own in its place."""
    return error if isinstance(error, AskedToStop) else _raised


def stop_listening() -> None:
    """Let no further signal interrupt a process that tells its last line and ends; it may not take long."""
    global _told
    _told = True
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
        signal.pthread_kill(main, _RELAY)  # a system call that the main thread waits in ends, too


def _leave_terminals() -> None:
    """Put nothing in the place of terminals: to write to a closed one is an error, and the run is still to save."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in _terminals:
        os.dup2(nothing, number)
    os.close(nothing)


def _hand_over(relay: int, frame: FrameType | None) -> None:
    while _received:
        number = _received.popleft()
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            end_at_once(AskedToStop(number))


def _quiet(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show Ctrl-C before `listen` as one line; Python ends the process as the signal would."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted: SIGINT", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.excepthook is sys.__excepthook__:  # at import: what is loaded next takes a while, and can be interrupted too
    sys.excepthook = _quiet
