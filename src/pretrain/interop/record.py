"""JSON of a folder that others made, read as data: its size is checked first, every value when it is asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.data.sources import printable
from pretrain.errors import CheckpointError

MAX_JSON_BYTES = 16_000_000
MAX_COUNT = 2**31 - 1
MAX_LAYERS = 10_000


class Record:
    """A JSON object whose values are of the type asked for, or are refused with the file and the key.

    A key that is missing or null has the default given.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def refuse(self, key: str, rule: str) -> CheckpointError:
        """Return the error that says which rule the value of `key` breaks."""
        return CheckpointError(f"{self.where}: {key}={printable(json.dumps(self.values.get(key)))[:200]} {rule}.")

    def count(self, key: str, default: int | None = None, most: int = MAX_COUNT) -> int | None:
        """Return a whole number from 1 to `most`."""
        value = self._value(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.refuse(key, f"is not a whole number from 1 to {most:,}")
        return value

    def layers(self, key: str, default: int | None = None) -> int | None:
        """Return a number of layers that a model may have."""
        return self.count(key, default, MAX_LAYERS)

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number."""
        value = self._value(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(key, "is not a finite number")
        return float(value)

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
        return Record(value, f"{self.where}: {key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def read_record(path: Path) -> Record:
    """Return the object of a JSON file; raises CheckpointError where it is missing, damaged, too large or no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_JSON_BYTES:,} that we read."
            )
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} cannot be read: it holds no JSON object.")
    return Record(values, str(path))
