"""A quality score of texts between 0 and 1: how likely a text is one of a reference, and none of the sources.

A logistic regression on hashed words and pairs of words, trained on the texts of the reference against as many
documents of the sources, those with the smallest hashes; the idea is that of GPT-3 (Brown et al. 2020,
https://arxiv.org/abs/2005.14165, appendix A) and DCLM (Li et al. 2024, https://arxiv.org/abs/2406.11794, section 4.4).
Equal texts give equal weights. The model is a file of numbers; nothing in it is executed.

classifier    one task   the reference and some documents of each unit -> quality.safetensors
quality       a unit     texts -> scores.parquet
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.config.setting import Settings, setting
from pretrain.data.config import TextFilesConfig
from pretrain.data.curation.engine import Counts, Stage, Task, done_record
from pretrain.data.curation.near_duplicates.shingles import Shingler
from pretrain.data.curation.row_groups import row_groups
from pretrain.data.curation.score_columns import SCORES, write_scores
from pretrain.data.sources.corpus_files import find_files
from pretrain.errors import ConfigError, DataError, printable
from pretrain.files.untrusted_files import open_regular

QUALITY_VERSION = 1  # increase when the score of a text changes
MODEL = "quality.safetensors"
BUCKETS = 1 << 20  # weights; a word or pair of words has the one that its hash names
CHARACTERS = 20_000  # of a text that are looked at
PASSES, RATE = 3, 0.5
HELD_OUT = 10  # one text in so many measures the classifier and does not train it
MOST, FEWEST = 20_000, 20  # texts of the reference
_RATE_OF_BIAS = 0.1

Floats = npt.NDArray[np.float64]


@dataclass
class QualityConfig(Settings):
    """A score of each text: by example, which rules.min_quality compares, or by a checkpoint, in bits per byte."""

    prefix: ClassVar[str] = "quality."
    reference: str | None = setting(None, "Texts to be like: a file or a folder; they train a classifier; null: none.")
    model: str | None = setting(None, f"A classifier that an earlier curation wrote, its {MODEL}; null: none.")
    checkpoint: str | None = setting(
        None, "A run or checkpoint of a causal model, whose bits per byte of each text are measured; null: none."
    )
    device: str = setting("cpu", "Where the checkpoint computes: cpu or cuda.")
    characters: int = setting(
        4000, "Characters of a text that the checkpoint reads.", bounds="[1, inf)", unit="characters"
    )
    keep_top: float | None = setting(
        None, "Share of usable documents with the best scores that stays, instead of a threshold in rules; null: all.",
        bounds="(0.0, 1.0]", example=0.1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = {name: getattr(self, name) for name in ("model", "reference", "checkpoint")}
        typed = [f"quality.{name}={value}" for name, value in ways.items() if value is not None]
        if len(typed) > 1:
            raise ConfigError(
                f"{' and '.join(typed)} are {'three' if len(typed) > 2 else 'two'} ways to score texts. "
                f"Give one of them: {typed[-1].partition('=')[0]}=null."
            )
        if self.keep_top is not None and not typed:
            raise ConfigError(
                f"quality.keep_top={self.keep_top:g} needs a score. Try quality.reference=<texts to be like>."
            )

    @property
    def by_example(self) -> bool:
        """Whether a classifier scores texts by their likeness to reference texts."""
        return self.reference is not None or self.model is not None


class Classifier:
    """A logistic regression on the words of texts."""

    def __init__(self, weights: Floats | None = None, bias: float = 0.0) -> None:
        self.weights = np.zeros(BUCKETS) if weights is None else weights
        self.bias = bias
        self._shinglers = Shingler(1), Shingler(2)

    def _buckets(self, text: str) -> npt.NDArray[np.uint64]:
        found = [shingler.shingles([text[:CHARACTERS]])[0] for shingler in self._shinglers]
        return np.unique(np.concatenate(found) & np.uint64(BUCKETS - 1))

    def score(self, text: str) -> float:
        """Return the probability that a text is one of the reference."""
        return self._probability(self._buckets(text))

    def _probability(self, buckets: npt.NDArray[np.uint64]) -> float:
        total = float(self.weights[buckets].sum()) / np.sqrt(len(buckets)) + self.bias
        return float(1 / (1 + np.exp(-np.clip(total, -30, 30))))

    def train(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Learn from texts with the labels 1 (of the reference) and 0, in an order that their hashes decide."""
        buckets = [self._buckets(text) for text in texts]
        for number in range(PASSES):
            ranks = [xxhash.xxh3_64_intdigest(text.encode(), seed=number) for text in texts]
            for at in sorted(range(len(texts)), key=ranks.__getitem__):
                error = labels[at] - self._probability(buckets[at])
                self.weights[buckets[at]] += RATE * error / np.sqrt(len(buckets[at]))
                self.bias += RATE * _RATE_OF_BIAS * error

    def write(self, path: Path) -> None:
        """Write the model as a safetensors file."""
        from safetensors.numpy import save

        path.write_bytes(
            save({"weights": self.weights.astype(np.float32), "bias": np.array([self.bias], np.float32)},
                 {"format": f"pretrain quality {QUALITY_VERSION}"})
        )  # fmt: skip


