"""The items of evaluation sets as texts to look for, each with a key by which its score is found again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pretrain.data.config import Format
from pretrain.data.curation.contamination.choice_fields import choice_fields
from pretrain.data.curation.contamination.config import DecontaminateConfig
from pretrain.data.sources.column_files import json_lines, read_records
from pretrain.data.sources.compressed_files import opened
from pretrain.data.sources.corpus_files import find_files
from pretrain.data.sources.file_formats import kind_of_file
from pretrain.data.sources.source import counted, printable
from pretrain.errors import ConfigError, DataError

SETTING = "decontaminate.sets"
_SUFFIXES = (".gz", ".xz", ".zst", ".zstd", ".bz2", ".csv", ".jsonl", ".ndjson", ".json")
_LAYOUTS = (  # the first one whose names an item has all; the others are read where they are there
    (("sentence_good",), ()),
    (("sent_more", "sent_less"), ()),
    (("context", "continuation"), ()),
    (("question",), ("passage", "context", "answer")),
    (("text",), ()),
)


@dataclass(frozen=True)
class Item:
    """An item of an evaluation set; runs of words are looked for within each of its parts."""

    set: str
    key: str
    location: str  # file:line
    parts: tuple[str, ...]


def item_key(values: Mapping[str, Any]) -> str:
    """Return the identity of an item: a hash of its fields, 32 hexadecimal digits, the same in any file and order."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True, default=str).encode("utf8", "surrogatepass"))


def set_name(path: str | Path) -> str:
    """Return the name of a set: that of its file or folder, without suffixes."""
    name = Path(path)
    while name.suffix.lower() in _SUFFIXES:
        name = name.with_suffix("")
    return name.name or "examples"


def set_records(config: DecontaminateConfig) -> dict[str, dict[str, Any]]:
    """Return for each set its path and the sha256 of its files, as plain JSON.

    Raises ConfigError for two sets of one name, DataError for a path without files.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in config.sets:
        name = set_name(path)
        if name in found:
            raise ConfigError(
                f"{SETTING} names two files called {printable(name)}, whose verdicts would mix. Rename one of them."
            )
        digest = hashlib.sha256()
        for file in find_files(path, SETTING).values():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        found[name] = {"path": str(Path(path).expanduser().resolve()), "sha256": digest.hexdigest()}
    return found


def read_items(name: str, path: str, fields: Sequence[str] | None) -> Iterator[Item]:
    """Yield the items of a set.

    Raises DataError that names file and line for what is no item, or lacks a field.
    """
    count = 0
    for file_name, file in find_files(path, SETTING).items():
        for location, values in _records(printable(file_name), file):
            count += 1
            yield Item(name, item_key(values), location, _parts(location, values, fields))
    if not count:
        raise DataError(f"{SETTING}=[{printable(path)}] holds no item. Write one JSON object a line.")


def _records(name: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    is_table = ".csv" in file.suffixes
    kind = kind_of_file(file, Format.csv if is_table else Format.jsonl)
    with opened(file, kind.compression) as stream:
        if is_table:
            skipped = Counter[str]()
            yield from read_records(Format.csv, stream, name, {}, skipped)
            if skipped:
                raise DataError(f"{name} has rows that cannot be read: {counted(skipped)}. Repair the file.")
            return
        for location, values in json_lines(stream, name):
            if isinstance(values, str):
                raise DataError(f"{location} is {values}, and an item is a JSON object. Write one a line.")
            yield location, values


def _parts(location: str, values: Mapping[str, Any], fields: Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of an item that are looked for."""
    asked = choice_fields(values) if fields is None else None
    if asked is not None:
        choices, gold = asked.choices, asked.gold
        if gold is None:  # of a test split: the question alone can be found
            return (asked.question,) if isinstance(asked.question, str) else ()
        if not (isinstance(choices, list) and type(gold) is int and 0 <= gold < len(choices)):
            raise DataError(
                f"{location}: {asked.names[1]} must be the index or label of one of the choices. Try "
                f"decontaminate.fields=[{asked.names[0]}]."
            )
        return tuple(text for text in (asked.question, choices[gold]) if isinstance(text, str))
    names = list(fields) if fields is not None else _layout(values)
    if names is None or not set(names) <= values.keys():
        known = ", ".join(printable(key) for key in sorted(values)) or "none"
        missing = next((each for each in names or () if each not in values), None)
        what = "no known layout" if missing is None else f"no field {printable(missing)}"
        raise DataError(f"{location} has {what}. Its fields: {known}. Try decontaminate.fields=[question].")
    return tuple(text for text in (values[name] for name in names) if isinstance(text, str))


def _layout(values: Mapping[str, Any]) -> list[str] | None:
    for needed, more in _LAYOUTS:
        if set(needed) <= values.keys():
            return [*needed, *(name for name in more if name in values)]
    return None
