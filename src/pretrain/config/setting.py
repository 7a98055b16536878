"""A setting is described once: its field's metadata feeds the check, the error, `--help` and the page of settings.

Text settings may hold escape sequences, such as \\n for a line break.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar

from pretrain.errors import ConfigError, shown

_INTERVAL = re.compile(r"([\[(])\s*(\S+),\s*(\S+)\s*([\])])")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}  # by the character after a backslash


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers."""

    low: float
    high: float
    low_open: bool
    high_open: bool

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    @property
    def whole(self) -> bool:
        """Whether the bounds are those of whole numbers."""
        return isinstance(self.low, int)

    def describe(self) -> str:
        """Return the interval in words, such as `1 or more` or `0 to below 1`."""
        low, high = _plain(self.low), _plain(self.high)
        if self.low == -math.inf:
            return "finite"
        if self.high == math.inf:
            return f"above {low}" if self.low_open else f"{low} or more"
        if self.low_open and self.high_open:
            return f"between {low} and {high}"
        return f"{'above ' if self.low_open else ''}{low} to {'below ' if self.high_open else ''}{high}"


@dataclass(frozen=True)
class Description:
    """What a setting is: one line of help, its unit, the numbers it may be, and a value that works."""

    about: str = ""
    unit: str = ""
    bounds: Bounds | None = None
    also: float | None = None  # a number outside the bounds with a meaning of its own
    example: Any = None
    hint: str = ""  # after the example in an error: "or 0 for all"

    def range(self) -> str:
        """Return unit and range in words, such as `minutes, above 0`; empty where there is neither."""
        words = [self.unit] if self.unit else []
        if self.bounds is not None:
            words.append(self.bounds.describe() + ("" if self.also is None else f" or {_plain(self.also)}"))
        return ", ".join(words)


def setting(
    default: Any = MISSING, about: str = "", *, bounds: str = "", unit: str = "", also: float | None = None,
    example: Any = None, hint: str = "", default_factory: Any = MISSING,
) -> Any:  # fmt: skip
    """Return a dataclass field that carries its description.

    `bounds` is an interval as in mathematics: "[1, inf)" of whole numbers, "(0.0, 1.0]" of any, written with a point.
    `also` is one number outside it that has a meaning of its own. The error of another number proposes the default,
    or `example` where the default is none or cannot be proposed, with `hint` after it.
    """
    usual = default if example is None and default is not MISSING else example
    text = Description(about, unit, _interval(bounds) if bounds else None, also, usual, hint)
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"setting": text})
    return field(default=default, metadata={"setting": text})


def plugins_setting() -> Any:
    """Return the field `plugins` of a command's settings."""
    about = "Packages of one's own to import, which register kinds of model, data and so on; never from a saved run."
    return setting(default_factory=list, about=about)


def description(config_class: Any, name: str) -> Description:
    """Return the description of a setting; that of a field without one is empty."""
    found: Description = config_class.__dataclass_fields__[name].metadata.get("setting", Description())
    return found


@dataclass
class Settings:
    """A group of settings, checked against their bounds when it is made."""

    prefix: ClassVar[str] = ""  # before the names of its settings on the command line: "trainer."

    def __post_init__(self) -> None:
        check_bounds(self)


def check_bounds(settings: Any) -> None:
    """Raise ConfigError for the first number outside the bounds of its field; None is inside any."""
    for each in fields(settings):
        check(f"{settings.prefix}{each.name}", getattr(settings, each.name), description(settings, each.name))


def check(key: str, value: Any, text: Description) -> None:
    """Raise ConfigError where `value` is outside the bounds of the setting `key`, with the rule and a right value."""
    if value is not None and (rule := _broken_rule(value, text)):
        hint = f", {text.hint}" if text.hint else ""
        raise ConfigError(f"{key}={str(value)[:80]} {rule}. Try {key}={_plain(text.example)}{hint}.")


def _broken_rule(value: Any, text: Description) -> str:
    """Return the rule that a value breaks, to stand after it in a sentence; empty where it breaks none."""
    bounds = text.bounds
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if bounds is None or (is_number and value == text.also):
        return ""
    low, high = _plain(bounds.low), _plain(bounds.high)
    if bounds.whole:
        if not is_number or not isinstance(value, Integral):
            return "is not a whole number"
        if int(value) < bounds.low:
            return "is negative" if bounds.low == 0 else f"is below {low}"
        return f"is above {high}, the largest that is allowed" if int(value) > bounds.high else ""
    if is_number and value in bounds:
        return ""
    if bounds.low == -math.inf:
        return "is not a finite number"
    if bounds.high == math.inf:
        kind = f"number of {text.unit}" if text.unit else "number"
        return f"is not a {kind} above {low}" if bounds.low_open else f"is not a {kind} from {low} up"
    ends = {
        (True, True): f"between {low} and {high}",
        (True, False): f"above {low} and up to {high}",
        (False, True): f"from {low} up to but not including {high}",
        (False, False): f"from {low} to {high}",
    }
    return f"is not a share {ends[bounds.low_open, bounds.high_open]}"


def _interval(text: str) -> Bounds:
    match = _INTERVAL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an interval such as [1, inf)")
    return Bounds(_number(match[2]), _number(match[3]), match[1] == "(", match[4] == ")")


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _plain(value: Any) -> str:
    """Return a value as one types it on the command line, without the digits that floats add: `0`, `0.5`, `true`."""
    return f"{value:.12g}" if isinstance(value, float) else shown(value)


def read_escapes(text: str) -> str:
    r"""Return the text of a setting with \n, \t, \r, \0 and \\ as the characters that they stand for.

    Any other backslash is literal. Separators, templates, delimiters and stop strings are read by this function; a
    prompt is not, as it may be code or LaTeX.
    """
    return re.sub(r"\\([ntr0\\])", lambda escape: _ESCAPED[escape[1]], text)


def write_escapes(text: str) -> str:
    """Return a text as typed in a setting; the inverse of `read_escapes`."""
    names = {character: name for name, character in _ESCAPED.items()}
    return re.sub(r"[\n\t\r\0\\]", lambda character: f"\\{names[character[0]]}", text)
