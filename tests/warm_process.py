"""A process with torch and pretrain loaded, which runs commands and Python code in forked children.

Each command costs a fork instead of an import. `python tests/warm_process.py` reads a JSON request a line, runs it to
its end, and answers with a JSON line; `WarmProcess` is the tests' side of it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src"
PRELOADED = (
    "torch", "numpy", "lightning.pytorch", "torchmetrics", "pretrain.commands.tasks", "pretrain.training.train",
    "pretrain.training.launch", "pretrain.language_model", "pretrain.evaluation.run", "hydra.main", "tensorboard",
    "pretrain.planning.answer", "pretrain.doctor.examination", "pretrain.interop.export", "pretrain.data.prepare",
)  # fmt: skip


class Done(NamedTuple):
    """How a command ended."""

    exit_code: int
    output: str  # standard output and error, as they were written
    seconds: float


class WarmProcess:
    """The tests' side: starts the process, and sends it commands one after the other."""

    def __init__(self) -> None:
        words = [sys.executable, __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, words: list[str], folder: Path, *, limit_s: float, environment: dict[str, str] | None = None) -> Done:
        """Run `python ...` or `pretrain ...` in a folder; `["python", "-c", code]` runs code.

        What is still running after `limit_s` is killed, with its children, and counts as exit code 124.
        """
        request = {"words": words, "folder": str(folder), "limit_s": limit_s, "environment": environment or {}}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that runs the documentation's commands has died"
        return Done(*json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def _serve() -> None:
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.monotonic()
        output = Path(request["folder"]) / ".output"
        child = os.fork()
        if child == 0:
            _become(request, output)
        exit_code = _wait(child, start + request["limit_s"])
        text = output.read_text(encoding="utf8", errors="replace") if output.exists() else ""
        print(json.dumps([exit_code, text, time.monotonic() - start]), flush=True)


def _wait(child: int, until: float) -> int:
    """Return the exit code of a child; kill its process group when the time is over."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.02)


def _become(request: dict, output: Path) -> None:
    """Do in a forked child what the words of a request ask for, and end it."""
    os.setpgid(0, 0)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.path[:0] = [
        str(Path(path).absolute()) for path in request["environment"].get("PYTHONPATH", "").split(":") if path
    ]
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for stream, descriptor in ((null, 0), (file, 1), (file, 2)):
        os.dup2(stream, descriptor)
    code = 1
    try:
        _run(request["words"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(words: list[str]) -> None:
    program, *rest = words
    if program == "python" and rest[0] == "-c":
        sys.argv = ["-c"]
        exec(compile(rest[1], "<a block of the documentation>", "exec"), {"__name__": "__main__"})
    elif program == "python":
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")
    elif program == "pretrain":
        from pretrain.__main__ import main

        sys.argv = [str(Path(sys.executable).with_name("pretrain")), *rest]
        main()
    else:
        raise SystemExit(f"{program} is not run here")


if __name__ == "__main__":
    _serve()
