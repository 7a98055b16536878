"""The trace of a canvas: each step in a terminal, and a page that holds no more than text."""

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pretrain.data.tokenizers.train_bpe import byte_tokenizer, train_bpe
from pretrain.inference.canvas import Canvas, Reveal
from pretrain.inference.canvas_trace import State, Trace, pieces_of

BYTES = byte_tokenizer()
MASK = BYTES.mask_id
assert MASK is not None
ROW = [BYTES.bos_id, *b"a", MASK, MASK, MASK, *b"b", BYTES.eos_id]


def traced(row: list[int], steps: list[list[tuple[int, int]]], prints: bool = False) -> Trace:
    """Return the trace of a canvas whose steps reveal these tokens, (place, token)."""
    assert MASK is not None
    canvas, trace = Canvas(row, MASK, 0, len(steps), None), Trace(BYTES, prints)
    trace([canvas])
    for step in steps:
        canvas.reveal([Reveal(place, token, -1.0) for place, token in step], ())
        trace([canvas])
    return trace


def test_each_step_shows_what_is_given_hidden_revealed_and_new() -> None:
    trace = traced(ROW, [[(3, ord("y"))]])
    assert trace.pieces() == [
        (State.given, "a"), (State.hidden, "_"), (State.newest, "y"), (State.hidden, "_"), (State.given, "b"),
    ]  # fmt: skip
    trace = traced(ROW, [[(3, ord("y"))], [(2, ord("x")), (4, ord("z"))]])
    assert trace.pieces() == [
        (State.given, "a"), (State.newest, "x"), (State.revealed, "y"), (State.newest, "z"), (State.given, "b"),
    ]  # fmt: skip


def test_characters_of_several_tokens_are_one_piece() -> None:
    row = [BYTES.bos_id, *"é€".encode(), MASK or 0, *"é".encode()[:1]]
    assert [piece.text for piece in pieces_of(BYTES, row)] == ["é", "€", "_", "\ufffd"]
    bpe = train_bpe(["the quick brown fox"] * 3, 290)
    ids = bpe.encode("the quick brown")
    assert "".join(piece.text for piece in pieces_of(bpe, ids)) == "the quick brown"


def test_steps_are_printed_plain_or_in_color(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [[(3, 27)], [(2, ord("\n")), (4, ord("z"))]]  # an escape character must not reach a terminal
    traced(ROW, steps, prints=True)
    plain = capsys.readouterr().out
    assert plain == "step 0    a___b\nstep 1    a_\\x1b_b\nstep 2    a\\n\\x1bzb\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    traced(ROW, steps, prints=True)
    colored = capsys.readouterr().out
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain
    assert "\x1b[1;32m\\x1b\x1b[0m" in colored  # new: green
    assert "\x1b[34m\\x1b\x1b[0m" in colored  # of an earlier step: blue
    assert "\x1b[90m_" in colored  # hidden: gray
    monkeypatch.setenv("NO_COLOR", "1")
    traced(ROW, steps, prints=True)
    assert capsys.readouterr().out == plain


class Page(HTMLParser):
    """Collects the tags and the text of a page's paragraph."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.delays: list[float] = []
        self.text = ""
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = self.inside or tag == "p"
        if tag == "span":
            assert [name for name, _ in attrs] == ["style"]
            self.delays.append(float((attrs[0][1] or "").removeprefix("--at:").removesuffix("s")))

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "p"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def test_the_animation_shows_the_text_and_runs_nothing(tmp_path: Path) -> None:
    text = b"<script>alert('TEXT & STEPS')</script>"
    row = [BYTES.bos_id, *text, MASK or 0, MASK or 0, MASK or 0]
    start = 1 + len(text)
    trace = traced(row, [[(start + 2, ord("<"))], [(start, ord('"')), (start + 1, ord("&"))]])
    trace.write(tmp_path / "trace.html")
    content = (tmp_path / "trace.html").read_text(encoding="utf8")
    page = Page(content)
    assert page.text == text.decode() + '"&<'
    assert html.escape('"') in content
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.tags.count("span") == 3
    assert page.delays == [0.8, 0.8, 0.4]  # of the second step and of the first
    assert "default-src 'none'" in content
    assert len(content) < 3000
