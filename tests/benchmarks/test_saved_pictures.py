"""The pictures in docs/results are those of the saved results."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import mup_picture
import objectives_picture


def is_shown(picture: Path, page: str) -> bool:
    """Return whether a page below docs/results shows the picture."""
    return f"](../pictures/{picture.name})" in (mup_picture.ROOT / "docs" / "results" / page).read_text("utf8")


def test_the_picture_of_mup_is_that_of_the_saved_result() -> None:
    drawn = mup_picture.draw()
    assert mup_picture.PICTURE.read_text(encoding="utf8") == drawn, "python benchmarks/mup_picture.py"
    root = ElementTree.fromstring(drawn)
    assert [element.tag.rpartition("}")[2] for element in root[:2]] == ["title", "desc"]
    assert "mup: width 64 best at 0.0078" in (root[1].text or "")
    curves = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(curves) == 2 * len(mup_picture.COLORS)
    assert is_shown(mup_picture.PICTURE, "quality.md")


def test_the_picture_of_objectives_is_that_of_the_saved_result() -> None:
    cells = json.loads(objectives_picture.RESULT.read_text("utf8"))["figures"]["cells"]
    drawn = objectives_picture.draw(cells)
    assert objectives_picture.PICTURE.read_text("utf8") == drawn, "python benchmarks/objectives_picture.py"
    root = ElementTree.fromstring(drawn)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"  # else a browser shows its source
    values = [each.text or "" for each in root.iter() if each.tag.endswith("title") and " at " in (each.text or "")]
    assert len(values) == len({(each["objective"], each["epochs"]) for each in cells if "whole" not in each["cell"]})
    assert is_shown(objectives_picture.PICTURE, "objectives.md")
