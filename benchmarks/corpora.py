"""Real text for benchmarks, from the folder that the environment variable PRETRAIN_ASSETS names."""

import json
import lzma
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path


def assets() -> Path:
    """Return the folder; SystemExit if the variable does not name one."""
    folder = os.environ.get("PRETRAIN_ASSETS", "")
    if not (Path(folder) / "corpora").is_dir():
        raise SystemExit(
            f"PRETRAIN_ASSETS={folder!r} names no folder with corpora/ and tokenizers/, of which this benchmark reads "
            "corpora/english_novels, corpora/wikipedia_vital and tokenizers/gpt2. Give one: PRETRAIN_ASSETS=<folder>."
        )
    return Path(folder)


def texts(name: str) -> Iterator[str]:
    """Yield the texts of a corpus such as "english_novels/train"."""
    with lzma.open(assets() / "corpora" / f"{name}.jsonl.xz", "rt", encoding="utf8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def novels(megabytes: float, characters: int = 2_000) -> list[str]:
    """Return the first megabytes of the novels, split into documents of whole paragraphs of varying length.

    Target lengths are drawn from a log-normal distribution, as those of web pages nearly are.
    """
    draw = random.Random(0)
    found: list[str] = []
    size = 0
    for text in texts("english_novels/train"):
        document, aim = "", draw.lognormvariate(0, 1) * characters
        for paragraph in re.split(r"(?<=\n)", text):
            document += paragraph
            if len(document) >= aim:
                found.append(document)
                size += len(document.encode())
                document, aim = "", draw.lognormvariate(0, 1) * characters
                if size >= megabytes * 1e6:
                    return found
        if document.strip():
            found.append(document)
    return found


def novels_file(folder: Path, megabytes: float) -> Path:
    """Return a file of `novels` in a folder, as JSON lines, written unless it is there."""
    path = folder / "novels.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in novels(megabytes)), encoding="utf8")
    return path
