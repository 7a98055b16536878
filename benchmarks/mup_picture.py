"""Draw docs/pictures/mup_transfer.svg from the saved result of mup_transfer.py: `python benchmarks/mup_picture.py`.

The loss of every rate that was tried, by width, in both parametrizations. The same result gives the same bytes.
"""

import json
import math
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "mup_transfer.json"
PICTURE = ROOT / "docs" / "pictures" / "mup_transfer.svg"
PANEL, HEIGHT, LEFT, TOP, GAP = 330, 250, 58, 46, 44
INK, FAINT = "#768390", "#8c959f"
COLORS = {64: "#8250df", 128: "#2f81f7", 256: "#2da44e", 512: "#d9730d"}


def panels(result: dict[str, Any], optimizer: str = "adamw") -> dict[str, list[dict[str, Any]]]:
    """Return the widths of each parametrization with their losses by rate, narrowest first."""
    best = [each for each in result["figures"]["best"] if each["optimizer"] == optimizer]
    return {name: [each for each in best if each["parametrization"] == name] for name in ("standard", "mup")}


def draw() -> str:
    """Return the picture."""
    found = panels(json.loads(RESULT.read_text(encoding="utf8")))
    points = [point for lines in found.values() for line in lines for point in line["losses"]]
    rates = [math.log2(rate) for rate, _ in points]
    losses = [loss for _, loss in points]
    x_of = _scale(min(rates) - 0.3, max(rates) + 0.3, 0.0, PANEL)
    y_of = _scale(min(losses) - 0.03, max(losses) + 0.03, TOP + HEIGHT, TOP)
    parts = []
    for number, (name, lines) in enumerate(found.items()):
        left = LEFT + number * (PANEL + GAP)
        parts += _frame(left, {"standard": "standard parametrization", "mup": "muP, base width 64"}[name])
        for power in range(math.ceil(min(rates)), math.floor(max(rates)) + 1, 2):
            x = left + x_of(power)
            parts.append(_text(x, TOP + HEIGHT + 18, f"{2.0**power:.2g}", anchor="middle"))
            parts.append(f'<path d="M{x:.1f} {TOP}v{HEIGHT}" stroke="{FAINT}" stroke-opacity="0.25"/>')
        for tenth in range(math.ceil(min(losses) * 10), math.floor(max(losses) * 10) + 1, 2):
            y = y_of(tenth / 10)
            parts.append(f'<path d="M{left} {y:.1f}h{PANEL}" stroke="{FAINT}" stroke-opacity="0.25"/>')
            if not number:
                parts.append(_text(left - 8, y + 4, f"{tenth / 10:.1f}", anchor="end"))
        for line in lines:
            parts += _curve(line, lambda rate, left=left: left + x_of(math.log2(rate)), y_of)
    for number, (width, color) in enumerate(COLORS.items()):
        parts.append(_text(LEFT + 8 + 96 * number, TOP + HEIGHT + 46, f"\u25cf width {width}", color))
    parts.append(_text(LEFT + 8 + 96 * 4 + 20, TOP + HEIGHT + 46, "by learning rate; the ring is the best of a width"))
    parts.append(_text(LEFT - 8, TOP - 28, "loss in nats", anchor="start"))
    about = "; ".join(
        f"{name}: " + ", ".join(f"width {line['width']} best at {line['rate']:.2g}" for line in lines)
        for name, lines in found.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + 2 * PANEL + GAP + 12} {TOP + HEIGHT + 60}" '
        'role="img" font-family="system-ui, sans-serif" font-size="13">\n'
        f"<title>Loss by learning rate at four widths</title><desc>{escape(about)}</desc>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(left: int, title: str) -> list[str]:
    return [
        f'<rect x="{left}" y="{TOP}" width="{PANEL}" height="{HEIGHT}" fill="none" stroke="{FAINT}"/>',
        _text(left + PANEL / 2, TOP - 10, title, anchor="middle"),
    ]


def _curve(line: dict[str, Any], x_of: Any, y_of: Any) -> list[str]:
    """Return a width's curve, a dot for each rate that was tried, and a ring around the best."""
    color, places = COLORS[line["width"]], [(x_of(rate), y_of(loss)) for rate, loss in line["losses"]]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in places]
    best = f'cx="{x_of(line["rate"]):.1f}" cy="{y_of(line["loss"]):.1f}"'
    return [
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>',
        *dots,
        f'<circle {best} r="6" fill="none" stroke="{color}" stroke-width="2"/>',
    ]


def _text(x: float, y: float, text: str, color: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf8")
    print(PICTURE.relative_to(ROOT))
