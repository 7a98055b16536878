"""Documents with duplicates of every kind, and settings that curate them."""

import json
import random
from pathlib import Path

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig


def lines(count: int = 60, seed: int = 0) -> bytes:
    """Return documents, every third a copy of the one before with a word changed, and a paragraph that repeats."""
    draw, found = random.Random(seed), []
    for number in range(count):
        if number % 3 != 2:
            words = [f"w{draw.getrandbits(24):x}" for _ in range(120)]
        words[draw.randrange(120)] = "other"
        text = " ".join(words) + ("\n\n" + "This stands below many a page. " * 8 if number % 5 == 0 else "")
        found.append(json.dumps({"text": text, "url": None}) + "\n")
    return "".join(found).encode()


def words_of(path: Path | str, output: Path, *more: str, kind: str = "jsonl") -> list[str]:
    source = f"sources.web={{kind: {kind}, path: '{path}', license: MIT}}"
    return [source, "rules=none", "workers=1", f"output={output}", "duplicates.paragraphs=200", *more]


def settings(path: Path | str, output: Path, *more: str, kind: str = "jsonl") -> CurateConfig:
    """Return the settings of a curation of these files in this process."""
    register_schemas("curate", CurateConfig)
    config: CurateConfig = compose("curate", words_of(path, output, *more, kind=kind))
    return config
