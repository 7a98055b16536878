"""The page of a report: one file without scripts or links to the network, light and dark, for wide and narrow screens.

Every text that is not the program's own passes `escaped`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pretrain.errors import visible

MAX_TEXT = 6_000  # characters shown of one text

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fdfdfb; --ink: #17170f; --muted: #5c5b54; --line: #dddcd5;
  --grid: #e8e7e1; --s1: #2a78d6; --s2: #e0561c; --s3: #13875f; --s4: #a87400; --s5: #c2447e; --s6: #4a3aa7;
  --s7: #0a7f8c; --s8: #d03a3a; --quiet: #a9a8a0; --good: #13795a; --bad: #b42a2a; --code: #efeee9;
  --mark: #ffe08a; }
@media (prefers-color-scheme: dark) { :root { --page: #121211; --card: #1b1b19; --ink: #f2f1ec; --muted: #b0aea4;
  --line: #35342f; --grid: #2b2a27; --s1: #5a9df0; --s2: #f07f4c; --s3: #35b98b; --s4: #d9a31e; --s5: #e57aa8;
  --s6: #a095f0; --s7: #3fb6c4; --s8: #ef7575; --quiet: #6f6e67; --good: #4cc39a; --bad: #f08a8a; --code: #262522;
  --mark: #6b5410; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 16px 64px; }
header p { margin: 4px 0 0; color: var(--muted); }
h1 { margin: 0; font-size: 26px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 18px; }
h3 { margin: 0 0 8px; font-size: 15px; }
.note { color: var(--muted); margin: 4px 0 12px; max-width: 75ch; }
.state { display: inline-block; margin-left: 8px; padding: 2px 10px; border: 1px solid currentColor;
  border-radius: 99px; font-size: 13px; font-weight: 600; vertical-align: 4px; }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 12px; margin-top: 20px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere; }
.tile span { color: var(--muted); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); gap: 16px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.one { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; }
.card { padding: 14px 16px; min-width: 0; }
/* a shadow at a side where a table goes on: it stays, and what covers it moves with the table */
.scroll { overflow-x: auto; background: linear-gradient(to right, var(--card) 40%, transparent) left / 36px 100% local,
  linear-gradient(to left, var(--card) 40%, transparent) right / 36px 100% local,
  linear-gradient(to right, var(--quiet), transparent) left / 12px 100% scroll,
  linear-gradient(to left, var(--quiet), transparent) right / 12px 100% scroll; background-repeat: no-repeat; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.narrow { display: none; }
@media (max-width: 760px) { .wide { display: none; } .narrow { display: block; } h1 { font-size: 22px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; } .tile b { font-size: 18px; }
  .card { padding: 12px; } }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--muted); }
svg text.label { fill: var(--ink); } svg text.strong { font-weight: 650; fill: var(--ink); }
.grid-line { stroke: var(--grid); stroke-width: 1; } .axis-line { stroke: var(--line); stroke-width: 1; }
.mark-line { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.quiet .curve { stroke-width: 1.25; } .band { fill: var(--c); opacity: .2; } .area { fill: var(--c); }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.quiet { --c: var(--quiet); }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); } .s4 { --c: var(--s4); } .s5 { --c: var(--s5); }
.s6 { --c: var(--s6); } .s7 { --c: var(--s7); } .s8 { --c: var(--s8); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-top: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; border-top: 0; white-space: nowrap; }
.wraps th { white-space: normal; }
td { overflow-wrap: break-word; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; padding-right: 20px; }
tr.best td { font-weight: 650; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; } td:first-child > code { overflow-wrap: break-word; }
pre { margin: 0 0 8px; padding: 10px 12px; background: var(--code); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
mark { background: var(--mark); color: inherit; border-radius: 3px; } mark:empty { padding: 0 3px; }
details + details { margin-top: 6px; } summary { cursor: pointer; padding: 4px 0; font-weight: 600; }
details pre { margin-top: 4px; max-height: 420px; overflow-y: auto; }
a { color: var(--s1); } footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
svg text.mark, svg text.label { paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
@media (max-width: 760px) { .stack thead { display: none; } .stack tr { display: block; padding: 8px 0;
  border-top: 1px solid var(--line); } .stack td { display: block; border: 0; padding: 1px 0; }
  .stack tr:first-child { border-top: 0; } .stack td:empty { display: none; } .stack td.number { text-align: left; }
  .stack td[data-head]::before { content: attr(data-head) " "; color: var(--muted); font-size: 13px; } }
@media print { body { background: #fff; } .card, .tile { break-inside: avoid; } }
"""


def escaped(text: object, limit: int = MAX_TEXT) -> str:
    """Return a text for HTML, in an element or a quoted attribute: markup and control characters are shown as text.

    Of a text longer than `limit` characters the rest is counted.
    """
    whole = str(text)
    rest = f" [... {len(whole) - limit:,} characters more]" if len(whole) > limit else ""
    return html.escape(visible(whole[:limit]) + rest)


