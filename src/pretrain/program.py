"""The command line as the user has it: `pretrain train` where it is installed, `python src/train.py` in a clone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_IN_A_CLONE = {"inspect": "prepare.py inspect", "verify": "curate.py verify"}  # where the name is not that of a script
SCRIPTS = Path(__file__).resolve().parents[1]  # those of a clone


def command(name: str) -> str:
    """Return what to type for a command such as "train", without its settings."""
    if _by_module():
        return f"python -m pretrain {name}"
    if is_installed():
        return f"pretrain {name}"
    return f"python src/{_IN_A_CLONE.get(name, f'{name}.py')}"


def is_installed() -> bool:
    """Whether the installed command runs, or the package lies where there are no scripts beside it."""
    by_command = Path(sys.argv[0]).name in ("pretrain", "pretrain.exe")
    return by_command or _by_module() or not (SCRIPTS / "train.py").is_file()


def _by_module() -> bool:
    """Whether `python -m pretrain` runs."""
    return Path(sys.argv[0]) == Path(__file__).with_name("__main__.py")


def as_typed(text: str) -> str:
    """Return a text with the commands of a clone in it, such as a page of help, with those that the user has."""
    if not is_installed():
        return text
    text = text.replace("python src/prepare.py inspect", command("inspect"))
    text = text.replace("python src/curate.py verify", command("verify"))
    return re.sub(r"(?:python )?src/(\w+)\.py", lambda found: command(found[1]), text)


def program(subcommand: str) -> list[str]:
    """Return the words that start this program again, in front of its settings."""
    if _by_module():  # as a file, its folder would be searched for modules
        return [sys.executable, "-m", "pretrain", subcommand]
    return [sys.executable, sys.argv[0], *([subcommand] if subcommand else [])]
