"""Draw docs/pictures/objectives.svg from the saved result of objectives.py: `python benchmarks/objectives_picture.py`.

Bits per byte of unseen novels by the number of passes over the text, a line for each objective: the mean over seeds.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.reports.chart import Line, Look, line_chart
from pretrain.reports.series import Series

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "objectives.json"
PICTURE = ROOT / "docs" / "pictures" / "objectives.svg"
EXACT, BOUNDS = ("causal", "hybrid"), ("masked", "diffusion")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #768390; }
.grid-line { stroke: #8c959f; stroke-opacity: .25; } .axis-line { stroke: #8c959f; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; } .dot { fill: var(--c); }
.s1 { --c: #2f81f7; } .s2 { --c: #d9730d; } .s3 { --c: #2da44e; } .s4 { --c: #8250df; }
"""  # read on a light and on a dark page


def draw(cells: list[dict[str, Any]]) -> str:
    """Return the picture of the cells that are done, as a file of its own."""
    lines = []
    for name in EXACT + BOUNDS:
        points: dict[float, list[float]] = {}
        for figures in cells:
            if figures["objective"] == name and "whole" not in figures["cell"]:
                value = figures["bits_per_byte" if name in EXACT else "bits_per_byte_bound"]
                points.setdefault(float(figures["epochs"]), []).append(value)
        means = Series.of((count, float(np.mean(some))) for count, some in sorted(points.items()))
        if points:
            lines.append(Line(name if name in EXACT else f"{name}, bound", means, dots=True))
    chart = line_chart(lines, Look("bits per byte of unseen novels", x="passes over the text", log_x=True))
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title", f"<style>{STYLE}</style><title", 1
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(json.loads(RESULT.read_text(encoding="utf8"))["figures"]["cells"]), encoding="utf8")
    print(PICTURE.relative_to(ROOT))
