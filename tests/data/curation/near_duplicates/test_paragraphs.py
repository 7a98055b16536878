"""Repeated paragraphs are cut everywhere but in the first document of the canonical order."""

import random
import sys
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[4] / "benchmarks"))

from planted_duplicates import batch

from pretrain.data.curation.near_duplicates.paragraphs import (
    PARAGRAPH,
    _paragraphs,
    cut,
    find_repeats,
    paragraph_rows,
    repeats_of,
    shuffle_paragraphs,
)
from pretrain.data.curation.near_duplicates.shuffle_files import concatenated

NOTICE = "All rights to this page are reserved by those who wrote it."  # 59 characters


def cleaned(units, work: Path, characters: int = 40, partitions: int = 2) -> list[list[str]]:
    """Return the texts of each unit without repeats."""
    work.mkdir()
    inputs = [work / f"paragraphs-{number}" for number in range(len(units))]
    for number, unit in enumerate(units):
        rows = (
            paragraph_rows(member, text, characters, number)
            for member, text in zip(unit.members, unit.texts, strict=True)
        )
        shuffle_paragraphs(concatenated(rows, PARAGRAPH), inputs[number], partitions)
    outputs = [work / f"repeats-{partition}" for partition in range(partitions)]
    for partition, path in enumerate(outputs):
        find_repeats(inputs, partition, path, len(units))
    found = []
    for number, unit in enumerate(units):
        gone = repeats_of(outputs, number)
        documents = unit.members["document"].tolist()
        found.append([cut(text, gone.get(key, ())) for key, text in zip(documents, unit.texts, strict=True)])
    return found


def test_the_first_place_stays_and_all_others_go(tmp_path: Path) -> None:
    texts = [
        f"Short.\n\n{NOTICE}\n\nThe end of this one.",
        f"{NOTICE}\n \n{NOTICE}\n\nThe longest text of all comes first in the canonical order.\n\nShort.",
        f"Another, its lines together:\n{NOTICE}\nwhich is one paragraph.\n\nShort.",
        f"No blank line here.\n{NOTICE}\nSo each line is a paragraph.",
        NOTICE,
    ]
    assert cleaned([batch(texts)], tmp_path / "a") == [[
        "Short.\n\nThe end of this one.",
        f"{NOTICE}\n \nThe longest text of all comes first in the canonical order.\n\nShort.",
        texts[2],
        "No blank line here.\nSo each line is a paragraph.",
        "",
    ]]  # fmt: skip
    assert cleaned([batch(texts)], tmp_path / "b", characters=60) == [texts]


def test_the_base_corpus_is_first_and_never_cut(tmp_path: Path) -> None:
    new = batch([f"A long text of the new corpus with more words than the other.\n\n{NOTICE}"], first=5)
    old = batch([f"{NOTICE}\n\nOld.\n\n{NOTICE}"], base=True)
    found = cleaned([new, old], tmp_path / "a")
    assert found == [["A long text of the new corpus with more words than the other."], list(old.texts)]


def test_units_partitions_and_order_change_nothing(tmp_path: Path) -> None:
    draw = random.Random(0)
    pool = [f"Paragraph {n} of the pool, which many of the documents have." for n in range(30)]
    texts = ["\n\n".join([f"Document {n}.", *draw.sample(pool, 4)]) for n in range(60)]
    outcomes = []
    for number, (size, partitions) in enumerate([(60, 1), (7, 5)]):
        shuffled = draw.sample(texts, len(texts))
        units = [batch(shuffled[first : first + size], first=first) for first in range(0, 60, size)]
        found = cleaned(units, tmp_path / str(number), partitions=partitions)
        outcomes.append(sorted(text for unit in found for text in unit))
    assert outcomes[0] == outcomes[1]
    joined = "\n\n".join(outcomes[0])
    assert [joined.count(paragraph) for paragraph in pool] == [1] * 30


@given(text=st.text(st.sampled_from("ab \n\t\r"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_paragraphs_are_the_whole_text(text: str) -> None:
    places = _paragraphs(text)
    assert "".join(text[each.first : each.last] for each in places) == text
    assert cut(text, ()) == text
    assert cut(text, range(len(places))) == ""


def test_long_runs_of_spaces_take_no_time() -> None:
    rows = paragraph_rows(np.zeros(1, batch([]).members.dtype)[0], "a" + " \n" * 500_000 + " " * 500_000 + "b", 20, 0)
    assert len(rows) == 0
