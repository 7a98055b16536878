"""Toxicity of texts, by a list of words or by a fastText classifier: annotated, and removed only where that is asked.

Lists of words are known to remove texts in dialects, and by and about minorities (Dodge et al. 2021,
https://arxiv.org/abs/2104.08758, section 5.3): no preset has a threshold. Both the list and the model are files of the
user's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pretrain.config.setting import Settings, setting
from pretrain.data.curation.engine import Counts, Stage, Task, counts_of
from pretrain.data.curation.language_model import fasttext_model, model_file, one_line
from pretrain.data.curation.score_columns import SCORES, write_scores
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.records import sha256_of
from pretrain.files.untrusted_files import read_text

TOXICITY_VERSION = 1  # increase when the score of a text changes
CHARACTERS = 20_000  # of a text that the model reads
MAX_LIST_BYTES = 1 << 26
_WORD = re.compile(r"\w+")


@dataclass
class ToxicityConfig(Settings):
    """A score of each text between 0 and 1, which rules.max_toxicity compares; without words and model there is none.

    By words, it is the share of a text's words that stand in the list; by a model, the probability of a label.
    """

    prefix: ClassVar[str] = "toxicity."
    words: str | None = setting(None, "A file of words and phrases, one a line, in any case; null: none.")
    model: str | None = setting(None, "A fastText classifier by path; null: none.", example="toxic.bin")
    label: str = setting("toxic", "The model's label whose probability is the score, without __label__.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.words is not None and self.model is not None:
            raise ConfigError(
                f"toxicity.words={self.words} and toxicity.model={self.model} are two scores of one name. "
                "Give one of them: toxicity.words=null."
            )

    @property
    def is_on(self) -> bool:
        """Whether texts are scored."""
        return self.words is not None or self.model is not None


def toxicity_stage(config: ToxicityConfig, known: dict[str, str], units: int) -> list[Stage]:
    """Return the stage, and add its folder to `known`; none without words and model.

    Raises DataError for a list that cannot be read, ConfigError for a model that cannot.
    """
    if not config.is_on:
        return []
    settings: dict[str, Any] = {"words": None, "model": None, "label": config.label}
    if config.words is not None:
        path = Path(config.words).expanduser()
        read_words(path)
        settings |= {"words": str(path), "label": None}
    else:
        path = model_file(config.model, "toxicity.model")
        settings["model"] = str(path)
        _check_label(str(path), config.label)
    settings["sha256"] = sha256_of(path)
    stage = Stage("toxicity", score_toxicity, units, TOXICITY_VERSION, settings, {"read": known["read"]})
    known["toxicity"] = stage.folder
    return [stage]


def toxicity_record(config: ToxicityConfig, folder: Path) -> dict[str, Any]:
    """Return what the manifest says of the score, by the folder of its stage: also how many texts have any."""
    counts = counts_of(folder)
    how = {"words": Path(config.words).name} if config.words else {"model": Path(str(config.model)).name}
    how |= {} if config.words else {"label": config.label}
    documents = sum(each["documents"] for each in counts)
    return {**how, "sha256": counts[0]["sha256"], "documents": documents} if counts else how


def score_toxicity(task: Task) -> Counts:
    """Write the scores of a unit's documents; counts: those with a score of more than one half or any listed word."""
    settings, found = task.settings, 0
    score, least = _scorer(settings), 0.0 if settings["words"] else 0.5

    def scored(texts: list[str]) -> list[float]:
        nonlocal found
        scores = [score(text) for text in texts]
        found += sum(each > least for each in scores)
        return scores

    write_scores(task, SCORES["toxicity"], scored)
    return {"documents": found, "sha256": settings["sha256"]}


def _scorer(settings: Mapping[str, Any]) -> Callable[[str], float]:
    if settings["words"]:
        phrases = read_words(Path(settings["words"]))
        return lambda text: share_of_listed(text, phrases)
    model, label = fasttext_model(settings["model"], "toxicity.model"), f"__label__{settings['label']}"
    return lambda text: _probability(model, text, label)


def _probability(model: Any, text: str, label: str) -> float:
    line = one_line(text[:CHARACTERS])
    labels, scores = model.predict(line, -1, 0.0) if line else ([], [])
    return min(1.0, float(dict(zip(labels, scores, strict=True)).get(label, 0.0)))  # rounding takes some above 1


def _check_label(path: str, label: str) -> None:
    labels, _ = fasttext_model(path, "toxicity.model").predict("a", -1, 0.0)
    if f"__label__{label}" not in labels:
        known = ", ".join(sorted(each.removeprefix("__label__") for each in labels)[:20])
        raise ConfigError(f"toxicity.label={printable(label)} is no label of the model. It has {printable(known)}.")


Phrases = Mapping[str, Sequence[tuple[str, ...]]]  # by their first word, the longest first


def read_words(path: Path) -> Phrases:
    """Return the words and phrases of a list, in lower case.

    Raises DataError for a file without any, and for one that is no text file of at most 64 MiB.
    """
    try:
        lines = read_text(path, MAX_LIST_BYTES).splitlines()
    except (OSError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), one_line=True)[:200]
        raise DataError(f"toxicity.words={printable(str(path))} cannot be read: {reason}. Name a text file.") from None
    found: dict[str, set[tuple[str, ...]]] = {}
    for line in lines:
        if words := tuple(_WORD.findall(line.lower())):
            found.setdefault(words[0], set()).add(words)
    if not found:
        raise DataError(f"toxicity.words={printable(str(path))} has no word. Name a file of words, one a line.")
    return {first: sorted(phrases, key=lambda each: (-len(each), each)) for first, phrases in found.items()}


def share_of_listed(text: str, phrases: Phrases) -> float:
    """Return how many of a text's words are in listed words and phrases, as a share; 0 without words."""
    words, at, listed = _WORD.findall(text.lower()), 0, 0
    while at < len(words):
        fits = (each for each in phrases.get(words[at], ()) if tuple(words[at : at + len(each)]) == each)
        length = len(next(fits, ()))
        listed += length
        at += max(1, length)
    return listed / len(words) if words else 0.0
