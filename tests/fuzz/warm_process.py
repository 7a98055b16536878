"""Fork a child for each command from a process that has imported everything; a script runs as if typed.

Reads one JSON object a line: {"script": path, "words": settings, "folder": where it runs, "seconds": its limit};
answers each with {"code": exit code or minus the signal, "out": text, "err": text, "bytes": memory above that of this
process, "seconds": of a processor, "hung": whether its time was up}.
"""

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

SLACK = 3 << 30  # of addresses beyond those of this process: much more than the memory that is allowed
ROOT = Path(__file__).parents[2]


def import_everything() -> None:
    """Import what the scripts import as they run, and compose one configuration: its grammar is read but once."""
    import lightning  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import pretrain.doctor.examination
    import pretrain.evaluation.inspect_step
    import pretrain.evaluation.run
    import pretrain.interop.export
    import pretrain.language_model
    import pretrain.planning.printing
    import pretrain.training.launch
    import pretrain.training.train  # noqa: F401
    from pretrain.config.compose import compose, register_schemas
    from pretrain.config.run import RunConfig

    torch.set_num_threads(1)
    register_schemas("train", RunConfig)
    compose("train", ["data=text_files", "data.path=x", "trainer.max_steps=1"])


def child(request: dict[str, Any], out: int, err: int) -> None:
    """Run a script to its end; never returns."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    folder = Path(request["folder"])
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    tempfile.tempdir = None
    os.chdir(folder / "home")
    sys.argv = [request["script"], *request["words"]]
    code = 0
    try:
        runpy.run_path(str(ROOT / "src" / request["script"]), run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # as the interpreter would end
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a child to its end, or kill it and all that it started when its time is up."""
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            child(request, out.fileno(), err.fileno())
        while True:
            found, status, used = os.wait4(pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() - started > request["seconds"]:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started and left behind
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="surrogateescape"))
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return {
            "code": code, "out": texts[0], "err": texts[1], "bytes": used.ru_maxrss * 1024 - base,
            "seconds": used.ru_utime + used.ru_stime, "hung": time.monotonic() - started > request["seconds"],
        }  # fmt: skip


if __name__ == "__main__":
    import_everything()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
