"""Processes that run Python without importing torch, Lightning and the package again: forks of one that has them.

`popen` and `run` stand for `subprocess.Popen` and `subprocess.run` of `[sys.executable, ...]`. A start costs a fork
instead of eight seconds of imports. Signals, sessions, pipes, exit codes and exit handlers are those of any process, and
the ranks that torch's launchers start are forks too. What a test says of starting itself needs a real interpreter.
"""

from __future__ import annotations

import array
import atexit
import functools
import inspect
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("fork_server.py")
MOST_FILES = 16  # that one request carries


class ForkedProcess(subprocess.Popen[str]):
    """A `subprocess.Popen` of `[sys.executable, ...]` whose process is forked from the server."""

    def _execute_child(self, *arguments: Any) -> None:
        given = _PARAMETERS.bind(self, *arguments).arguments
        files = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        request = {
            "words": [str(word) for word in given["args"]],
            "folder": os.path.abspath(given["cwd"] or "."),
            "environment": dict(os.environ if given["env"] is None else given["env"]),
            "umask": given["umask"],
            "group": given["start_new_session"],
        }
        self._connection = _server().start(request, [file if file >= 0 else number for number, file in enumerate(files)])
        for file in {*files, given["errwrite"]}:
            if file >= 0:
                os.close(file)
        self.pid = json.loads(_line(self._connection))
        self._child_created = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended(0)

    def _wait(self, timeout: float | None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            text = _line(self._connection)
            self.returncode = json.loads(text) if text else -9
            self._connection.close()
        return self.returncode


_PARAMETERS = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def popen(words: list[Any], **options: Any) -> subprocess.Popen[str]:
    """Start `[sys.executable, script or -c or -m, ...]` in a fork."""
    assert words[0] == sys.executable, words
    return ForkedProcess(words, **options)


def run(
    words: list[Any], *, capture_output: bool = False, check: bool = False, timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `[sys.executable, ...]` in a fork to its end."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with popen(words, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, out, errors)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


class _Server:
    """The process that is forked, started once for all tests of this one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._socket = ours
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()

    def start(self, request: dict[str, Any], files: list[int]) -> socket.socket:
        """Return the connection on which the server tells the process's number, and later its exit code."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno(), *files]))]
            text = json.dumps(request).encode() + b"\n"
            sent = self._socket.sendmsg([text], rights)
            self._socket.sendall(text[sent:])
        return ours

    def end(self) -> None:
        self._socket.close()
        until = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        self._process.kill()
        self._process.wait()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.end)
    return server


def _line(connection: socket.socket) -> bytes:
    text = b""
    while not text.endswith(b"\n") and (more := connection.recv(64)):
        text += more
    return text
