"""Show how a canvas fills: a line for each step in a terminal, or an animation in a page of HTML and CSS."""

import os
import sys
from collections.abc import Iterator, Sequence
from enum import Enum
from html import escape
from pathlib import Path
from typing import NamedTuple

from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import printable
from pretrain.inference.canvas import Canvas

MAX_SECONDS = 12.0  # of an animation
MAX_SECONDS_PER_STEP = 0.4


class State(Enum):
    """What a piece of a canvas is."""

    given = "given"
    hidden = "hidden"
    revealed = "revealed"
    newest = "newest"  # revealed in the last step


class Piece(NamedTuple):
    """Whole characters of a canvas; a mask is one underscore."""

    text: str
    positions: tuple[int, ...]


def pieces_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[Piece]:
    """Return an iterator over the pieces of a row; special tokens but masks have none."""
    before, positions, pending = list[int](), list[int](), list[int]()
    for position, token in enumerate([*tokens, tokenizer.eos_id]):
        if token not in tokenizer.special_ids:
            positions.append(position)
            pending.append(token)
            text = tokenizer.decode_after(before, pending)
            if not text or text.endswith("\ufffd"):
                continue  # a character takes several tokens
        if pending:
            yield Piece(tokenizer.decode_after(before, pending), tuple(positions))
            before, positions, pending = pending[-1:], [], []
        if token == tokenizer.mask_id:
            yield Piece("_", (position,))


class Trace:
    """The steps of the first canvas; an object of it is what `on_step` calls."""

    def __init__(self, tokenizer: Tokenizer, prints: bool = False) -> None:
        """`prints`: show every step in the terminal as it comes."""
        self.tokenizer = tokenizer
        self.prints = prints
        self.steps = -1  # taken so far
        self.tokens: list[int] = []
        self.step_of: dict[int, int] = {}  # the step, from 1, that revealed a position

    def __call__(self, canvases: Sequence[Canvas]) -> None:
        """Record the canvas before the first step, or after the next one."""
        canvas = canvases[0]
        self.steps += 1
        self.tokens = list(canvas.tokens)
        self.step_of |= {reveal.position: self.steps for reveal in canvas.newest}
        if self.prints:
            self._print()

    def pieces(self) -> list[tuple[State, str]]:
        """Return the text of the canvas in pieces of one state each."""
        found = list[tuple[State, str]]()
        for text, positions in pieces_of(self.tokenizer, self.tokens):
            state = self._state(positions)
            if found and found[-1][0] is state:
                found[-1] = (state, found[-1][1] + text)
            else:
                found.append((state, text))
        return found

    def _state(self, positions: Sequence[int]) -> State:
        if any(self.tokens[position] == self.tokenizer.mask_id for position in positions):
            return State.hidden
        step = max(self.step_of.get(position, 0) for position in positions)
        if not step:
            return State.given
        return State.newest if step == self.steps else State.revealed

    def _print(self) -> None:
        """Print one line: new tokens green, earlier ones blue, masks gray; without colors where none are wanted."""
        colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(printable(f"step {self.steps:<4} "), end="")
        for state, text in self.pieces():
            if colored and state is State.newest:
                print("\x1b[1;32m", end="")
            elif colored and state is State.revealed:
                print("\x1b[34m", end="")
            elif colored and state is State.hidden:
                print("\x1b[90m", end="")
            print(printable(text, one_line=True), end="")
            if colored:
                print("\x1b[0m", end="")
        print(flush=True)

    def write(self, path: Path) -> None:
        """Write a page on which each token appears in its step: HTML and CSS alone, without scripts or other files."""
        seconds = min(MAX_SECONDS_PER_STEP, MAX_SECONDS / max(1, self.steps))
        spans = []
        for text, positions in pieces_of(self.tokenizer, self.tokens):
            step = max(self.step_of.get(position, 0) for position in positions)
            shown = escape(text)
            spans.append(f'<span style="--at:{step * seconds:.2f}s">{shown}</span>' if step else shown)
        page = _PAGE.replace("STEPS", str(self.steps)).replace("TEXT", "".join(spans), 1)
        path.write_text(page, encoding="utf8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>STEPS steps of a diffusion model</title>
<style>
:root { color-scheme: light dark; --ink: #222; --mask: #d8d8d8; --new: #0a7d33; --flash: #c9f2d5; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --mask: #444; --new: #7fe0a0; --flash: #1d4a2c; } }
body { font: 18px/1.8 Georgia, serif; max-width: 44em; margin: 3em auto; padding: 0 1em; color: var(--ink); }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
label { font: 14px sans-serif; cursor: pointer; }
span { border-radius: 3px; animation: appear 0.8s var(--at) both; }
#again:checked ~ p span { animation-name: reappear; }
@keyframes appear { from { color: transparent; background: var(--mask); }
  30% { color: var(--new); background: var(--flash); } to { color: var(--ink); background: transparent; } }
@keyframes reappear { from { color: transparent; background: var(--mask); }
  30% { color: var(--new); background: var(--flash); } to { color: var(--ink); background: transparent; } }
@media (prefers-reduced-motion: reduce) { span { animation: none !important; } }
</style>
</head>
<body>
<input type="checkbox" id="again"><label for="again"> play again (STEPS steps)</label>
<p>TEXT</p>
</body>
</html>
"""
