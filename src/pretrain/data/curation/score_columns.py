"""Scores of texts that have stages of their own: by example, by a model's bits per byte, and of toxicity.

Each stage writes one column of numbers for the documents of a unit, in their row groups, and a rule compares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pretrain.data.curation.engine import Task
from pretrain.data.curation.row_groups import RowGroups, row_groups

SCORES = {"quality": "quality_score", "bits": "bits_per_byte", "toxicity": "toxicity"}  # the column of each stage
_FILE = "scores.parquet"


def write_scores(task: Task, column: str, score: Callable[[list[str]], Sequence[float]]) -> None:
    """Write what `score` returns for the texts of each row group of a unit."""
    with RowGroups(task.output(_FILE), pa.schema([(column, pa.float64())])) as output:
        for table in row_groups(task.input("read", "documents.parquet"), ["text"]):
            output.write({column: score(table["text"].to_pylist())})


def with_scores(task: Task, values: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the measured values of a unit by row group, with a column for each score that was computed."""
    stages = [stage for stage in SCORES if task.reads(stage)]
    scores = [row_groups(task.input(stage, _FILE)) for stage in stages]
    for table, *columns in zip(values, *scores, strict=True):
        for stage, column in zip(stages, columns, strict=True):
            table = table.append_column(SCORES[stage], column[SCORES[stage]])
        yield table


def threshold_of_top(folder: Path, units: int, share: float, *, least_is_best: bool = False) -> float:
    """Return the score of the worst of the best `share` of all documents; those with just that score stay too.

    Documents whose score is NaN do not count. 0.0 without documents.
    """
    paths = [folder / f"{index:05d}.{_FILE}" for index in range(units)]
    parts = [table.column(0).to_numpy() for path in paths for table in row_groups(path)]
    scores = np.concatenate([np.empty(0), *parts])
    scores = np.sort(scores[~np.isnan(scores)])
    if not len(scores):
        return 0.0
    count = max(1, round(share * len(scores)))
    return float(scores[count - 1] if least_is_best else scores[len(scores) - count])
