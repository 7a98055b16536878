"""The picture and the shapes in docs/concepts/life-of-a-batch.md are those of real batches."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import batch_picture

PAGE = batch_picture.ROOT / "docs" / "concepts" / "life-of-a-batch.md"


def test_the_picture_is_what_the_code_makes_of_the_texts() -> None:
    drawn = batch_picture.draw()
    assert batch_picture.PICTURE.read_text(encoding="utf8") == drawn, "python benchmarks/batch_picture.py"
    root = ElementTree.fromstring(drawn)
    assert root[0].tag.endswith("title")
    assert root[1].tag.endswith("desc")
    cells = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "".join(text or "" for text in cells[1:13]) == "$a\u2423fox\u2423runs$"  # the first document


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["gpt_nano", "bert_nano"])
def test_the_page_has_the_shapes_of_the_presets(preset: str) -> None:
    page = PAGE.read_text(encoding="utf8")
    assert "\n".join(batch_picture.shapes(preset)) in page.partition(f"\n`{preset}`")[2].split("\n\n")[1]
