"""JSON records: read into dataclasses with checked types and ranges, and sealed by a hash; hashes of files they list.

Errors are ValueErrors that name the key; the caller adds the file and chooses the class of error.
"""

import hashlib
import json
import types
import typing
from collections.abc import Hashable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

SEAL = "record_sha256"  # of the record without this key
MAX_WHOLE = 2**63  # bound of whole numbers in a record

T = TypeVar("T")


@dataclass(frozen=True)
class AtLeast:
    """Lower bound of a number, annotated on its type."""

    least: int


Count = Annotated[int, AtLeast(0)]


def read_record(kind: type[T], value: Any, name: str) -> T:
    """Read a JSON object into a dataclass; unknown keys are ignored.

    `name` is the record's name in messages. Raises ValueError that names the first key that is missing or whose value
    does not fit the field's type or range: int, float, str, bool, dict, list, dataclasses, Any, `| None`, `AtLeast`.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {shortened(value)}, which is no object")
    hints, values = _hints(typing.cast(Hashable, kind)), {}
    for field in fields(typing.cast(Any, kind)):
        if field.name in value:
            values[field.name] = _read(hints[field.name], value[field.name], name, field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} has no {field.name}")
    return kind(**values)


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as plain JSON data with its hash added."""
    plain = json.loads(json.dumps({key: value for key, value in record.items() if key != SEAL}))
    return {**plain, SEAL: _hash(plain)}


def check_seal(record: dict[str, Any], name: str) -> None:
    """Raise ValueError if a record does not match its hash; earlier versions wrote none."""
    if SEAL in record and record[SEAL] != _hash({key: value for key, value in record.items() if key != SEAL}):
        raise ValueError(f"{name} is not as it was written: its {SEAL} is that of other contents")


def check_format(record: Any, name: str, version: int, remedy: str = "") -> None:
    """Raise ValueError unless a record is an object with this `format`, and of this `version`.

    `remedy` is what to do about another version, without the full stop.
    """
    if not isinstance(record, dict) or record.get("format") != name:
        raise ValueError(f"it has no format={name!r}")
    if record.get("version") != version:
        found = f"it has version={shortened(record.get('version'))}, and this release reads version {version}"
        raise ValueError(f"{found}. {remedy}" if remedy else found)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortened(value: object) -> str:
    """Return a value of an untrusted file for a message: escaped and short."""
    return ascii(value)[:80]


def _hash(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(typing.cast(type, kind), include_extras=True)


def _read(hint: Any, value: Any, name: str, key: str) -> Any:
    """Return the value of a key, checked against its type."""
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Annotated:
        return _within(_read(parts[0], value, name, key), parts[1:], name, key)
    if origin in (types.UnionType, typing.Union):
        (required,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else _read(required, value, name, key)
    if is_dataclass(hint):
        return read_record(typing.cast(type, hint), value, f"{key} of {name}")
    if origin is list and isinstance(value, list):
        return [_read(parts[0], item, name, key) for item in value]
    if origin is dict and isinstance(value, dict):
        return {inner: _read(parts[1], item, name, f"{key}.{ascii(inner)[1:-1][:80]}") for inner, item in value.items()}
    return value if hint is Any else _plain(origin, value, name, key)


def _within(number: Any, limits: tuple[Any, ...], name: str, key: str) -> Any:
    """Return a number after checking its bounds."""
    for limit in limits:
        if isinstance(limit, AtLeast) and number < limit.least:
            raise _invalid(name, key, number, f"which is below {limit.least}")
    return number


def _plain(hint: Any, value: Any, name: str, key: str) -> Any:
    """Return a scalar checked against its type; an int is converted for a float."""
    if hint is float and (type(value) is float or (type(value) is int and abs(value) < MAX_WHOLE)):
        return float(value)  # infinity and NaN too, which losses may be
    if hint is int and type(value) is int and abs(value) < MAX_WHOLE:
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", list: "list", dict: "object"}
    raise _invalid(name, key, value, f"which is no {names[hint]}")


def _invalid(name: str, key: str, value: Any, why: str) -> ValueError:
    return ValueError(f"{name} has {key}={shortened(value)}, {why}")
