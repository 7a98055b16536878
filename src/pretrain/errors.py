"""What can go wrong, each kind with the exit code that scripts and schedulers can rely on."""

import difflib
import sys
from collections.abc import Iterable


class PretrainError(Exception):
    """Something the user can act on: shown as its one message, without a traceback."""

    exit_code = 1


class ConfigError(PretrainError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another one."""

    exit_code = 2


class DataError(PretrainError):
    """A corpus, a tokenizer or a token store is missing, damaged, or does not fit the run."""

    exit_code = 3


class CheckpointError(PretrainError):
    """A checkpoint cannot be written, read or verified, or the storage beneath it failed."""

    exit_code = 4


class DivergenceError(PretrainError):
    """The loss or its gradient is no longer finite, so going on would only waste the machine."""

    exit_code = 5


class RankLostError(PretrainError):
    """A process of the run died or stopped answering."""

    exit_code = 6


class Interrupted(PretrainError):  # noqa: N818  (not an error: the run obeyed and saved)
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt word: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sorted(names))}."


def shown(value: object) -> str:
    """Return the value of a setting as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "name", value))


def printable(text: str) -> str:
    """Return text that a terminal shows as it stands: control characters and what it cannot encode are escaped.

    Every text that the project did not write itself goes through it on its way to a terminal.
    """
    visible = "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    encoding = sys.stdout.encoding or "utf8"
    return visible.encode(encoding, "backslashreplace").decode(encoding)
