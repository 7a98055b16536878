"""Processes that run Python without importing torch, Lightning and the package again: forks of one that has them.

`popen` and `run` stand for `subprocess.Popen` and `subprocess.run` of `[sys.executable, ...]`. A start costs a fork
instead of eight seconds of imports. Signals, sessions, pipes, exit codes and exit handlers are those of any process;
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
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("fork_server.py")


class ForkedProcess(subprocess.Popen[str]):
    """A `subprocess.Popen` of `[sys.executable, ...]` whose process is forked from the server."""

    processor_s = 0.0  # of it and what it has waited for, once it has ended

    def _execute_child(self, *arguments: Any) -> None:
        given = _PARAMETERS.bind(self, *arguments).arguments
        pipes = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        request = {
            "words": [str(word) for word in given["args"]],
            "folder": str(Path(given["cwd"] or ".").absolute()),
            "environment": dict(os.environ if given["env"] is None else given["env"]),
            "umask": given["umask"],
            "group": given["start_new_session"],
        }
        files = [file if file >= 0 else number for number, file in enumerate(pipes)]
        self._connection = _server().start(request, files)
        ours = (given["p2cwrite"], given["c2pread"], given["errread"])
        made = {pipe for pipe, end in zip(pipes, ours, strict=True) if end >= 0} | {getattr(self, "_devnull", -1)}
        for file in made - {-1}:
            os.close(file)
        self.pid = int(_answer(self._connection).split()[0])
        self._child_created = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended(0)

    def _wait(self, timeout: float | None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            code, seconds = _answer(self._connection).split()
            self.returncode, self.processor_s = int(code), float(seconds)
            self._connection.close()
        return self.returncode


_PARAMETERS = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def popen(words: list[Any], **options: Any) -> ForkedProcess:
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
            if options.get("start_new_session"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words, out, errors)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


class _Server:
    """The process that is forked, started once for all tests of this one; it ends as its standard input does."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="fork-server-")
        self.address = f"{self.folder}/socket"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), self.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def start(self, request: dict[str, Any], files: list[int]) -> socket.socket:
        """Return the connection on which the server tells the process's number, and later its exit code."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.address)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
        text = json.dumps(request).encode() + b"\n"
        sent = connection.sendmsg([text], rights)
        connection.sendall(text[sent:])
        return connection

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)
        shutil.rmtree(self.folder)


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.end)
    return server


def _answer(connection: socket.socket) -> bytes:
    """Return the next answer: the number of the process or its exit code, and the seconds of processors it used."""
    text = b""
    while not text.endswith(b"\n") and (more := connection.recv(1)):
        text += more
    return text or b"-9 0"
