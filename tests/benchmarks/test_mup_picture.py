"""The picture in docs/results/quality.md is that of the saved result."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import mup_picture


def test_the_picture_is_that_of_the_saved_result() -> None:
    drawn = mup_picture.draw()
    assert mup_picture.PICTURE.read_text(encoding="utf8") == drawn, "python benchmarks/mup_picture.py"
    root = ElementTree.fromstring(drawn)
    assert [element.tag.rpartition("}")[2] for element in root[:2]] == ["title", "desc"]
    assert "mup: width 64 best at 0.0078" in (root[1].text or "")
    curves = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(curves) == 2 * len(mup_picture.COLORS)
    assert f"]({mup_picture.PICTURE.relative_to(mup_picture.ROOT / 'docs').as_posix()})".replace("](", "](../") in (
        mup_picture.ROOT / "docs" / "results" / "quality.md"
    ).read_text(encoding="utf8")
