"""Draw the README's pictures in docs/pictures, pipeline.svg and badges.svg: `python benchmarks/hero_picture.py`.

With a run folder (`python benchmarks/hero_picture.py logs/gpt_nano/<time>`) it first reads that run into
docs/pictures/first_run.json: the curve, and of the first steps the rows with most documents and some tokens. The
n-gram lines are those of benchmarks/results/quality_gpt_nano.json; the badges show values of pyproject.toml. The same
input gives the same bytes.
"""

import argparse
import csv
import json
import tomllib
from html import escape
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
CURVE, QUALITY = PICTURES / "first_run.json", ROOT / "benchmarks" / "results" / "quality_gpt_nano.json"
SHOWN_STEPS, SHOWN_ROWS, SHOWN_TOKENS, SHOWN_TEXT = 4, 4, 8, 42

WIDTH, HEIGHT = 960, 300
# colors with a contrast of at least 3 to both white and GitHub's dark background (#0d1117)
INK, FAINT, BLUE, ORANGE, GREEN = "#768390", "#8c959f", "#2f81f7", "#d9730d", "#2da44e"
PIECES = (BLUE, ORANGE, GREEN, "#bf5af2")


def read_run(folder: Path) -> dict[str, Any]:
    """Return what the picture shows of a causal run: sizes, curves in bits per byte, rows of the first steps."""
    from pretrain.evaluation.inspect_step import rows_of_step
    from pretrain.language_model import LanguageModel

    report = json.loads((folder / "report.json").read_text(encoding="utf8"))
    with (folder / "metrics.csv").open(encoding="utf8") as file:
        points = [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]
    bits_of_a_nat = report["validation"]["val/bits_per_byte"] / report["validation"]["val/loss"]
    read = [row for step in range(1, SHOWN_STEPS + 1) for row in rows_of_step(folder, step)]
    rows = sorted(read, key=lambda row: -len(row.pieces))[:SHOWN_ROWS]  # those in which packing shows
    whole = [piece for row in rows for piece in row.pieces if piece.offset == 0]
    text = " ".join(max(whole, key=lambda piece: piece.tokens).text.split())
    language_model = LanguageModel.load(folder)
    tokenizer = language_model.tokenizer
    return {
        "command": "python benchmarks/hero_picture.py logs/gpt_nano/<time>",
        "machine": machine(),
        "settings": {
            "model": "gpt_nano", "objective": report["objective"], "parameters": report["parameters"],
            "steps": report["steps"], "tokens_seen": report["tokens_seen"],
        },
        "text": text[:SHOWN_TEXT],
        "tokens": [tokenizer.decode([token]) for token in tokenizer.encode(text)[:SHOWN_TOKENS]],
        "row_length": language_model.model.config.context_length,
        "rows": [[piece.tokens for piece in row.pieces] for row in rows],
        "train_bits_per_byte": [[s, round(v * bits_of_a_nat, 4)] for s, name, v in points if name == "train/loss"],
        "val_bits_per_byte": [[s, round(v, 4)] for s, name, v in points if name == "val/bits_per_byte"],
    }  # fmt: skip