@dataclass
class Page:
    """A report under construction; its sections are HTML."""

    title: str
    about: str
    state: tuple[str, bool] | None = None  # how it ended, and whether that is good
    tiles: list[tuple[str, str]] = field(default_factory=list)  # a figure and what it is
    sections: list[str] = field(default_factory=list)

    def add(self, heading: str, *parts: str, note: str = "") -> None:
        """Add a section of HTML parts; nothing where all of them are empty."""
        if any(parts):
            about = f'<p class="note">{escaped(note)}</p>' if note else ""
            self.sections.append(f"<section><h2>{escaped(heading)}</h2>{about}{''.join(parts)}</section>")

    def render(self) -> str:
        """Return the whole page."""
        state = ""
        if self.state is not None:
            words, is_good = self.state
            state = f'<span class="state {"good" if is_good else "bad"}">{escaped(words)}</span>'
        tiles = "".join(
            f'<div class="tile"><b>{escaped(value)}</b><span>{escaped(name)}</span></div>' for value, name in self.tiles
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"  # a second lock: no script runs here
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escaped(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body><main>\n"
            f"<header><h1>{escaped(self.title)}{state}</h1><p>{escaped(self.about)}</p></header>\n"
            + (f'<div class="tiles">{tiles}</div>\n' if tiles else "")
            + "\n".join(self.sections)
            + "\n</main></body>\n</html>\n"
        )


def card(*parts: str, heading: str = "") -> str:
    """Return HTML in a box; empty where it has no content."""
    title = f"<h3>{escaped(heading)}</h3>" if heading else ""
    return f'<div class="card">{title}{"".join(parts)}</div>' if any(parts) else ""


def grid(cards: Iterable[str], kind: str = "grid") -> str:
    """Return boxes side by side, as many as the screen is wide; `kind` "two" at most two, "one" one below the other."""
    found = "".join(cards)
    return f'<div class="{kind}">{found}</div>' if found else ""


@dataclass(frozen=True)
class Cell:
    """A cell whose content is more than text."""

    html: str
    is_number: bool = False


def code(text: object) -> Cell:
    """Return a cell with a setting, a value or a command."""
    return Cell(f"<code>{escaped(text)}</code>")


def number(text: object) -> Cell:
    """Return a cell of a column of numbers."""
    return Cell(escaped(text), is_number=True)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[object]], best: int | None = None, *, stacks: bool = False,
    names_last: bool = False,
) -> str:  # fmt: skip
    """Return a table of texts and cells, empty without rows; row number `best` is marked.

    Where it is wider than the screen, it can be moved sideways, and a shadow shows that. With `stacks`, it has its
    cells one below the other on a narrow screen, each after its head; the last one only if it is a number or with
    `names_last`. Long heads may take several lines.
    """
    if not rows:
        return ""
    are_numbers = [isinstance(cell, Cell) and cell.is_number for cell in rows[0]]
    top = "".join(f"<th{_kind(right)}>{escaped(head)}</th>" for head, right in zip(heads, are_numbers, strict=True))
    head = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    body = []
    for position, row in enumerate(rows):
        cells = (cell if isinstance(cell, Cell) else Cell(escaped(cell)) for cell in row)
        named = range(1, len(row) if are_numbers[-1] or names_last else len(row) - 1) if stacks else ()
        labels = [f' data-head="{escaped(head)}"' if at in named else "" for at, head in enumerate(heads)]
        inner = "".join(
            f"<td{_kind(cell.is_number)}{label}>{cell.html}</td>" for cell, label in zip(cells, labels, strict=True)
        )
        body.append(f"<tr{' class=best' if position == best else ''}>{inner}</tr>")
    kind = "scroll stack" if stacks else "scroll"
    wraps = " class=wraps" if max(map(len, heads), default=0) > 24 else ""
    return f'<div class="{kind}"><table{wraps}>{head}<tbody>{"".join(body)}</tbody></table></div>'


def _kind(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def verbatim(text: str) -> str:
    """Return a text as it is, with its line breaks."""
    return f"<pre>{escaped(text)}</pre>"


def marked(segments: Iterable[tuple[str, bool]]) -> str:
    """Return a text of segments, each with whether it is marked."""
    parts = (f"<mark>{_whole(part)}</mark>" if is_marked else _whole(part) for part, is_marked in segments)
    return f"<pre>{''.join(parts)}</pre>"


def _whole(text: str) -> str:
    return escaped(text, limit=len(text))


def folded(summary: str, text: str, *, is_open: bool = False) -> str:
    """Return a text after a line that opens it."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>{verbatim(text)}</details>"