def read_classifier(path: Path) -> Classifier:
    """Return a model; raises DataError for a file that is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        with open_regular(path) as file:
            tensors = load(file.read(5 * BUCKETS))
        weights, bias = tensors["weights"].astype(np.float64), tensors["bias"].astype(np.float64)
        if weights.shape != (BUCKETS,) or bias.shape != (1,) or not np.isfinite(weights).all():
            raise ValueError(f"it has not {BUCKETS} weights and a bias, all finite")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = printable(" ".join(str(error).split()), one_line=True)[:200]
        raise DataError(
            f"quality.model={printable(str(path))} is no classifier of a curation: {reason}. Try that of a corpus."
        ) from None
    return Classifier(weights, float(bias[0]))


def quality_stages(config: QualityConfig, known: dict[str, str], units: int) -> list[Stage]:
    """Return the stages in order, and add the folder of the scores to `known`; none without a score."""
    if not config.by_example:
        return []
    path = str(config.reference or config.model)
    setting_name = "quality.reference" if config.reference else "quality.model"
    digest = hashlib.sha256()
    for file in find_files(path, setting_name).values():
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    settings = {"path": str(Path(path).expanduser()), "sha256": digest.hexdigest(), "trains": bool(config.reference)}
    inputs = {"read": known["read"]}
    classifier = Stage("classifier", make_classifier, 1, QUALITY_VERSION, settings, inputs)
    scores = Stage("quality", score_documents, units, QUALITY_VERSION, {}, inputs | {"classifier": classifier.folder})
    known["classifier"], known["quality"] = classifier.folder, scores.folder
    return [classifier, scores]


def make_classifier(task: Task) -> Counts:
    """Write the classifier: trained now, or a copy; counts: texts and how well it tells those held out apart."""
    path = Path(task.settings["path"])
    if not task.settings["trains"]:
        read_classifier(path).write(task.output(MODEL))
        return {}
    reference = _smallest(_reference_texts(path), MOST)
    others = _smallest(_texts_of_sources(task), len(reference))
    if len(reference) < FEWEST or len(others) < FEWEST:
        raise DataError(
            f"quality.reference={printable(str(path))} has {len(reference)} different texts beside {len(others)} of "
            f"the sources, and {FEWEST} of each are needed. Give more texts, or leave quality.reference out."
        )
    labeled = [(text, 1) for text in reference] + [(text, 0) for text in others]
    held_out = [xxhash.xxh3_64_intdigest(text.encode(), seed=PASSES) % HELD_OUT == 0 for text, _ in labeled]
    training = [each for each, out in zip(labeled, held_out, strict=True) if not out]
    classifier = Classifier()
    classifier.train([text for text, _ in training], [label for _, label in training])
    measured = [each for each, out in zip(labeled, held_out, strict=True) if out]
    scores = [[classifier.score(text) for text, own in measured if own == label] for label in (1, 0)]
    classifier.write(task.output(MODEL))
    return {"reference": len(reference), "others": len(others), "auc": area_under_curve(*scores)}


def quality_record(config: QualityConfig, classifier: Path) -> dict[str, Any]:
    """Return what the manifest says of the classifier, by the folder of its stage."""
    record = done_record(classifier, 0)
    assert record is not None
    name = Path(str(config.reference or config.model)).name
    made_of = {"reference" if config.reference else "model": name, "keep_top": config.keep_top}
    return {**made_of, **record["counts"], "sha256": record["files"][MODEL]["sha256"]}


def area_under_curve(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Return the chance that a text of the reference has the higher score, ties by half; None without texts."""
    if not positive or not negative:
        return None
    ordered = np.sort(np.array(negative))
    below, at_most = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + at_most).mean() / 2 / len(ordered))


def _reference_texts(path: Path) -> Iterator[str]:
    for document in TextFilesConfig(path=str(path), validation_fraction=0.0).open().documents():
        yield document.text


def _texts_of_sources(task: Task) -> Iterator[str]:
    for path in task.inputs("read", "documents.parquet"):
        for table in row_groups(path, ["text"]):
            yield from table["text"].to_pylist()


def _smallest(texts: Iterator[str], count: int) -> list[str]:
    """Return so many different texts, those with the smallest hashes: no order and no chance decides."""
    heap: list[tuple[int, str]] = []
    there: set[int] = set()
    for text in texts:
        rank = -xxhash.xxh3_64_intdigest(text.encode())
        if rank in there or (len(heap) == count and (not heap or rank <= heap[0][0])):
            continue
        there.add(rank)
        if len(heap) < count:
            heapq.heappush(heap, (rank, text))
        else:
            there.discard(heapq.heapreplace(heap, (rank, text))[0])
    return [text for _, text in sorted(heap, reverse=True)]


def score_documents(task: Task) -> Counts:
    """Write the scores of a unit's documents, in their row groups."""
    classifier = read_classifier(task.input("classifier", MODEL, 0))
    write_scores(task, SCORES["quality"], lambda texts: [classifier.score(text) for text in texts])
    return {}