def picture(run: dict[str, Any], n_grams: dict[str, float]) -> str:
    """Return the picture as SVG; `n_grams` are bits per byte by name."""
    settings = run["settings"]
    last = run["val_bits_per_byte"][-1][1]
    about = (
        f"Left: text becomes tokens, packed rows, a model with an objective, and a checkpoint. Right: bits per byte of "
        f"{settings['model']} over {settings['steps']} steps end at {last:.2f} on held-out text, "
        f"below the 5-gram's {n_grams['5-gram']:.2f}."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="12">',
        f"<title>From text to a trained model</title><desc>{escape(about)}</desc>",
        *_pipeline(run),
        *_curve(run, n_grams),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _pipeline(run: dict[str, Any]) -> list[str]:
    """Five stages, one below the other, each with its name at the left and real content at the right."""
    settings, left, parts = run["settings"], 92, []
    stages = ("text", "tokens", "rows", "model", "checkpoint")
    tops = (22, 66, 110, 196, 252)
    for name, top, below in zip(stages, tops, (*tops[1:], None), strict=True):
        parts.append(_text(8, top + 15, name, INK, weight="bold"))
        if below is not None:
            parts.append(_arrow(left + 14, top + (70 if name == "rows" else 26), below - 3))
    parts.append(_text(left, tops[0] + 15, f"“{run['text']}…”", FAINT))
    x = left
    for token, color in zip(run["tokens"], PIECES * SHOWN_TOKENS, strict=False):
        shown = token.replace(" ", "␣").replace("\n", "⏎")
        width = 10 + 7.3 * len(shown)
        if x + width > left + 330:
            break
        parts.append(_box(x, tops[1], width, 22, color) + _text(x + 5, tops[1] + 15, shown, INK))
        x += width + 4
    for index, row in enumerate(run["rows"]):
        x, y = float(left), tops[2] + 1 + 17 * index
        for piece, color in zip(row, PIECES * len(row), strict=False):
            width = 330 * piece / run["row_length"]
            parts.append(_box(x, y, max(1.0, width - 2), 12, color))
            x += width
    objective = f"{settings['model']} × {settings['objective']}"
    parts.append(_box(left, tops[3], 330, 26, BLUE))
    parts.append(_text(left + 10, tops[3] + 17, f"{objective}, {settings['parameters']:,} parameters", INK))
    saved = f"step {settings['steps']}: weights, optimizer, data position"
    parts.append(_box(left, tops[4], 330, 26, GREEN) + _text(left + 10, tops[4] + 17, saved, INK))
    return parts


def _curve(run: dict[str, Any], n_grams: dict[str, float]) -> list[str]:
    """Training and validation in bits per byte against the step, with a line for each n-gram."""
    left, right, top, bottom = 500, 850, 34, 258
    steps, low, high = run["settings"]["steps"], 1.5, 4.0

    def at(step: float, bits: float) -> tuple[float, float]:
        x = left + (right - left) * step / steps
        return round(x, 1), round(bottom - (bottom - top) * (min(bits, high) - low) / (high - low), 1)

    parts = [_text(left - 36, 16, "bits per byte (lower is better)", INK, weight="bold")]
    for bits in (1.5, 2.0, 2.5, 3.0, 3.5, 4.0):
        y = at(0, bits)[1]
        parts.append(f'<path d="M{left} {y}H{right}" stroke="{FAINT}" stroke-opacity=".25"/>')
        parts.append(_text(left - 8, y + 4, f"{bits:.1f}", INK, anchor="end"))
    ticks = range(0, steps + 1, 200)
    parts += [_text(at(step, low)[0], bottom + 18, f"{step}", INK, anchor="middle") for step in ticks]
    parts.append(_text((left + right) / 2, bottom + 36, "optimizer steps", INK, anchor="middle"))
    for name in ("2-gram", "5-gram"):
        y = at(0, n_grams[name])[1]
        parts.append(f'<path d="M{left} {y}H{right}" stroke="{ORANGE}" stroke-dasharray="5 4" stroke-width="1.5"/>')
        parts.append(_text(right + 6, y + 4, f"{name} {n_grams[name]:.2f}", ORANGE))
    train = [at(*point) for point in run["train_bits_per_byte"]]
    line = " ".join(f"{x},{y}" for x, y in train)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{FAINT}" stroke-width="1.5"/>')
    parts.append(_text(train[4][0] + 14, train[4][1] - 8, "training", FAINT))
    held_out = [at(*point) for point in run["val_bits_per_byte"]]
    line = " ".join(f"{x},{y}" for x, y in held_out)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2.5"/>')
    parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{BLUE}"/>' for x, y in held_out]
    last = f"{run['settings']['model']} {run['val_bits_per_byte'][-1][1]:.2f}"
    parts.append(_text(right + 6, held_out[-1][1] + 4, last, BLUE, "bold"))
    parts.append(_text(held_out[1][0] + 8, held_out[1][1] - 6, "held-out text", BLUE))
    return parts


def _text(x: float, y: float, content: str, color: str, weight: str = "normal", anchor: str = "start") -> str:
    style = f'fill="{color}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style} xml:space="preserve">{escape(content)}</text>'


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    style = f'rx="3" fill="{color}" fill-opacity=".15" stroke="{color}"'
    return f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" {style}/>'


def _arrow(x: float, start: float, end: float) -> str:
    head = f"M{x - 4:g} {end - 5:g}L{x:g} {end:g}L{x + 4:g} {end - 5:g}"
    return f'<path d="M{x:g} {start:g}V{end:g}{head}" fill="none" stroke="{INK}" stroke-width="1.5"/>'


def main() -> None:
    """Read a run into the results if one is named, then draw the picture of the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the run folder of a finished `make train`")
    given = parser.parse_args()
    if given.run is not None:
        CURVE.write_text(_json(read_run(given.run)), encoding="utf8")
    for name, content in pictures().items():
        (PICTURES / name).write_text(content, encoding="utf8")
        print(f"wrote {(PICTURES / name).relative_to(ROOT)}")


def _json(run: dict[str, Any]) -> str:
    """Return a run as JSON with one line for each entry."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in run.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def pictures() -> dict[str, str]:
    """Return the SVG of each picture by file name, from the saved results and pyproject.toml."""
    run = json.loads(CURVE.read_text(encoding="utf8"))
    quality = json.loads(QUALITY.read_text(encoding="utf8"))["n-grams"]
    n_grams = {name: figures["bits_per_byte"] for name, figures in quality.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    return {"pipeline.svg": picture(run, n_grams), "badges.svg": badges(project)}


def badges(project: dict[str, Any]) -> str:
    """Return a row of badges: the versions of Python, the license, strict types where mypy is strict."""
    metadata, tools = project["project"], project["tool"]
    facts = [("python", metadata["requires-python"].replace(">=", "") + "+"), ("license", metadata["license"])]
    if tools.get("mypy", {}).get("strict"):
        facts.append(("types", "mypy --strict"))
    parts, x = [], 0.0
    for name, value in facts:
        left, right = 14 + 6.7 * len(name), 14 + 6.7 * len(value)
        parts.append(f'<rect x="{x:.1f}" width="{left:.1f}" height="20" fill="#57606a"/>')
        parts.append(f'<rect x="{x + left:.1f}" width="{right:.1f}" height="20" fill="#0969da"/>')
        parts.append(_text(round(x + 7, 1), 14, name, "#ffffff") + _text(round(x + left + 7, 1), 14, value, "#ffffff"))
        x += left + right + 6
    about = ", ".join(f"{name}: {value}" for name, value in facts)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x - 6:.0f}" height="20" role="img" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="11">'
    )
    return "\n".join([opening, f"<title>{escape(about)}</title>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
