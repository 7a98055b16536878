"""The pictures of the README are those that their script draws of the saved results."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import hero_picture

RUN: dict[str, Any] = {
    "settings": {"model": "gpt_nano", "objective": "causal", "parameters": 1000, "steps": 100, "tokens_seen": 1},
    "text": "</text><script>x</script>",
    "tokens": ["<s>", " a", "\n"],
    "row_length": 8,
    "rows": [[3, 5], [8]],
    "train_bits_per_byte": [[step, 3.0] for step in range(10, 101, 10)],
    "val_bits_per_byte": [[50, 2.5], [100, 2.0]],
}


@pytest.mark.parametrize("name", ["pipeline.svg", "badges.svg"])
def test_a_picture_is_what_the_results_give(name: str) -> None:
    drawn = hero_picture.pictures()[name]
    assert (hero_picture.PICTURES / name).read_text(encoding="utf8") == drawn
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert root[0].tag.endswith("title")
    assert root[0].text


def test_text_of_a_corpus_is_shown_as_text() -> None:
    root = ElementTree.fromstring(hero_picture.picture(RUN, {"2-gram": 2.2, "5-gram": 1.9}))
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert any("<script>x</script>" in (element.text or "") for element in root.iter())


def test_a_lower_loss_is_drawn_lower() -> None:
    root = ElementTree.fromstring(hero_picture.picture(RUN, {"2-gram": 2.2, "5-gram": 1.9}))
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == len(RUN["val_bits_per_byte"])
    assert float(circles[0].attrib["cy"]) < float(circles[1].attrib["cy"])
    assert float(circles[0].attrib["cx"]) < float(circles[1].attrib["cx"])
