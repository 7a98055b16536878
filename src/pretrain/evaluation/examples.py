"""Read examples of tasks from JSON lines, and those of bias also from CSV; errors name the file and line."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pretrain.config.setting import read_escapes
from pretrain.data.config import Format
from pretrain.data.curation.contamination.choice_fields import choice_fields
from pretrain.data.curation.contamination.eval_sets import item_key, set_name
from pretrain.data.sources.column_files import json_lines, read_records
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.corpus_files import find_files
from pretrain.data.sources.file_formats import kind_of_file
from pretrain.data.sources.source import counted, printable
from pretrain.errors import ConfigError, DataError
from pretrain.evaluation.config import Task

Item = TypeVar("Item")
MAX_PARADIGM = 200  # characters of a paradigm's name, which is printed beside its accuracy


@dataclass(frozen=True)
class MinimalPair:
    """An acceptable sentence and an unacceptable one that differ in one phenomenon."""

    good: str
    bad: str
    paradigm: str  # what the pair tests; BLiMP has 67
    phenomenon: str = ""  # that the paradigm belongs to; BLiMP has 13
    location: str = field(default="", compare=False)  # file and line


@dataclass(frozen=True)
class StereotypePair:
    """Two sentences that differ in the group they speak of; `more` is the more stereotyping one."""

    more: str
    less: str
    kind: str  # of bias; CrowS-Pairs has 9
    direction: str = ""  # stereo: `more` is of the disadvantaged group; antistereo: `less` is; "": unknown
    location: str = field(default="", compare=False)  # file and line


@dataclass(frozen=True)
class MultipleChoice:
    """A query with its choices as continuations, and the index of the correct one."""

    query: str
    continuations: tuple[str, ...]  # delimiter and choice
    choice_bytes: tuple[int, ...]  # UTF-8, without the delimiter
    gold: int
    location: str = field(default="", compare=False)  # file and line

    def pairs(self) -> list[tuple[str, str]]:
        """Return the query with each continuation."""
        return [(self.query, continuation) for continuation in self.continuations]


@dataclass(frozen=True)
class Cloze:
    """A passage and its continuation."""

    context: str
    continuation: str
    location: str = field(default="", compare=False)  # file and line

    def pairs(self) -> list[tuple[str, str]]:
        """Return the context with its continuation."""
        return [(self.context, self.continuation)]


Example = MinimalPair | StereotypePair | MultipleChoice | Cloze


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one file or folder of files."""

    name: str  # of the file, without its suffixes
    task: Task
    examples: Sequence[Example]
    keys: Sequence[str] = ()  # of the examples: hashes of their fields, by which verdicts on them are found


def read_examples(task: Task, path: str, max_examples: int = 0, delimiter: str = " ", key: str = "path") -> ExampleSet:
    """Return a task's examples in the files of `path`: at most `max_examples`, evenly spaced; 0 reads all.

    The delimiter separates query and choice, or context and continuation, unless the texts bring white space. Raises
    DataError naming file and line for a line that is not an example; `key` is the setting that named the files.
    """
    delimiter = read_escapes(delimiter)
    records = [record for name, file in find_files(path, key).items() for record in _records(name, file)]
    if not records:
        raise DataError(f"{key}={printable(path)} contains no example. Write one JSON object a line.")
    read = _READERS[task]
    chosen = spaced(records, max_examples)
    keys = [item_key(record.values) for record in chosen]
    return ExampleSet(set_name(path), task, [read(record, delimiter) for record in chosen], keys)


