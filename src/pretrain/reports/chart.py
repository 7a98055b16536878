"""Charts as inline SVG, without scripts; the same data gives the same bytes. `page.py` has their colors.

Lengths are in units of the SVG's own, which the page scales to the position that a chart has: `WIDTH` fits half a wide
screen or a whole narrow one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pretrain.reports.page import escaped
from pretrain.reports.series import Point, Series

WIDTH, HEIGHT, WIDE = 440, 240, 1200
COLORS = 8  # lines that colors can tell apart
_LETTER, _LINE = 6.9, 16.0  # width of a letter, height of a line of text
_TOP, _BOTTOM, _LEFT, _RIGHT = 14.0, 38.0, 50.0, 14.0
_MIN_SHARE = 0.3  # of a limit that the parts below it must have to be drawn on its scale
_MIN_DECADES = 30.0  # largest divided by smallest value from which an axis is logarithmic by itself


@dataclass(frozen=True)
class Line:
    """A curve of a chart, or dots."""

    name: str
    series: Series
    dots: bool = False  # mark each position, where they are few
    joined: bool = True
    quiet: bool = False  # gray, without a label: one of many to compare with


@dataclass(frozen=True)
class Look:
    """What a chart is about and how it is drawn."""

    title: str
    x: str = "step"
    y: str = ""
    log_x: bool = False
    log_y: bool | None = None  # None: where the values differ much
    marks: Sequence[tuple[float, str]] = ()  # positions on the x axis with a text, such as a threshold
    from_zero: bool = False
    x_ends: tuple[float, float] | None = None  # of charts that share an axis; None: those of the values
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Bar:
    """A bar of a chart."""

    name: str
    value: float
    shown: str  # the value in words
    start: float = 0.0  # where it begins: above 0 in a waterfall
    color: int = 0


@dataclass(frozen=True)
class Axis:
    """A scale from values to positions between two ends, and its round numbers."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Return round numbers within the axis, `about` of them."""
        return _log_ticks(self.low, self.high, about) if self.is_log else _ticks(self.low, self.high, about)


def axis(values: Iterable[float], start: float, end: float, *, is_log: bool = False, from_zero: bool = False) -> Axis:
    """Return an axis that holds these values, with a little room around them unless it is logarithmic."""
    found = [value for value in values if not is_log or value > 0] or [1.0]
    low, high = min(found), max(found)
    if from_zero:
        low = min(low, 0.0)
    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - abs(low) / 2 - (low == 0), high + abs(high) / 2 + 1e-9)
    return Axis(low, high, start, end, is_log)


def _ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [f * 10.0**p for p in powers for f in factors if low * 0.999 <= f * 10.0**p <= high * 1.001]
        if len(found) >= 3:
            break
    else:
        doublings = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
        return max(found, [2.0**power for power in doublings], [low, high], key=len)
    return found[:: max(1, math.ceil(len(found) / (about + 1)))]


def short(value: float) -> str:
    """Return a number in few characters: 1.2M, 0.05, 3e-5."""
    size = abs(value)
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"


def line_chart(lines: Sequence[Line], look: Look) -> str:
    """Return curves over a common axis, each with its name and newest value at its end; empty without values.

    A bin of several values is drawn as their mean inside the band from the lowest to the highest.
    """
    lines = [line for line in lines if line.series]
    if not lines:
        return ""
    named = [line for line in lines if not line.quiet]
    labels = [_end_label(line, alone=len(named) == 1) for line in named]
    room = min(0.42 * look.width, max((_LETTER * len(text) + 14 for text in labels), default=0.0))
    points = {id(line): line.series.points() for line in lines}
    everything = [point for each in points.values() for point in each]
    log_y = _is_log(everything) if look.log_y is None else look.log_y
    steps = [*(look.x_ends or ()), *(p.x for p in everything)]
    across = axis(steps, _LEFT, look.width - max(_RIGHT, room), is_log=look.log_x)
    heights = [height for p in everything for height in (p.low, p.high)]
    up = axis(heights, look.height - _BOTTOM, _TOP, is_log=log_y, from_zero=look.from_zero)
    up = up if log_y else _with_room(up, look.from_zero)
    drawn = [_frame(across, up, look)]
    colors = {id(line): f"s{number % COLORS + 1}" for number, line in enumerate(named)}
    for line in sorted(lines, key=lambda line: not line.quiet):  # gray ones first, below the others
        color = colors.get(id(line), "quiet")
        drawn.append(f'<g class="{color}">{_curve(line, points[id(line)], across, up)}</g>')
    ends = [(up(points[id(line)][-1].mean), across(points[id(line)][-1].x)) for line in named]
    drawn += [_marks(across, up.start, look), *_end_labels(labels, ends, look)]
    return _svg(look, _about_lines(lines), "".join(drawn))


