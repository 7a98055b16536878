"""Whole numbers written with an exponent, as 1e9: wherever a setting is declared as one, such a value is one."""

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from pretrain.config.declared import types_of

_WITH_EXPONENT = re.compile(r"\s*[+-]?[\d_.]+[eE]\+?\d{1,2}\s*")


def is_whole(config_class: type, key: str) -> bool:
    """Whether a setting is declared as a whole number, and in no kind of its group as any number."""
    kinds = types_of(config_class, key)
    return int in kinds and float not in kinds


def _lists_whole(config_class: type, key: str) -> bool:
    """Whether a setting is declared as a list of whole numbers."""
    return any(kind == list[int] for kind in types_of(config_class, key))


def written_out(text: str) -> str:
    """Return 1e9 as 1000000000, anything else as it is."""
    number = _whole(text.strip().replace("_", "")) if _WITH_EXPONENT.fullmatch(text) else None
    return text if number is None else str(number)


def with_whole_numbers(tree: dict[Any, Any], config_class: type, prefix: str = "") -> dict[Any, Any]:
    """Return the settings of a YAML file, where 1e9 is a float or a text, with a whole number where one is asked for.

    `prefix` comes before the names: "model." for a file of that group alone. What is no whole number stays as it is:
    whoever checks its type refuses it.
    """
    return {name: _read(value, config_class, f"{prefix}{name}") for name, value in tree.items()}


def _read(value: Any, config_class: type, key: str) -> Any:
    if isinstance(value, dict):
        return with_whole_numbers(value, config_class, f"{key}.")
    if isinstance(value, list) and _lists_whole(config_class, key):
        return [_as_whole(item) for item in value]
    return _as_whole(value) if isinstance(value, str | float) and is_whole(config_class, key) else value


def _as_whole(value: Any) -> Any:
    """Return the whole number that a value stands for; any other value as it is."""
    if isinstance(value, str):
        return written_out(value)
    if isinstance(value, float):
        number = _whole(repr(value))  # the digits that were written, where a float has no room for all of the number's
        return value if number is None else number
    return value


def _whole(digits: str) -> int | None:
    """Return the whole number that digits and an exponent stand for; None where they stand for none."""
    try:
        number = Decimal(digits)
        return int(number) if number.is_finite() and number.adjusted() < 100 and number == int(number) else None
    except InvalidOperation:
        return None
