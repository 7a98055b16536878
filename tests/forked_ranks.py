"""The processes that torch starts for several ranks as forks, which have torch and the package loaded already."""

import os
import signal
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.elastic.multiprocessing
import torch.multiprocessing.spawn

_IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # by a new interpreter


def start_ranks_by_fork(patch: pytest.MonkeyPatch) -> None:
    """Have torch fork the processes that it would start anew; these keep no socket and no file of their parent."""
    spawn: Any = sys.modules["torch.multiprocessing.spawn"]  # the name in its package is a function
    original, wrapped = spawn.start_processes, spawn._wrap

    def start_processes(fn: Any, args: Any = (), nprocs: int = 1, *more: Any, **options: Any) -> Any:
        return original(fn, args, nprocs, *more[:2], **(options | {"start_method": "fork"}))

    def wrap(*arguments: Any) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # an interpreter begins with that of its parent
        _reset_warnings()
        _let_go_of_files()
        wrapped(*arguments)

    patch.setattr(spawn, "start_processes", start_processes)
    patch.setattr(spawn, "_wrap", wrap)
    patch.setattr(torch.multiprocessing, "start_processes", start_processes)  # what the elastic agent calls


def reset_signals() -> None:
    """Give every signal the handler that an interpreter begins with, and block none."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _reset_warnings() -> None:
    warnings.resetwarnings()  # in a test they are errors
    for category in _IGNORED:
        warnings.simplefilter("ignore", category)


def _let_go_of_files() -> None:
    """Put the null device in the place of sockets and files, as a lock that a fork holds outlives its owner."""
    null = os.open(os.devnull, os.O_RDWR)
    for path in list(Path("/proc/self/fd").iterdir()):
        number = int(path.name)
        try:
            kind = os.fstat(number).st_mode
        except OSError:
            continue  # it was that of the listing
        if number > 2 and (stat.S_ISSOCK(kind) or stat.S_ISREG(kind)):
            os.dup2(null, number)
    os.close(null)