def spaced(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Return `count` evenly spaced items, the first included; all of them if count is 0 or there are no more."""
    return [items[i * len(items) // count] for i in range(count)] if 0 < count < len(items) else items


def distinct_names(sets: Sequence[ExampleSet], key: str) -> Sequence[ExampleSet]:
    """Return the sets; raises ConfigError if two have the same name, under which their metrics would mix."""
    names = [examples.name for examples in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{key} names two files called {name}, whose metrics would collide. Rename one of them.")
    return sets


@dataclass(frozen=True)
class _Record:
    """A JSON object and its file and line."""

    location: str
    values: dict[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text, which may be empty."""
        value = self.values.get(name, default)
        if not isinstance(value, str) or not _is_unicode(value):
            raise self.error(name, "a text")
        return value

    def nonempty_text(self, name: str) -> str:
        """Return a text that is more than white space."""
        value = self.text(name)
        if not value.strip():
            raise self.error(name, "a text that is not empty")
        return value

    def error(self, name: str, required: str) -> DataError:
        """Return the error for a key that is missing or has the wrong type."""
        keys = ", ".join(printable(key) for key in sorted(self.values)) or "none"
        return DataError(f"{self.location}: {name} must be {required}. The keys of the line are: {keys}.")


def _minimal_pair(record: _Record, delimiter: str) -> MinimalPair:
    good, bad = record.nonempty_text("sentence_good"), record.nonempty_text("sentence_bad")
    paradigm = record.text("UID", "")
    if len(paradigm) > MAX_PARADIGM:
        raise record.error("UID", f"the name of a paradigm, of at most {MAX_PARADIGM} characters")
    phenomenon = record.text("linguistics_term", "")
    if len(phenomenon) > MAX_PARADIGM:
        raise record.error("linguistics_term", f"the name of a phenomenon, of at most {MAX_PARADIGM} characters")
    return MinimalPair(good, bad, paradigm, phenomenon, record.location)


def _stereotype_pair(record: _Record, delimiter: str) -> StereotypePair:
    kind = record.text("bias_type", "")
    if len(kind) > MAX_PARADIGM:
        raise record.error("bias_type", f"the name of a kind of bias, of at most {MAX_PARADIGM} characters")
    direction = record.text("stereo_antistereo", "")
    if direction not in ("", "stereo", "antistereo"):
        raise record.error("stereo_antistereo", "stereo or antistereo")
    more, less = record.nonempty_text("sent_more"), record.nonempty_text("sent_less")
    return StereotypePair(more, less, kind, direction, record.location)


def _multiple_choice(record: _Record, delimiter: str) -> MultipleChoice:
    fields = choice_fields(record.values)
    if fields is None:
        raise record.error("query, choices and gold", "there, or the published fields of ARC, HellaSwag or the like")
    query, choices, gold = fields.query(), fields.choices, fields.gold
    if not isinstance(query, str) or not _is_unicode(query):
        raise record.error(fields.names[0], "a text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(_is_choice, choices)):
        raise record.error("the choices", "a list of at least two texts, none of them empty")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise record.error(fields.names[1], f"the index or label of one of the {len(choices)} choices")
    continuations = tuple(_delimited(query, choice, delimiter) for choice in choices)
    return MultipleChoice(
        query, continuations, tuple(len(choice.encode()) for choice in choices), gold, record.location
    )


def _cloze(record: _Record, delimiter: str) -> Cloze:
    if "text" in record.values and "context" not in record.values:  # LAMBADA as it is published
        context, _, continuation = record.nonempty_text("text").rstrip().rpartition(" ")
    else:
        context, continuation = record.text("context"), record.nonempty_text("continuation")
    return Cloze(context, _delimited(context, continuation, delimiter), record.location)


def _is_choice(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and _is_unicode(value)


def _is_unicode(text: str) -> bool:
    r"""Return whether a text can be encoded in UTF-8: JSON may hold half of a surrogate pair, as \ud800."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_READERS: dict[Task, Callable[[_Record, str], Example]] = {
    Task.minimal_pairs: _minimal_pair,
    Task.multiple_choice: _multiple_choice,
    Task.cloze: _cloze,
    Task.bias: _stereotype_pair,
}


def _delimited(context: str, text: str, delimiter: str) -> str:
    """Return a continuation after the delimiter, which is dropped if it is white space that the texts have already."""
    if delimiter.isspace() and (context[-1:].isspace() or text[:1].isspace()):
        return text
    return delimiter + text


def _records(name: str, file: Path) -> list[_Record]:
    """Return the JSON objects of a file, or the rows of a .csv; blank lines are skipped."""
    records = []
    is_table = ".csv" in file.suffixes
    with opened(file, kind_of_file(file, Format.csv if is_table else Format.jsonl).compression) as stream:
        if is_table:
            skipped = Counter[str]()
            rows = read_records(Format.csv, stream, printable(name), {}, skipped)
            records = [_Record(location, values) for location, values in rows]
            if skipped:  # as for lines of JSON: a score of the rest would be another score
                raise DataError(f"{printable(name)} has rows that cannot be read: {counted(skipped)}. Repair the file.")
            return records
        for location, values in json_lines(stream, printable(name)):
            if isinstance(values, str):
                raise DataError(f"{location} is not a JSON object. Write one example a line.")
            records.append(_Record(location, values))
    return records
