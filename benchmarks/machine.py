"""The machine that a benchmark ran on."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Return the properties that timings depend on, without the machine's name, and the commit of the code."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", facts.read_text(encoding="utf8"), re.M) if facts.exists() else []
    return {
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **_versions("lightning"),
        "python": platform.python_version(),
        **({"commit": commit} if (commit := _commit()) else {}),
    }


def _versions(package: str) -> dict[str, str]:
    """Return the version of a package by its name; nothing if it is not installed."""
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def _commit() -> str:
    """Return the commit of this checkout, with -dirty if files have changed since; "" outside a repository.

    Results do not count: those of a script must not mark those of the next.
    """

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=Path(__file__).parents[1], capture_output=True, text=True)

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit.returncode:
        return ""
    is_dirty = git("diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results").returncode
    return commit.stdout.strip() + ("-dirty" if is_dirty else "")