def _is_log(points: list[Point]) -> bool:
    low, high = min(p.low for p in points), max(p.high for p in points)
    return low > 0 and high / low >= _MIN_DECADES


def _with_room(up: Axis, from_zero: bool) -> Axis:
    room = 0.05 * (up.high - up.low)
    low = up.low if from_zero or 0 <= up.low < room else up.low - room
    return replace(up, low=low, high=up.high + room)


def _end_label(line: Line, *, alone: bool) -> str:
    assert line.series.last is not None
    value = short(line.series.last[1])
    if alone and line.joined:
        return value
    name = line.name if len(line.name) <= 16 else f"{line.name[:15]}…"
    return f"{name} {value}" if line.joined else ""


def _frame(across: Axis, up: Axis, look: Look) -> str:
    """Return grid, round numbers and names of the axes."""
    parts = []
    for value in up.ticks(4):
        y = up(value)
        parts.append(f'<path class="grid-line" d="M{_LEFT:.0f} {y:.1f}H{across.end:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>')
    base = up.start
    parts.append(f'<path class="axis-line" d="M{_LEFT:.0f} {base:.1f}H{across.end:.1f}"/>')
    for value in across.ticks(max(3, int((across.end - across.start) / 90))):
        x = across(value)
        anchor = "end" if x > look.width - 16 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{base + 16:.1f}" text-anchor="{anchor}">{short(value)}</text>')
    middle = (across.start + across.end) / 2
    parts.append(f'<text x="{middle:.1f}" y="{base + 31:.1f}" text-anchor="middle">{escaped(look.x)}</text>')
    return "".join(parts)


def _marks(across: Axis, base: float, look: Look) -> str:
    """Return the marks of a chart; above its curves and bars."""
    parts = []
    for value, text in look.marks:
        if across.low <= value <= across.high:
            x = across(value)
            parts.append(f'<path class="mark-line" d="M{x:.1f} {_TOP:.0f}V{base:.1f}"/>')
            anchor, beside = ("end", x - 4) if x > (across.start + across.end) / 2 else ("start", x + 4)
            parts.append(f'<text x="{beside:.1f}" y="{_TOP + 8:.0f}" text-anchor="{anchor}" class="mark">')
            parts.append(f"{escaped(text)}</text>")
    return "".join(parts)


def _curve(line: Line, points: list[Point], across: Axis, up: Axis) -> str:
    positions = [(across(p.x), up(p.low), up(p.mean), up(p.high)) for p in points]
    parts = []
    if line.joined and not line.quiet and any(p.low < p.high for p in points):
        upper = "L".join(f"{x:.1f} {high:.1f}" for x, _, _, high in positions)
        lower = "L".join(f"{x:.1f} {low:.1f}" for x, low, _, _ in reversed(positions))
        parts.append(f'<path class="band" d="M{upper}L{lower}Z"/>')
    if line.joined and len(points) > 1:
        parts.append(f'<path class="curve" d="M{"L".join(f"{x:.1f} {mean:.1f}" for x, _, mean, _ in positions)}"/>')
    if line.dots or len(points) == 1:
        for point, (x, _, mean, _) in zip(points, positions, strict=True):
            said = escaped(f"{line.name}: {short(point.mean)} at {short(point.x)}")
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{mean:.1f}" r="4"><title>{said}</title></circle>')
    return "".join(parts)


