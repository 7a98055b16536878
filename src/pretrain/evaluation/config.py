"""Settings of scoring: which task, on what, and how much of it."""

from dataclasses import dataclass, field
from enum import Enum

from pretrain.data.config import Format
from pretrain.errors import ConfigError
from pretrain.training.config import PathsConfig


class Task(Enum):
    """What a trained model is scored on."""

    documents = "documents"  # loss, perplexity, accuracy and bits per byte of text
    pseudo_perplexity = (
        "pseudo_perplexity"  # of documents; masked models (Salazar et al. 2020, arxiv.org/abs/1910.14659)
    )
    minimal_pairs = "minimal_pairs"  # the likelier of two sentences, as in BLiMP (Warstadt et al. 2020)
    multiple_choice = "multiple_choice"  # the likeliest of several answers, as in HellaSwag, ARC and PIQA
    cloze = "cloze"  # the last word of a passage, as in LAMBADA (Paperno et al. 2016, arxiv.org/abs/1606.06031)
    memorization = "memorization"  # how much of its training documents a model repeats (arxiv.org/abs/2202.07646)
    memorisation = memorization  # its earlier spelling, read for one version


FROM_FILES = (Task.minimal_pairs, Task.multiple_choice, Task.cloze)


@dataclass
class EvalConfig:
    """Score a trained model on a task."""

    checkpoint: str = "auto"  # a run, one of its checkpoints, a Hugging Face folder or name; auto: the newest run
    dtype: str = "fp32"  # what holding them otherwise costs: bf16, or int8 on processors
    task: Task = Task.documents
    path: str | None = None  # files: text, or the examples of a task; none given: the run's own validation documents
    text_column: str = "text"  # of files with documents that are not plain text
    format: Format = Format.auto  # of files with documents: text, jsonl, json, csv, tsv, parquet; auto: as they look
    batch_size: int = 16  # rows, of task=documents
    max_rows: int = 0  # of each source, of task=documents; 0 scores all
    batch_tokens: int = 4096  # in one forward pass, of every other task
    max_examples: int = 0  # evenly spaced over all of them; 0: all, but 1,000 documents of each kind for memorization
    delimiter: str = " "  # between query and choice, or context and continuation; \n is a new line
    prompt_tokens: int = 32  # of a document's beginning, for task=memorization
    new_tokens: int = 32  # that are compared with the document, for task=memorization
    device: str = "cpu"  # where the model is read: cpu, cuda, mps
    output: str | None = None  # a file for figures and settings, as JSON
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_tokens", "prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1. Try {name}=32.")
        for name in ("max_rows", "max_examples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} is negative. Try {name}=500, or 0 for all.")
        if self.task in FROM_FILES and self.path is None:
            raise ConfigError(f"task={self.task.name} needs a file of examples. Give it: path=examples.jsonl.")
        if self.task is Task.memorization and self.path is not None:
            raise ConfigError(
                f"task=memorization compares the run's own documents, so path={self.path} has no use. Leave it out."
            )


@dataclass
class ScoresConfig:
    """Tasks that a model is scored on while it trains and at the end, on a fixed part of each file."""

    every_n_steps: int = 0  # 0: never
    minimal_pairs: list[str] = field(default_factory=list)  # files of examples; the figures take the file's name
    multiple_choice: list[str] = field(default_factory=list)
    cloze: list[str] = field(default_factory=list)
    max_examples: int = 500  # of each file, evenly spaced; 0: all
    delimiter: str = " "  # between query and choice, or context and continuation; \n is a new line
    batch_tokens: int = 4096  # in one forward pass

    def files(self) -> list[tuple[Task, str]]:
        """Return every file with the task that it holds examples of."""
        return [(task, path) for task in FROM_FILES for path in getattr(self, task.name)]

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "max_examples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"scores.{name}={getattr(self, name)} is negative. Try scores.{name}=500.")
        if self.batch_tokens < 1:
            raise ConfigError(f"scores.batch_tokens={self.batch_tokens} is below 1. Try scores.batch_tokens=4096.")
        if self.every_n_steps and not self.files():
            raise ConfigError(
                f"scores.every_n_steps={self.every_n_steps} has nothing to score. "
                "Name a file: 'scores.minimal_pairs=[blimp.jsonl]', or set scores.every_n_steps=0."
            )
