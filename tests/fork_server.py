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
from pathlib import Path
from typing import Any

from forked_ranks import reset_signals, start_ranks_by_fork
from pytest import MonkeyPatch

PRELOADED = (
    "torch", "numpy", "lightning.pytorch", "torchmetrics", "pretrain.commands.tasks", "pretrain.training.train",
    "pretrain.training.launch", "pretrain.training.auto_settings", "pretrain.config.launcher", "pretrain.language_model",
    "pretrain.evaluation.run", "hydra.main", "tensorboard", "torch.utils.tensorboard", "pretrain.planning.answer",
    "pretrain.doctor.examination", "pretrain.interop.export", "pretrain.data.prepare", "torch.multiprocessing.spawn",
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.elastic.multiprocessing",
    "torch.distributed.launcher.api", "torch.distributed.run", "pretrain.parallel.parity",
)  # fmt: skip


class _Server:
    """Reads requests from one socket, and tells of the end of each fork on the connection of its request."""

    def __init__(self, requests: socket.socket) -> None:
        self.requests = requests
        self.connections: dict[int, socket.socket] = {}  # by the number of the fork
        self.text, self.files = b"", array.array("i")
        self.woken, self.wakes = socket.socketpair()
        self.wakes.setblocking(False)

    def serve(self) -> dict[str, Any] | None:
        """Return the request in each fork; in the server, None when there will be no more requests."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes.fileno(), warn_on_full_buffer=False)
        selector = selectors.DefaultSelector()
        selector.register(self.requests, selectors.EVENT_READ)
        selector.register(self.woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is self.woken:
                    self.woken.recv(4096)
                    self._tell_ended()
                elif not self._receive():
                    return None
                elif b"\n" in self.text and (request := self._fork()):
                    selector.close()
                    return request

    def _receive(self) -> bool:
        text, rights, _, _ = self.requests.recvmsg(1 << 20, socket.CMSG_SPACE(16 * self.files.itemsize))
        for level, kind, data in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.files.frombytes(data[: len(data) - len(data) % self.files.itemsize])
        self.text += text
        return bool(text)

    def _fork(self) -> dict[str, Any] | None:
        request: dict[str, Any] = json.loads(self.text)
        connection, *standard = self.files
        self.text, self.files = b"", array.array("i")
        number = os.fork()
        if number == 0:
            reset_signals()
            for target, file in enumerate(standard):
                os.dup2(file, target)
            os.closerange(3, 1024)
            return request
        for file in standard:
            os.close(file)
        self.connections[number] = socket.socket(fileno=connection)
        self.connections[number].sendall(b"%d\n" % number)
        return None

    def _tell_ended(self) -> None:
        while self.connections:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            with self.connections.pop(number) as connection:
                try:
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                except BrokenPipeError:
                    pass  # the test no longer asks


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
    start_ranks_by_fork(MonkeyPatch())
    if first == "-c":
        code, *rest = rest
        sys.argv, sys.path[:0] = ["-c", *rest], ["", *paths]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        module, *rest = rest
        sys.argv, sys.path[:0] = [module, *rest], [os.getcwd(), *paths]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [first, *rest], [str(Path(first).parent.resolve()), *paths]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    sys.path.remove(str(Path(__file__).parent))
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # so that no collection in a fork copies these pages
    if request := _Server(requests).serve():
        requests.detach()
        _become(request)


if __name__ == "__main__":
    main()
