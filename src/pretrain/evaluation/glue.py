"""Five tasks of GLUE: their files as the benchmark publishes them, and their metrics.

Source: Wang et al. 2018, https://arxiv.org/abs/1804.07461, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.sources.source import printable
from pretrain.errors import DataError
from pretrain.evaluation.agreement import binary_f1, matthews, pearson, spearman

REGRESSION = "STS-B"  # the task whose labels are numbers, from 0 to 5


@dataclass(frozen=True)
class LabeledText:
    """A text, or a pair of texts, with its label; that of a regression is the number as it is written."""

    text: str | tuple[str, str]
    label: str


@dataclass(frozen=True)
class _Columns:
    """Where texts and label stand in a row of a task's files, counted from 0, and what a first line calls the label."""

    texts: tuple[int, ...]
    label: int
    heading: str = "label"


_COLUMNS = {
    "CoLA": _Columns((3,), 1),
    "MRPC": _Columns((3, 4), 0, "Quality"),
    "RTE": _Columns((1, 2), 3),
    "STS-B": _Columns((7, 8), 9, "score"),
    "SST-2": _Columns((0,), 1),
}


def read_split(folder: Path, task: str, split: str) -> list[LabeledText]:
    """Return the rows of `<folder>/<task>/<split>.tsv`, in which quotes are text; `split` is train or dev.

    A heading may be missing. Raises DataError for a file that cannot be read, for a row with too few fields or, of a
    regression, without a number, and for a file without two labels.
    """
    path = folder / task / f"{split}.tsv"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{printable(path)} cannot be read: {printable(error)}. Give the folder that holds GLUE's folders "
            f"{', '.join(_COLUMNS)}: path=<folder>; or leave tasks out: 'glue.tasks=[RTE]'."
        ) from None
    columns, rows = _COLUMNS[task], list[LabeledText]()
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and fields[columns.label : columns.label + 1] == [columns.heading]):
            continue
        if len(fields) <= max(*columns.texts, columns.label) or not fields[columns.label]:
            raise DataError(
                f"{printable(path)}:{number} has {len(fields)} fields, and {task} has its label in field "
                f"{columns.label + 1}. Take the files as GLUE publishes them; its test files have no labels."
            )
        if task == REGRESSION and not _is_number(fields[columns.label]):
            raise DataError(
                f"{printable(path)}:{number} has the score {printable(fields[columns.label][:20])}, no number. "
                "Take the files as GLUE publishes them."
            )
        first, *second = (fields[column] for column in columns.texts)
        rows.append(LabeledText((first, second[0]) if second else first, fields[columns.label]))
    labels = len({row.label for row in rows})
    if labels < 2 or (labels > 2 and task != REGRESSION):
        raise DataError(f"{printable(path)} has not the two labels of {task}. Take the files as GLUE publishes them.")
    return rows


def glue_metrics(task: str, predictions: Sequence[str | float], labels: Sequence[str]) -> dict[str, float]:
    """Return a task's metrics as GLUE defines them, and their mean as `score`.

    CoLA has Matthews correlation, MRPC the F1 of paraphrases and accuracy, STS-B Pearson's and Spearman's correlation,
    the others accuracy.
    """
    predicted = np.array(predictions)
    if task == REGRESSION:
        numbers = np.array([float(label) for label in labels])
        metrics = {"pearson": pearson(predicted, numbers), "spearman": spearman(predicted, numbers)}
    elif task == "CoLA":
        metrics = {"matthews": matthews(predicted == "1", np.array(labels) == "1")}
    else:
        metrics = {"accuracy": float((predicted == np.array(labels)).mean())}
    if task == "MRPC":
        metrics = {"f1": binary_f1(predicted == "1", np.array(labels) == "1")} | metrics
    return metrics | {"score": float(np.mean(list(metrics.values())))}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
