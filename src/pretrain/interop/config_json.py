"""config.json of a model folder, untrusted: every value is checked when it is read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.errors import CheckpointError, printable
from pretrain.files.untrusted_files import read_json

MAX_COUNT = 2**31 - 1
MAX_LAYERS = 10_000


class ConfigJson:
    """A JSON object; its methods return a key's value, or the default if it is missing or null.

    They raise CheckpointError, naming file and key, for a value of another type. `largest` bounds counts: the largest
    dimension of the weights, so that no number can demand more memory than the weights have.
    """

    def __init__(self, values: Mapping[str, Any], location: str, largest: int = MAX_COUNT) -> None:
        self.values, self.location, self.largest = values, location, largest

    def error(self, key: str, rule: str) -> CheckpointError:
        """Return the error for a key whose value breaks a rule."""
        return CheckpointError(f"{self.location}: {_in_json(key)[1:-1]}={_in_json(self.values.get(key))} {rule}.")

    def count(self, key: str, default: int | None = None) -> int | None:
        """Return a whole number from 1 to the largest dimension of the weights."""
        bounded = self.largest < MAX_COUNT
        return self._whole(key, default, self.largest, ", the largest dimension of its weights" if bounded else "")

    def length(self, key: str, default: int | None = None) -> int | None:
        """Return a number of tokens, at least 1; no dimension of the weights bounds it."""
        return self._whole(key, default, MAX_COUNT)

    def layers(self, key: str, default: int | None = None) -> int | None:
        """Return a number of layers, from 1 to `MAX_LAYERS`."""
        return self._whole(key, default, MAX_LAYERS)

    def _whole(self, key: str, default: int | None, most: int, why: str = "") -> int | None:
        value = self._value(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise self.error(key, f"is not a whole number from 1 to {most:,}{why}")
        return value

    def reject_null(self, key: str) -> None:
        """Raise CheckpointError if the key is null."""
        if key in self.values and self.values[key] is None:
            raise self.error(key, "is not supported, because versions of transformers differ on it. Give it a value, "
                             "or remove it")  # fmt: skip

    def number(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number."""
        value = self._value(key, default)
        if value is None:
            return None
        try:
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
        except OverflowError:  # a whole number too large for a float
            pass
        raise self.error(key, "is not a finite number")

    def positive(self, key: str, default: float | None = None) -> float | None:
        """Return a finite number above 0."""
        value = self.number(key, default)
        if value is not None and value <= 0.0:
            raise self.error(key, "is not above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "is neither true nor false")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, "is not text")
        return value

    def texts(self, key: str) -> list[str] | None:
        """Return a list of strings."""
        value = self._value(key, None)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "is not a list of texts")
        return value

    def section(self, key: str) -> "ConfigJson":
        """Return the object at `key`; an empty one by default."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "is not an object")
        return ConfigJson(value, f"{self.location}: {key}", self.largest)

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def _in_json(value: Any) -> str:
    """Return a value as JSON for a message: escaped and short."""
    return printable(json.dumps(value))[:200]


def read_config_json(path: Path) -> ConfigJson:
    """Return the object of a JSON file; raises CheckpointError if it is missing, damaged or too large."""
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(str(path))} cannot be read: {printable(str(error))}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{printable(str(path))} cannot be read: it is not a JSON object.")
    return ConfigJson(values, printable(str(path)))
