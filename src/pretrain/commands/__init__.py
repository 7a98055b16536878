"""The commands: settings from the command line, then a task of `tasks.py`.

Importing this package ends the process where Python is too old or lacks the libraries: the commands cannot start there.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pretrain.stop_signals  # noqa: F401  first, so that Ctrl-C ends the slow imports of a command in one line
from pretrain.errors import ConfigError, message_of

_NEEDED = ("torch", "lightning", "hydra", "omegaconf", "numpy", "pyarrow", "safetensors", "tokenizers", "yaml")


def _check_python() -> None:
    """Exit with 2 and what to type if this is not the Python that pretrain is installed in."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if sys.version_info >= (3, 11) and not missing:
        return
    clone = Path(__file__).resolve().parents[3]
    activate = clone / ".venv" / "bin" / "activate"
    if not (clone / "Makefile").is_file():
        remedy = "python3.11 -m pip install --force-reinstall pretrain-*.whl"
    elif activate.is_file() and Path(sys.prefix).resolve() != clone / ".venv":
        remedy = f"source {activate.relative_to(Path.cwd()) if activate.is_relative_to(Path.cwd()) else activate}"
    else:
        remedy = "make install" if clone == Path.cwd() else f"make -C {clone} install"
    lacks = f"lacks {', '.join(missing[:2])}{' and more' if missing[2:] else ''}" if missing else "is older than 3.11"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    error = ConfigError(f"this Python, {sys.executable} ({version}), {lacks}. Type: {remedy}")
    print(message_of(error), file=sys.stderr)
    sys.exit(error.exit_code)


_check_python()
