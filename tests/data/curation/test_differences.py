"""Differences between two texts: found in both, shown in excerpts, and cut ends are none."""

import random

from pretrain.data.curation.differences import MAX_DIFFERENCES, differences, excerpts

PROSE = " ".join(f"word{n}" for n in range(1000))


def shown(first: str, second: str, **more: bool) -> list[tuple[str, str]]:
    ours, theirs = differences(first, second, **more)
    return [(first[slice(*a)], second[slice(*b)]) for a, b in zip(ours, theirs, strict=True)]


def test_changed_added_and_removed_words_are_found() -> None:
    changed = PROSE.replace("word10 ", "other ").replace("word500 ", "").replace("word900 ", "word900 a new one ")
    assert shown(PROSE, changed) == [("word10", "other"), ("word500", ""), ("", "a new one")]
    assert shown(changed, PROSE) == [("other", "word10"), ("", "word500"), ("a new one", "")]
    assert shown(PROSE, PROSE.replace(" ", "\n")) == []  # white space is not compared
    assert shown(PROSE, f"{PROSE} end") == [("", "end")]


def test_only_the_first_differences_are_found_and_texts_that_part_end_the_search() -> None:
    many = " ".join(f"other{n}" if n % 20 == 0 else f"word{n}" for n in range(1000))
    assert [word for word, _ in shown(PROSE, many)] == [f"word{20 * n}" for n in range(MAX_DIFFERENCES)]
    ((ours, theirs),) = shown(PROSE, PROSE[: PROSE.index("word5 ")] + " ".join(f"x{n}" for n in range(900)))
    assert ours.startswith("word5 ")
    assert theirs.startswith("x0 ")


def test_the_end_of_a_part_of_a_text_is_no_difference() -> None:
    part, longer = PROSE[:3000], PROSE[:3500].replace("word10 ", "other ")
    assert shown(part, longer, are_whole=False) == [("word10", "other")]
    assert len(shown(part, longer)) == 2


def test_excerpts_hold_the_differences_within_the_room_they_have() -> None:
    source = random.Random(0)
    for _ in range(50):
        words = PROSE.split()
        for position in source.sample(range(1000), 8):
            words[position] = "changed"
        changed, _ = differences(PROSE, " ".join(words))
        room = source.choice([10, 200, 600, 10_000])
        found = excerpts(PROSE, changed, room)
        assert sum(end - start for start, end, _ in found) <= room
        assert [span for start, end, spans in found for span in spans if not start <= span[0] <= span[1] <= end] == []
        marked = [span for *_, spans in found for span in spans]
        assert [span[0] for span in marked] == [span[0] for span in changed[: len(marked)]]
        assert len(marked) == len(changed) or room < 1000
        ends = [0, *(edge for start, end, _ in found for edge in (start, end))]
        assert ends == sorted(ends)
    assert excerpts("x" * 300, [(0, 5)], 100) == [(0, 85, [(0, 5)])]
    start, end, _ = excerpts(PROSE, [(3000, 3005)], 600)[0]
    assert (PROSE[start - 1], PROSE[end]) == (" ", " ")  # a passage is of whole words
