"""The process behind `forked_process.py`: imports what a run needs, then forks itself for every request.

A request is a JSON line with file descriptors: the connection for the answers, standard input, output and error. The
answers are the number of the fork and, once it has ended, its exit code as `subprocess` tells it.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import reset_signals, start_ranks_by_fork

PRELOADED = (
    "torch", "numpy", "lightning.pytorch", "torchmetrics", "pretrain.commands.tasks", "pretrain.training.train",
    "pretrain.training.launch", "pretrain.training.auto_settings", "pretrain.config.launcher",
    "pretrain.language_model",
    "pretrain.evaluation.run", "hydra.main", "tensorboard", "torch.utils.tensorboard", "pretrain.planning.answer",
    "pretrain.doctor.examination", "pretrain.interop.export", "pretrain.data.prepare", "torch.multiprocessing.spawn",
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.elastic.multiprocessing",
    "torch.distributed.launcher.api", "torch.distributed.run", "pretrain.parallel.parity",
)  # fmt: skip


class _Server:
    """Reads a request from each connection, and tells of the end of its fork there."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(address)
        self.listener.listen(64)
        self.connections: dict[int, socket.socket] = {}  # by the number of the fork
        self.woken, self.wakes = socket.socketpair()
        self.wakes.setblocking(False)

    def serve(self) -> dict[str, Any] | None:
        """Return the request in each fork; in the server, None when standard input has ended."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes.fileno(), warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        for each in (self.listener, self.woken, sys.stdin):
            selector.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self._tell_ended()
                elif request := self._fork(self.listener.accept()[0]):
                    selector.close()
                    return request

    def _fork(self, connection: socket.socket) -> dict[str, Any] | None:
        text, files = b"", array.array("i")
        while not text.endswith(b"\n"):
            more, rights, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * files.itemsize))
            if not more:
                return None  # the test has ended
            text += more
            for _, _, data in rights:
                files.frombytes(data)
        number = os.fork()
        if number == 0:
            reset_signals()
            for target, file in enumerate(files):
                os.dup2(file, target)
            os.closerange(3, 1024)
            for each in (connection, self.listener, self.woken, self.wakes, *self.connections.values()):
                each.detach()  # closed: nobody is to close what will have its number
            request: dict[str, Any] = json.loads(text)
            return request
        for file in files:
            os.close(file)
        self.connections[number] = connection
        self._tell(connection, number, 0)
        return None

    def _tell_ended(self) -> None:
        while self.connections:
            number, status, used = os.wait4(-1, os.WNOHANG)
            if not number:
                return
            with self.connections.pop(number) as connection:
                self._tell(connection, os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)

    def _tell(self, connection: socket.socket, number: int, seconds: float) -> None:
        with suppress(BrokenPipeError):  # the test no longer asks
            connection.sendall(f"{number} {seconds}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """Run what the words of a request ask for, as a new interpreter would."""
    if request["group"]:
        os.setsid()
    os.chdir(request["folder"])
    if request["umask"] >= 0:
        os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = [path for path in request["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    _, first, *rest = request["words"]
    start_ranks_by_fork(pytest.MonkeyPatch())
    if first == "-c":
        code, *rest = rest
        sys.argv, sys.path[:0] = ["-c", *rest], ["", *paths]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        module, *rest = rest
        sys.argv, sys.path[:0] = [module, *rest], [str(Path.cwd()), *paths]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [first, *rest], [str(Path(first).parent.resolve()), *paths]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    sys.path.remove(str(Path(__file__).parent))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # so that no collection in a fork copies these pages
    server = _Server(sys.argv[1])
    print("ready", flush=True)
    if request := server.serve():
        _become(request)


if __name__ == "__main__":
    main()
