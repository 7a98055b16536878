"""All terminal output passes `printable`: names, settings, tokens and texts are untrusted."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.errors import CheckpointError, message_of, printable

SOURCE = Path(__file__).parents[1] / "src"
LOGS = {"debug", "info", "warning", "error", "critical", "exception"}


def text_of(call: ast.Call) -> list[ast.expr] | None:
    """Return what a call shows on a terminal; none for a call that shows nothing."""
    match call.func:
        case ast.Name("print"):
            return call.args
        case ast.Attribute(ast.Name("tqdm" | "sys"), "write" | "displayhook"):
            return call.args
        case ast.Attribute(ast.Attribute(ast.Name("sys"), "stdout" | "stderr"), "write"):
            return call.args
        case ast.Attribute(ast.Name("traceback"), name) if name.startswith("print"):
            return [call]
        case ast.Attribute(ast.Name("log" | "logging" | "logger"), name) if name in LOGS:
            return call.args
        case ast.Name("tqdm"):
            return [word.value for word in call.keywords if word.arg in ("desc", "postfix")]
    return None


def is_safe(text: ast.expr) -> bool:
    if isinstance(text, ast.Call):
        return isinstance(text.func, ast.Name) and text.func.id in ("printable", "message_of")
    return isinstance(text, ast.Constant)


def unescaped(source: str) -> list[int]:
    """Return the lines on which a text goes to a terminal as it is."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if not all(map(is_safe, text_of(call) or []))]


@pytest.mark.slow
def test_no_text_goes_to_a_terminal_as_it_is():
    files = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf8") for path in SOURCE.rglob("*.py")}
    assert len(files) > 50
    assert {name: lines for name, text in files.items() if (lines := unescaped(text))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "print(name)", "print(f'{name}')", "print('a', name)", "tqdm.write(name)", "sys.stderr.write(name)",
        "log.warning('%s', name)", "traceback.print_exc()", "tqdm(desc=name)", "print(str(name))",
    ],
)  # fmt: skip
def test_each_way_to_a_terminal_is_seen(line: str):
    assert unescaped(line) == [1]


def test_characters_that_do_not_move_the_cursor_stay():
    for text in ("naïve\u00a0text", "全角\u3000空白", "می\u200cخواهم", "👨\u200d👩\u200d👧", "a\tb\nc"):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"), ("\x9b31m", "\\x9b31m"), ("a\rb", "a\\rb"), ("\u202egpj", "\\u202egpj"),
        ("\ud800", "\\ud800"), ("\u2028", "\\u2028"), ("\U000e0001", "\\U000e0001"),
    ],
)  # fmt: skip
def test_characters_that_move_the_cursor_are_escaped(text: str, shown: str):
    assert printable(text) == shown


def test_one_line_stays_one():
    assert printable("a\nb\tc", one_line=True) == "a\\nb\\tc"


def test_a_name_with_line_breaks_begins_no_line_of_an_error():
    error = CheckpointError("the file '\n\x1b[31mCheckpointError: all is well' is missing")
    assert message_of(error).splitlines() == [
        "CheckpointError: the file '", "  \\x1b[31mCheckpointError: all is well' is missing",
    ]  # fmt: skip


def test_of_a_long_message_the_ends_are_shown():
    shown = message_of(CheckpointError(f"the file {'x' * 1_000_000} is missing"))
    assert len(shown) < 5_000
    assert re.match(r"CheckpointError: the file x+ \[\.\.\. 996,020 characters \.\.\.\] x+ is missing$", shown)


AFTER_THE_READER = """
import os, sys
from pretrain.errors import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.read()  # until the reader is gone
print("second", flush=True)
print("not flushed")
print("error", file=sys.stderr)
os.system("echo of a child")
sys.exit(7)
"""


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_command_ends_by_itself_when_its_reader_closes_the_pipe(options: list[str]) -> None:
    program = [sys.executable, *options, "-c", AFTER_THE_READER]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(program, stdin=subprocess.PIPE, text=True, **both) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 7


def test_a_python_without_the_libraries_leads_to_one_that_has_them(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    needed = ("__init__.py", "errors.py", "stop_signals.py", "commands/__init__.py")
    for name in ("train.py", *(f"pretrain/{each}" for each in needed)):
        (clone / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / name, clone / "src" / name)

    def typed(folder: Path) -> str:
        """Return what the script prints without installed packages, which `-S` leaves out."""
        program = [sys.executable, "-S", str(clone / "src" / "train.py")]
        ended = subprocess.run(program, cwd=folder, env={}, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        return ended.stderr

    here = (
        f"this Python, {sys.executable} ({sys.version_info[0]}.{sys.version_info[1]}), lacks torch, lightning and more"
    )
    assert typed(clone) == f"ConfigError: {here}. Type: python3.11 -m pip install --force-reinstall pretrain-*.whl\n"
    (clone / "Makefile").touch()
    assert typed(clone) == f"ConfigError: {here}. Type: make install\n"
    assert typed(tmp_path) == f"ConfigError: {here}. Type: make -C {clone} install\n"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "activate").touch()
    assert typed(clone) == f"ConfigError: {here}. Type: source .venv/bin/activate\n"
    assert typed(tmp_path) == f"ConfigError: {here}. Type: source clone/.venv/bin/activate\n"
