"""Errors that a user can act on, each with an exit code that scripts and schedulers can rely on."""

from __future__ import annotations

import difflib
import io
import os
import stat
import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_LINE = 4_000  # characters shown of a line of an error message


class PretrainError(Exception):
    """An error that the user can act on; only its message is shown, without a traceback."""

    exit_code = 1


class ConfigError(PretrainError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""

    exit_code = 2


class DataError(PretrainError):
    """A corpus, a tokenizer or a token store is missing, damaged, or does not fit the run."""

    exit_code = 3


class CheckpointError(PretrainError):
    """A checkpoint or a file of a run folder cannot be written, read or verified."""

    exit_code = 4


class DivergenceError(PretrainError):
    """The loss, its gradient or a score is not finite, or spikes of the loss ended the run."""

    exit_code = 5


class RankLostError(PretrainError):
    """A process of the run died or does not respond."""

    exit_code = 6


class Interrupted(PretrainError):  # noqa: N818  (not an error: the run has saved and ended as asked)
    """A signal asked the run to stop, and it has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelled word: the nearest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sorted(names))}."


def shown(value: object) -> str:
    """Return the value of a setting as typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(getattr(value, "name", value))


def printable(text: object, *, one_line: bool = False) -> str:
    """Return text for a terminal: control characters and those that it cannot encode are escaped.

    Spaces of every width and the joiners of Persian, Indic scripts and emoji stay, and line breaks and tabs unless
    `one_line`. Every text for a terminal passes through here (`tests/test_terminal.py` checks it).
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf8"
    return visible(text, one_line=one_line).encode(encoding, "backslashreplace").decode(encoding)


def visible(text: object, *, one_line: bool = False) -> str:
    """Return text in which control characters and lone surrogates are escaped, as `printable` does, in UTF-8."""
    unescaped = "\u200c\u200d" if one_line else "\n\t\u200c\u200d"
    return "".join(c if c in unescaped or _is_shown(c) else _escaped(c) for c in str(text))


def message_of(error: Exception) -> str:
    """Return an error's class and message for a terminal, with all lines but the first indented.

    So a name with line breaks cannot imitate a line of the program's own. Long lines are shortened in the middle.
    """
    first, *more = (_shortened(line) for line in printable(error).split("\n"))
    return "\n".join([f"{type(error).__name__}: {first}", *(f"  {line.removeprefix('  ')}" for line in more)])


def _shortened(line: str) -> str:
    if len(line) <= MAX_LINE:
        return line
    omitted = len(line) - MAX_LINE
    return f"{line[: MAX_LINE // 2]} [... {omitted:,} characters ...] {line[-(MAX_LINE // 2) :]}"


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class _PipeOutput(io.FileIO):
    """A pipe that drops what is written after its reader has closed it."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for the processes started from here on, too
            os.close(null)
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let a command end its work, with its own exit code, when a reader such as `| head` closes the pipe.

    From here on, what it prints after that is dropped. Streams that are no pipes stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or not stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            continue
        stream.flush()
        pipe = _PipeOutput(stream.fileno(), "w", closefd=False)
        buffer: Any = pipe if stream.write_through else io.BufferedWriter(pipe)  # unbuffered: `python -u`
        kept = {each: getattr(stream, each) for each in ("encoding", "errors", "line_buffering", "write_through")}
        setattr(sys, name, io.TextIOWrapper(buffer, **kept))


def show(text: str, *, one_line: bool = False) -> None:
    """Print a text. A reader such as `| head` that closes the pipe does not end the run."""
    try:
        print(printable(text, one_line=one_line), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python reports it again at exit
