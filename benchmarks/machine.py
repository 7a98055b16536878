"""The machine that a benchmark ran on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import lightning
import torch


def machine() -> dict[str, Any]:
    """Return the properties that timings depend on, without the machine's name."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", facts.read_text(encoding="utf8"), re.M) if facts.exists() else []
    return {
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }
