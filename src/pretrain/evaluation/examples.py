"""Read examples of tasks from JSON lines; errors name the file and line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pretrain.data.config import Format
from pretrain.data.escapes import read_escapes
from pretrain.data.sources.column_files import lines_of
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.corpus_files import find_files
from pretrain.data.sources.file_formats import kind_of_file
from pretrain.data.sources.source import printable
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import Task

Item = TypeVar("Item")
SUFFIXES = (".gz", ".xz", ".zst", ".zstd", ".bz2", ".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in what makes one of them acceptable."""

    good: str
    bad: str
    paradigm: str  # the phenomenon that the pair tests; BLiMP has 67
    place: str = field(default="", compare=False)  # file and line


@dataclass(frozen=True)
class MultipleChoice:
    """A query with several continuations, each as it is scored, and the one that is right."""

    query: str
    continuations: tuple[str, ...]
    choice_bytes: tuple[int, ...]  # UTF-8, without the delimiter
    gold: int
    place: str = field(default="", compare=False)  # file and line

    def pairs(self) -> list[tuple[str, str]]:
        """Return the query with each continuation."""
        return [(self.query, continuation) for continuation in self.continuations]


@dataclass(frozen=True)
class Cloze:
    """A passage and what comes next."""

    context: str
    continuation: str
    place: str = field(default="", compare=False)  # file and line

    def pairs(self) -> list[tuple[str, str]]:
        """Return the context with its continuation."""
        return [(self.context, self.continuation)]


MAX_PARADIGM = 200  # characters: it is printed beside its figure

Example = MinimalPair | MultipleChoice | Cloze


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one file or folder of files."""

    name: str  # of the file, without its suffixes
    task: Task
    examples: Sequence[Example]


def read_examples(task: Task, path: str, max_examples: int = 0, delimiter: str = " ", key: str = "path") -> ExampleSet:
    """Return the examples of a task in the files that `path` names, at most `max_examples` evenly spaced ones; 0: all.

    The delimiter stands between query and choice or context and continuation, unless white space is there already.
    Raises DataError, naming file and line, for what is no example; `key` is the setting that named the files.
    """
    delimiter = read_escapes(delimiter)
    records = [
        (place, record) for name, file in find_files(path, key).items() for place, record in _records(name, file)
    ]
    if not records:
        raise DataError(f"{key}={printable(path)} holds no example.")
    read = _READERS[task]
    return ExampleSet(
        _stem(Path(path)),
        task,
        [read(_Record(place, each), delimiter) for place, each in spaced(records, max_examples)],
    )


def spaced(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Return `count` items at even distances, the first among them; all where there are no more, or count is 0."""
    return [items[i * len(items) // count] for i in range(count)] if 0 < count < len(items) else items


def distinct_names(sets: Sequence[ExampleSet], key: str) -> Sequence[ExampleSet]:
    """Return the sets; raises ConfigError where two have the same name, and their figures would be mixed up."""
    names = [each.name for each in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{key} names two files called {name}, whose figures would be one. Rename one of them.")
    return sets


class _Record:
    """A JSON object that knows where it stands."""

    def __init__(self, place: str, values: dict[str, Any]) -> None:
        self.place = place
        self.values = values

    def text(self, name: str, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.refused(name, "a text")
        return value

    def filled(self, name: str) -> str:
        """Return a text that says something."""
        value = self.text(name)
        if not value.strip():
            raise self.refused(name, "a text that is not empty")
        return value

    def refused(self, name: str, wanted: str) -> DataError:
        keys = ", ".join(printable(key) for key in sorted(self.values)) or "nothing"
        return DataError(f"{self.place} needs {name} to be {wanted}. It holds {keys}.")


def _minimal_pair(record: _Record, delimiter: str) -> MinimalPair:
    good, bad, paradigm = record.filled("sentence_good"), record.filled("sentence_bad"), record.text("UID", "")
    if len(paradigm) > MAX_PARADIGM:
        raise record.refused("UID", f"the name of a paradigm, of at most {MAX_PARADIGM} characters")
    return MinimalPair(good, bad, paradigm, record.place)


def _multiple_choice(record: _Record, delimiter: str) -> MultipleChoice:
    query, choices, gold = record.text("query"), record.values.get("choices"), record.values.get("gold")
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(_is_choice, choices)):
        raise record.refused("choices", "a list of two texts or more, none of them empty")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise record.refused("gold", f"the place of the right choice, 0 to {len(choices) - 1}")
    continuations = tuple(_behind(query, choice, delimiter) for choice in choices)
    return MultipleChoice(query, continuations, tuple(len(choice.encode()) for choice in choices), gold, record.place)


def _cloze(record: _Record, delimiter: str) -> Cloze:
    context, continuation = record.text("context"), record.filled("continuation")
    return Cloze(context, _behind(context, continuation, delimiter), record.place)


def _is_choice(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    r"""Return whether a text can be spelled in UTF-8: JSON may hold half of a surrogate pair, as \ud800."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_READERS: dict[Task, Callable[[_Record, str], Example]] = {
    Task.minimal_pairs: _minimal_pair,
    Task.multiple_choice: _multiple_choice,
    Task.cloze: _cloze,
}


def _behind(context: str, text: str, delimiter: str) -> str:
    """Return a continuation with the delimiter before it, where the texts do not bring white space themselves."""
    if delimiter.isspace() and (context[-1:].isspace() or text[:1].isspace()):
        return text
    return delimiter + text


def _records(name: str, file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the JSON objects of a file, each with its place."""
    found = []
    with opened(file, kind_of_file(file, Format.jsonl).compression) as stream:
        for number, line in lines_of(stream, printable(name)):
            if line.strip():
                place = f"{printable(name)}:{number}"
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if not isinstance(record, dict):
                    raise DataError(f"{place} is no JSON object. Write one example a line.")
                found.append((place, record))
    return found


def _stem(path: Path) -> str:
    """Return the name of a file without the suffixes of its format and compression."""
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return path.name or "examples"
