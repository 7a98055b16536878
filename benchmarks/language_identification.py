"""The language of paragraphs and of single sentences, of each language that the model knows. Needs the extra `curate`.

    PRETRAIN_ASSETS=... python benchmarks/language_identification.py

Sentences: 300 of each language, of the Leipzig corpora. A paragraph is ten sentences.
"""

from __future__ import annotations

import argparse
import json
import lzma
import time

from comparison import Result, typed
from corpora import assets

from pretrain.data.curation.language_model import languages_of, model_file, model_record

MEASURES = ("src/pretrain/data/curation/language_model.py",)
PARAGRAPH = 10  # sentences
UNKNOWN_TO_MODEL = ("lg", "sn", "st", "zu")


def sentences() -> dict[str, list[str]]:
    """Return the sentences of the assets by language."""
    found: dict[str, list[str]] = {}
    with lzma.open(assets() / "curation/language/sentences.jsonl.xz", "rt", encoding="utf8") as file:
        for row in map(json.loads, file):
            found.setdefault(row["language"], []).append(row["text"])
    return found


def main() -> None:
    """Score every language, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    path, record = str(model_file(None)), model_record(None)
    result = Result("language_identification", typed(), {"model": record["file"], "sha256": record["sha256"]})
    characters, seconds, right = 0, 0.0, {}
    for language, texts in sentences().items():
        if language in UNKNOWN_TO_MODEL:
            continue
        paragraphs = [" ".join(texts[at : at + PARAGRAPH]) for at in range(0, len(texts), PARAGRAPH)]
        started = time.process_time()
        found = {"paragraphs": languages_of(paragraphs, path, 2000), "sentences": languages_of(texts, path, 2000)}
        seconds += time.process_time() - started
        characters += sum(map(len, paragraphs)) + sum(map(len, texts))
        right[language] = {
            kind: sum(each == language for each, _ in labels) / len(labels) for kind, labels in found.items()
        }
    result.figures["right"] = right
    result.figures["million characters a second"] = characters / seconds / 1e6
    result.figures["unknown to the model"] = list(UNKNOWN_TO_MODEL)
    result.finish()


if __name__ == "__main__":
    main()
