"""What can go wrong, each kind with the exit code that scripts and schedulers can rely on."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
from collections.abc import Iterable

MAX_LINE = 4_000  # characters of an error's message that are shown


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


def printable(text: object, *, one_line: bool = False) -> str:
    """Return text that a terminal shows as it stands: control characters and what it cannot encode are escaped.

    Spaces of every width and the joiners of Persian, Indic scripts and emoji stay, and line breaks and tabs unless
    `one_line`. Every text goes through it on its way to a terminal (`tests/test_terminal.py` finds one that does not).
    """
    kept = "\u200c\u200d" if one_line else "\n\t\u200c\u200d"
    visible = "".join(c if c in kept or _is_shown(c) else _escaped(c) for c in str(text))
    encoding = getattr(sys.stdout, "encoding", None) or "utf8"
    return visible.encode(encoding, "backslashreplace").decode(encoding)


def message_of(error: Exception) -> str:
    """Return what a terminal shows of an error: its class and its message, whose further lines are indented.

    A name in the message that holds line breaks cannot begin a line that looks like one of the program's own, and what
    a file holds cannot fill the terminal: of a long line the beginning and the end are shown.
    """
    first, *more = (_shortened(line) for line in printable(error).split("\n"))
    return "\n".join([f"{type(error).__name__}: {first}", *(f"  {line.removeprefix('  ')}" for line in more)])


def _shortened(line: str) -> str:
    if len(line) <= MAX_LINE:
        return line
    excluded = len(line) - MAX_LINE
    return f"{line[: MAX_LINE // 2]} [... {excluded:,} characters ...] {line[-(MAX_LINE // 2) :]}"


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def show(text: str, *, one_line: bool = False) -> None:
    """Print a text, as much of it as is read: `| head` closes the pipe early, which must not end a run."""
    try:
        print(printable(text, one_line=one_line), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its own end
