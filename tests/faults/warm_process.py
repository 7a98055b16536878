"""Fork a child for each run from a process that has imported everything, so that 40 killed runs start fast.

Reads one JSON object a line: {"words": settings, "kill_after_s": seconds or null, "fault": name or null}; answers each
with a line {"code": exit code, "signal": number that killed it, "output": what it printed}.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.injected import FAULTS

from pretrain.config.compose import compose, register_schemas
from pretrain.config.run import RunConfig
from pretrain.errors import PretrainError
from pretrain.launch.run_plan import resolve_run
from pretrain.launch.train_log import copied_output
from pretrain.training import train as _  # noqa: F401  (imported once, here, before the forks)
from pretrain.training.launch import _run


def child(request: dict[str, Any]) -> None:
    """Train as `src/train.py` does, with a fault put in; never returns."""
    if request["fault"]:
        FAULTS[request["fault"]]()
    try:
        register_schemas("train", RunConfig)
        words = request["words"]
        with copied_output() as train_log:
            print(_run(resolve_run(compose("train", words), words), train_log))
    except PretrainError as error:
        print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(error.exit_code)
    sys.stdout.flush()
    os._exit(0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a child to its end, or kill it when its time has come."""
    with tempfile.TemporaryFile("w+") as output:
        pid = os.fork()
        if not pid:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            child(request)
        killed_at = time.monotonic() + (request["kill_after_s"] or float("inf"))
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() > killed_at:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        output.seek(0)
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return {"code": -1 if killed else os.WEXITSTATUS(status), "signal": killed, "output": output.read()}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
