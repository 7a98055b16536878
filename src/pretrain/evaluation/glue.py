"""The tasks of GLUE that classify: their files as the benchmark publishes them, and their metrics.

Source: Wang et al. 2018, https://arxiv.org/abs/1804.07461, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.sources.source import printable
from pretrain.errors import DataError


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, with its label."""

    text: str | tuple[str, str]
    label: str


@dataclass(frozen=True)
class _Columns:
    """Where texts and label stand in a row of a task's files, counted from 0."""

    texts: tuple[int, ...]
    label: int
    has_heading: bool = True


_COLUMNS = {
    "CoLA": _Columns((3,), 1, has_heading=False),
    "MRPC": _Columns((3, 4), 0),
    "RTE": _Columns((1, 2), 3),
    "SST-2": _Columns((0,), 1),
}


def read_split(folder: Path, task: str, split: str) -> list[LabelledText]:
    """Return the rows of `<folder>/<task>/<split>.tsv`, in which quotes are text; `split` is train or dev.

    Raises DataError for a file that cannot be read, and for a row with too few fields.
    """
    path = folder / task / f"{split}.tsv"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{printable(path)} cannot be read: {printable(error)}. Give the folder that holds GLUE's folders CoLA, "
            "MRPC, RTE and SST-2: path=<folder>; or leave tasks out: 'glue.tasks=[RTE]'."
        ) from None
    columns, rows = _COLUMNS[task], list[LabelledText]()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (columns.has_heading and number == 1):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) <= max(*columns.texts, columns.label) or not fields[columns.label]:
            raise DataError(
                f"{printable(path)}:{number} has {len(fields)} fields, and {task} has its label in field "
                f"{columns.label + 1}. Take the files as GLUE publishes them; its test files have no labels."
            )
        first, *second = (fields[column] for column in columns.texts)
        rows.append(LabelledText((first, second[0]) if second else first, fields[columns.label]))
    if len({row.label for row in rows}) != 2:
        raise DataError(f"{printable(path)} has not the two labels of {task}. Take the files as GLUE publishes them.")
    return rows


def glue_metrics(task: str, predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Return a task's metrics as GLUE defines them, and their mean as `score`.

    CoLA has Matthews correlation, MRPC the F1 of paraphrases and accuracy, the others accuracy.
    """
    predicted, truth = np.array(predictions), np.array(labels)
    metrics = {"accuracy": float((predicted == truth).mean())}
    if task == "CoLA":
        metrics = {"matthews": matthews(predicted == "1", truth == "1")}
    elif task == "MRPC":
        metrics = {"f1": binary_f1(predicted == "1", truth == "1")} | metrics
    return metrics | {"score": float(np.mean(list(metrics.values())))}


def matthews(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the correlation of two bool arrays, -1 to 1; 0 where one of them is constant.

    Source: Matthews 1975, https://doi.org/10.1016/0005-2795(75)90109-9.
    """
    hits, rejects = float((predicted & truth).sum()), float((~predicted & ~truth).sum())
    alarms, misses = float((predicted & ~truth).sum()), float((~predicted & truth).sum())
    scale = math.sqrt((hits + alarms) * (hits + misses) * (rejects + alarms) * (rejects + misses))
    return (hits * rejects - alarms * misses) / scale if scale else 0.0


def binary_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the harmonic mean of precision and recall of two bool arrays; 0 where both have no true value."""
    total = int(predicted.sum() + truth.sum())
    return 2 * float((predicted & truth).sum()) / total if total else 0.0
