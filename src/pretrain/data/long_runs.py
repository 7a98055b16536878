"""Texts to learn tokens from, without words of a million letters."""

import re
from collections.abc import Iterator

LONGEST = 1_000  # characters of one kind in a row, far beyond any word, number or rule of dashes
_STEP = LONGEST // 2  # a longer run has a whole step in it, wherever it begins
_KINDS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")  # letters, digits, others, spaces
_ONE_KIND = re.compile("|".join(f"{kind}{{{_STEP}}}" for kind in _KINDS))
_RUNS = re.compile("|".join(f"{kind}{{{LONGEST + 1},}}" for kind in _KINDS))


def without_long_runs(text: str) -> Iterator[str]:
    """Yield a text in parts that join to it again, cut inside of runs of over LONGEST letters, digits or others.

    Byte-pair encoding is learned word by word, and a word takes time that grows with the square of its length: DNA,
    proteins and files without spaces would take days. Ordinary text comes back as it is.
    """
    start = 0
    if any(_ONE_KIND.match(text, at) for at in range(0, len(text) - _STEP, _STEP)):  # else there is none, soon known
        for run in _RUNS.finditer(text):
            for cut in range(run.start() + LONGEST, run.end(), LONGEST):
                yield text[start:cut]
                start = cut
    yield text[start:]
