"""Write the README's table of measurements from benchmarks/results: `python benchmarks/table.py`.

The table is between two marks in README.md; `--check` only reports whether it is current.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from comparison import RESULTS

README = Path(__file__).parents[1] / "docs" / "_from_readme_results.md"  # until docs/results has the tables
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def table() -> str:
    """Return the table: a line for each comparison of each saved result, sorted by name."""
    rows = ["| what | ours | peer | ratio (lowest to highest) | target | command |", "|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        rows += [_row(line, found["command"]) for line in found.get("lines", [])]
    return "\n".join(rows)


def _row(line: dict[str, Any], command: str) -> str:
    aim = "" if line["target"] is None else f"{line['target']:.2f}"
    spread = f"{line['ratio']:.2f} ({line['lowest']:.2f} to {line['highest']:.2f})"
    ours, theirs = (_readable(line[name]) for name in ("ours", "theirs"))
    cells = [line["what"], f"{ours} {line['unit']}", f"{line['peer'].replace('_', ' ')}: {theirs}", spread, aim]
    return "| " + " | ".join([*cells, f"`{command}`"]) + " |"


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    """Write the table to the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    text = README.read_text(encoding="utf8")
    before, rest = text.split(BEGIN)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"
    if given.check and wanted != text:
        sys.exit("README.md does not have the table of benchmarks/results. Run: python benchmarks/table.py")
    README.write_text(wanted, encoding="utf8")


if __name__ == "__main__":
    main()