def _end_labels(labels: list[str], ends: list[tuple[float, float]], look: Look) -> list[str]:
    """Return the names of the curves at their ends, moved apart where they would cover each other."""
    order = sorted((line for line in range(len(labels)) if labels[line]), key=lambda line: ends[line][0])
    heights: list[float] = []
    for line in order:
        heights.append(max(ends[line][0], heights[-1] + _LINE if heights else _TOP))
    lowest = look.height - _BOTTOM
    for line in reversed(range(len(heights))):
        heights[line] = min(heights[line], lowest - _LINE * (len(heights) - 1 - line))
    parts = []
    for line, y in zip(order, heights, strict=True):
        x = ends[line][1]
        parts.append(
            f'<g class="s{line % COLORS + 1}"><circle class="dot" cx="{x:.1f}" cy="{ends[line][0]:.1f}" r="3.5"/>'
        )
        parts.append(f'<text class="label" x="{x + 9:.1f}" y="{y + 4:.1f}">{escaped(labels[line])}</text></g>')
    return parts


def _about_lines(lines: Sequence[Line]) -> str:
    """Return the curves in words, for those who do not see them."""
    texts = []
    for line in lines[: 2 * COLORS]:
        low, high = line.series.extremes()
        assert line.series.last is not None
        last_x, last = line.series.last
        text = f"{line.name}: from {short(line.series.first_value())} to {short(last)} at {short(last_x)}"
        texts.append(f"{text}, lowest {short(low)}, highest {short(high)}")
    rest = [f"and {len(lines) - 2 * COLORS} more"] if len(lines) > 2 * COLORS else []
    return "; ".join([*texts, *rest]) + "."


def bar_chart(bars: Sequence[Bar], look: Look) -> str:
    """Return horizontal bars with their names before them and their values after; empty without bars.

    A waterfall is bars that begin where the one before has ended.
    """
    if not bars:
        return ""
    longest = max(len(bar.name) for bar in bars)
    names = min(0.36 * look.width, _LETTER * longest + 12)
    values = _LETTER * max(len(bar.shown) for bar in bars) + 12
    ends = [edge for bar in bars for edge in (bar.start, bar.start + bar.value)]
    across = axis([0.0, *ends], names, look.width - values)
    letters, parts = int(names / _LETTER), []
    for row, bar in enumerate(bars):
        y = row * 24.0
        left, right = sorted((across(bar.start), across(bar.start + bar.value)))
        name = bar.name if len(bar.name) <= letters else f"{bar.name[: letters - 1]}…"
        parts.append(f'<text class="label" x="{names - 8:.1f}" y="{y + 15:.0f}" text-anchor="end">{escaped(name)}')
        parts.append(f"<title>{escaped(bar.name)}</title></text>" if name != bar.name else "</text>")
        parts.append(f'<rect class="area s{bar.color % COLORS + 1}" x="{left:.1f}" y="{y + 3:.0f}" ')
        parts.append(f'width="{max(1.0, right - left):.1f}" height="16" rx="2"/>')
        parts.append(f'<text x="{right + 6:.1f}" y="{y + 15:.0f}">{escaped(bar.shown)}</text>')
    return _svg(replace(look, height=24 * len(bars)), _about_bars(bars), "".join(parts))


