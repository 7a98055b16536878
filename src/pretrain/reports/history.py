"""What a run leaves for its report as plain data: `history.json`, a record of its starts and its text, and samples.

The run writes them, the report reads them, maybe years later and on another machine: nothing in them is trusted.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pretrain.files.atomic_files import write_atomically
from pretrain.files.records import Count, read_record
from pretrain.files.untrusted_files import parse_json
from pretrain.launch.run_folder import HISTORY, SAMPLES, lines_of, opened_to_append, record_of


@dataclass(frozen=True)
class Source:
    """The training text of one source, and the rows that it was packed into."""

    name: str  # "" of a single one
    tokens: Count
    share: float  # of the rows that the run reads
    documents: Count = 0  # 0: unknown, of a corpus that is read during the run
    text_bytes: Count = 0
    rows: Count = 0
    pieces: Count = 0  # of documents in all rows; a cut document is several
    filled: float | None = None  # share of the positions of a row that hold a token
    validation_tokens: Count = 0
    length_edges: list[Count] = field(default_factory=list)  # of a histogram of documents by tokens
    length_counts: list[Count] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """How a start of a run ended."""

    step: Count
    time: float  # Unix time in seconds
    outcome: str  # finished, interrupted or failed
    message: str
    training_s: float
    wall_s: float
    waited_s: dict[str, float]  # seconds in which steps waited, by reason
    commands: list[str]  # to go on with


@dataclass(frozen=True)
class Start:
    """One start of a run: at its beginning, at a resume, or after a rewind."""

    step: Count
    time: float  # Unix time in seconds
    process: str  # host and process id
    environment: dict[str, str]
    end: End | None = None  # None: it goes on, or was killed


@dataclass(frozen=True)
class StageRecord:
    """A stage of a run as its newest start laid it out."""

    name: str
    begin: Count  # steps of the run before it
    end: Count | None  # None: when the run ends
    tokens: Count | None
    batch_size: Count  # in a warm-up of the batch, the largest
    row_length: Count
    learning_rate: float
    changes: dict[str, str]  # settings of its own by full name


@dataclass(frozen=True)
class History:
    """The record of a run."""

    name: str
    objective: str
    parameters: Count
    row_length: Count
    batch_size: Count
    packing: str
    typed: list[str]  # overrides of all starts
    sources: list[Source]
    starts: list[Start]
    stages: list[StageRecord] = field(default_factory=list)  # [] of a run without


@dataclass(frozen=True)
class Sample:
    """What the model wrote at a step."""

    step: Count
    tag: str
    text: str


def read_history(folder: Path) -> History | None:
    """Return the record of a run; None if it has none. Raises CheckpointError if it is damaged."""
    return record_of(folder / HISTORY, History) if os.path.lexists(folder / HISTORY) else None


def write_history(folder: Path, history: History) -> None:
    """Write the record of a run; a crash leaves the old one or the new one."""
    write_atomically(folder / HISTORY, json.dumps(asdict(history), indent=1).encode())


def read_samples(folder: Path) -> list[Sample]:
    """Return the samples of a run in the order in which it wrote them, without damaged lines."""
    samples = []
    for line in lines_of(folder / SAMPLES):
        try:
            samples.append(read_record(Sample, parse_json(line), "it"))
        except ValueError:  # a kill may leave half of the last line
            continue
    return samples


def append_sample(folder: Path, sample: Sample) -> None:
    """Add a sample to those of a run."""
    with opened_to_append(folder / SAMPLES) as file:
        file.write(json.dumps(asdict(sample)) + "\n")


def keep_samples(folder: Path, up_to_step: int) -> None:
    """Drop the samples beyond a step, which a resumed run writes again."""
    if os.path.lexists(folder / SAMPLES):
        kept = [json.dumps(asdict(each)) + "\n" for each in read_samples(folder) if each.step <= up_to_step]
        write_atomically(folder / SAMPLES, "".join(kept).encode())
