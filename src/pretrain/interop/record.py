"""Untrusted JSON of a model folder: every value is checked when it is read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError, printable
from pretrain.files.untrusted_files import read_json

MAX_COUNT = 2**31 - 1
MAX_LAYERS = 10_000


class Record:
    """A JSON object whose values are of the type asked for, or are refused with the file and the key.

    A key that is missing or null has the default given. `largest` bounds what is counted: the largest dimension of any
    tensor that belongs to the record, so that no number in it can ask for more work than its weights are worth.
    """

    def __init__(self, values: Mapping[str, Any], where: str, largest: int = MAX_COUNT) -> None:
        self.values, self.where, self.largest = values, where, largest

    def refuse(self, key: str, rule: str) -> CheckpointError:
        """Return the error that says which rule the value of `key` breaks."""
        return CheckpointError(f"{self.where}: {_in_json(key)[1:-1]}={_in_json(self.values.get(key))} {rule}.")

    def count(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number that some dimension of the weights is as large as, at least 1."""
        bounded = self.largest < MAX_COUNT
        return self._whole(key, default, self.largest, ", the largest dimension of its weights" if bounded else "")

    def length(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number of tokens, at least 1, which no tensor need be as large as."""
        return self._whole(key, default, MAX_COUNT)

    def layers(self, key: str, default: int | None = None) -> int | None:
        """Return a number of layers that a model may have."""
        return self._whole(key, default, MAX_LAYERS)

    def _whole(self, key: str, default: int | None, most: int, why: str = "") -> int | None:
        value = self._value(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.refuse(key, f"is not a whole number from 1 to {most:,}{why}")
        return value

    def refuse_null(self, key: str) -> None:
        """Raise CheckpointError where the key is there without a value."""
        if key in self.values and self.values[key] is None:
            raise self.refuse(key, "says nothing. Give it a value, or remove it")

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number."""
        value = self._value(key, default)
        if value is None:
            return None
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:  # a whole number that no float holds
            pass
        raise self.refuse(key, "is not a finite number")

    def positive(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number above 0."""
        value = self.number(key, default)
        if value is not None and value <= 0.0:
            raise self.refuse(key, "is not above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "is neither true nor false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "is not text")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of strings."""
        value = self._value(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "is not a list of texts")
        return value

    def section(self, key: str) -> "Record":
        """Return the object at `key`, an empty one where there is none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "is not an object")
        return Record(value, f"{self.where}: {key}", self.largest)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def _in_json(value: Any) -> str:
    """Return a value as a terminal may show it, on one line and not much of it."""
    return printable(json.dumps(value))[:200]


def read_record(path: Path) -> Record:
    """Return the object of a JSON file; raises CheckpointError where it is missing, damaged, too large or no object."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(str(path))} cannot be read: {printable(str(error))}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{printable(str(path))} cannot be read: it holds no JSON object.")
    return Record(values, printable(str(path)))