def stacked_bar(bars: Sequence[Bar], look: Look, limit: tuple[float, str] | None = None) -> str:
    """Return one bar of parts, and below it a line for each with its value and share; empty if they sum to 0.

    `limit` is a value and its name that the parts are to stay below, such as the memory of a device.
    """
    bars = [bar for bar in bars if bar.value > 0]
    total = sum(bar.value for bar in bars)
    if not total:
        return ""
    across = Axis(0.0, max(total, 1.08 * limit[0] if limit else 0.0), 0.0, float(look.width))
    if limit and total < _MIN_SHARE * limit[0]:  # too small to be seen beside the limit
        across = Axis(0.0, total, 0.0, float(look.width))
    top = 18.0 if limit else 0.0
    parts, at = [], 0.0
    for number, bar in enumerate(bars):
        left, right = across(at), across(at + bar.value)
        parts.append(f'<rect class="area s{number % COLORS + 1}" x="{left:.1f}" y="{top:.0f}" ')
        parts.append(f'width="{max(1.0, right - left - 1.5):.1f}" height="28" rx="2"/>')
        y, at = top + 50 + number * 22.0, at + bar.value
        parts.append(
            f'<rect class="area s{number % COLORS + 1}" x="0" y="{y - 10:.0f}" width="12" height="12" rx="2"/>'
        )
        parts.append(f'<text class="label" x="20" y="{y:.0f}">{escaped(bar.name)}</text>')
        parts.append(
            f'<text class="label" x="{look.width - 56:.0f}" y="{y:.0f}" text-anchor="end">{escaped(bar.shown)}'
        )
        parts.append(f'</text><text x="{look.width:.0f}" y="{y:.0f}" text-anchor="end">{bar.value / total:.1%}</text>')
    about = _about_bars(bars)
    if limit:
        x, text = across(min(limit[0], across.high)), limit[1]
        if limit[0] <= across.high:
            parts.append(f'<path class="mark-line" d="M{x:.1f} 14V{top + 32:.0f}"/>')
        else:
            text = f"{total / limit[0]:.1%} of the limit: {text}"
        anchor = "end" if x > look.width / 2 else "start"
        parts.append(f'<text x="{x:.1f}" y="10" text-anchor="{anchor}">{escaped(text)}</text>')
        about += f" {limit[1]}."
    return _svg(replace(look, height=int(top + 42 + 22 * len(bars))), about, "".join(parts))


@dataclass(frozen=True)
class Histogram:
    """How many values lie between each two edges; there is one edge more than counts."""

    edges: Sequence[float]
    counts: Sequence[int]
    name: str = "values"
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.counts))


def histogram(values: Histogram, look: Look) -> str:
    """Return a bar for each interval, as high as it has values, with thresholds as marks; empty without values.

    With `log_y` the heights are logarithmic, so that few values are seen beside many.
    """
    if not values.total:
        return ""
    across = axis(values.edges, _LEFT, look.width - _RIGHT, is_log=look.log_x)
    base = look.height - _BOTTOM
    if look.log_y:
        up = Axis(0.5, max(2.0, 1.3 * max(values.counts)), base, _TOP, is_log=True)
    else:
        up = _with_room(axis([0.0, *values.counts], base, _TOP, from_zero=True), from_zero=True)
    parts = []
    for low, high, count in zip(values.edges, values.edges[1:], values.counts, strict=False):
        left, right, y = across(low), across(high), up(count)
        if count:
            said = escaped(f"{short(low)} to {short(high)}: {count:,}")
            parts.append(f'<rect class="area s1" x="{left:.1f}" y="{y:.1f}" width="{max(1.0, right - left - 1):.1f}" ')
            parts.append(f'height="{max(1.0, up.start - y):.1f}"><title>{said}</title></rect>')
    most = max(range(len(values.counts)), key=lambda position: values.counts[position])
    about = f"{values.total:,} {values.name}; most, {values.counts[most]:,}, between {short(values.edges[most])} and "
    about += f"{short(values.edges[most + 1])}" + "".join(f"; {text}" for _, text in look.marks) + "."
    return _svg(look, about, "".join([_frame(across, up, look), *parts, _marks(across, up.start, look)]))


def _about_bars(bars: Sequence[Bar]) -> str:
    return "; ".join(f"{bar.name}: {bar.shown}" for bar in bars) + "."


def _svg(look: Look, about: str, drawing: str) -> str:
    """Return a drawing with its title and its description, to which ids made of the content tie it."""
    digest = hashlib.sha256(f"{look}{about}{drawing}".encode("utf8", "surrogatepass")).hexdigest()[:10]
    return (
        f'<svg role="img" viewBox="0 0 {look.width} {look.height}" aria-labelledby="t{digest} d{digest}">'
        f'<title id="t{digest}">{escaped(look.title)}</title><desc id="d{digest}">{escaped(about)}</desc>'
        f"{drawing}</svg>"
    )
