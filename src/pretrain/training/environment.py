"""What a start of a run ran on: command line, commits, host, versions; never the value of an environment variable."""

import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch

from pretrain import __version__
from pretrain.config.run import RunConfig
from pretrain.errors import visible
from pretrain.kernels.device import device_name
from pretrain.program import SCRIPTS

_MAX_COMMAND = 4_000  # characters
_GIT_S = 5.0  # time that git may take, on a slow network file system
_SECRET = re.compile(
    r"((?:^|[^A-Za-z])(?:api_?key|token|secret|password|passwd|credentials?)[\"']?\s*[:=]\s*)[^\s,}\]]+", re.IGNORECASE
)
_PASSWORD = re.compile(r"(://)[^/@\s]*@")


def environment(config: RunConfig, device: torch.device) -> dict[str, str]:
    """Return what a start runs on, by name, with the notes and tags that the user gave it; values are one line each.

    Secrets in the command line, by the name of their setting or in an address, are masked.
    """
    ranks = config.trainer.ranks
    found = {
        "notes": config.notes,
        "tags": ", ".join(config.tags),
        "command": command_line(),
        **_commits(),
        "device": f"{device_name(device)} ({device.type})",
        "processes": f"{ranks} ({config.trainer.strategy.name})" if ranks > 1 else "1",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "number format": config.trainer.precision.name,
        "machine": socket.gethostname(),
        "system": platform.platform(),
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "Lightning": L.__version__,
        "pretrain": __version__,
    }
    return {key: visible(value, one_line=True) for key, value in found.items() if value}


def command_line() -> str:
    """Return the words that started this process, quoted for a shell, with secrets masked."""
    words = sys.orig_argv if sys.argv[0] in sys.orig_argv else sys.argv  # a child of the run has words of its own
    masked = [_PASSWORD.sub(r"\1***@", _SECRET.sub(r"\1***", word)) for word in words]
    return shlex.join(masked)[:_MAX_COMMAND]


def _commits() -> dict[str, str]:
    """Return the commit of the working folder and, where a clone of this package runs, of that; none without git."""
    here = git_state(Path.cwd())
    own = git_state(SCRIPTS) if (SCRIPTS / "train.py").is_file() else None
    found = {} if here is None else {"commit": here}
    return found | ({} if own is None or own == here else {"commit of pretrain": own})


def git_state(folder: Path) -> str | None:
    """Return commit, branch and number of changed files of the repository around a folder; None where there is none.

    Files that git does not track do not count.
    """
    status = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if status is None:
        return None
    lines = status.splitlines()
    facts = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    changed = sum(not line.startswith("#") for line in lines)
    state = f"{changed} files changed" if changed > 1 else f"{changed or 'no'} file changed"
    return f"{facts.get('oid', 'unknown')} ({facts.get('head', 'unknown')}), {state}"


def _git(folder: Path, *words: str) -> str | None:
    """Return the output of git in a folder, without programs that a repository's settings name; None if it fails."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_GIT_S, check=False,
            stdin=subprocess.DEVNULL, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
