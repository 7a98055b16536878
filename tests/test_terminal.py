"""All terminal output passes `printable`: names, settings, tokens and texts are untrusted."""

import ast
import re
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
