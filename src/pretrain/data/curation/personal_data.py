"""Personal data in texts by pattern and check digit: found, and replaced by constant placeholders or cut out.

Names, postal addresses and dates of birth are not looked for: a pattern cannot tell them. What can be read as a date, a
version or a decimal number is no phone number. Found in the order of `KINDS`; a span is not searched again.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

PERSONAL_DATA_VERSION = 2  # increase when the spans of a text change
PLACEHOLDERS = {
    "secret": "<SECRET>", "email": "<EMAIL_ADDRESS>", "iban": "<IBAN>", "card": "<CREDIT_CARD>", "ip": "<IP_ADDRESS>",
    "national_id": "<NATIONAL_ID>", "phone": "<PHONE_NUMBER>",
}  # fmt: skip
KINDS = tuple(PLACEHOLDERS)
NOT_COVERED = ("names", "postal addresses", "dates of birth", "national identity numbers but those of the US")

# Lengths by country: ISO 13616.
_IBAN_LENGTHS = {
    code: int(length)
    for code, length in re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23"
        "GL18GR27GT28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MR27MT31MU30"
        "NL18NO15PK24PL28PS29PT25QA29RO24RS22SA24SC31SE24SI19SK24SM27ST25SV28TL23TN24TR26UA29VA22VG24XK20",
    )
}
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----"
    r"(?:[\s\S]{0,20000}?-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bAIza[\w-]{35}\b|\bxox[abprs]-[\w-]{10,250}"
    r"|\bsk-[A-Za-z0-9_-]{32,250}"
)
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d\d(?:[ -]?[A-Za-z0-9]){11,31}")
_CARD = re.compile(r"(?<![\w.,:/-])\d(?:[ -]?\d){11,18}(?![\w/]|[.,:-]\d)")
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d+|3[47]\d{13}"
    r"|(?:6011|65|64[4-9]|62)\d+|3(?:0[0-5]|[689])\d{11,13}|35\d{14}|(?:50|5[6-8]|6)\d{10,18}"
    r"|(?:1800|2131)\d{11}"
)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|version|release|build)[ .:=]{0,2}$", re.IGNORECASE)
_SSN = re.compile(r"(?<![\w.-])(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![\w]|[-.]\d)")
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?<!\d )(?:"
    r"(?:\+|00)[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,5}"
    r"|(?:1[ .-])?\([0-9]\d{1,4}\) ?-?\d{2,4}[ .-]?\d{2,4}(?:[ .-]\d{2,4})?"
    r"|(?:1[ .-])?[2-9]\d\d([ .-])\d{3}\1\d{4}"
    r"|0[1-9]\d{0,3}[ -]\d{2,4}(?:[ -]\d{2,4}){1,3}|0\d(?:[ .-]\d\d){4}|0\d{2,4}[ -]\d{6,8}"
    r")(?:x\d{1,5})?(?![\w/]|[.,:-]\d)"
)
_DATE = re.compile(r"\d{1,2}([. /-])\d{1,2}\1\d{2,4}|\d{4}([. /-])\d{1,2}\2\d{1,2}")


@dataclass(frozen=True)
class Span:
    """A part of a text that is personal data."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: Sequence[str] = KINDS) -> list[Span]:
    """Return the personal data of a text, from left to right, none overlapping another."""
    found: list[Span] = []  # from left to right
    has_digit = any(digit in text for digit in "0123456789")
    for kind, finder in _FINDERS.items():
        if kind not in kinds or not (has_digit or kind in ("email", "secret")):
            continue
        for start, end in finder(text):
            at = bisect_left(found, end, key=_start)  # the first one after it
            if not at or found[at - 1].end <= start:
                found.insert(at, Span(start, end, kind))
    return found


def _start(span: Span) -> int:
    return span.start


def replaced(text: str, kinds: Sequence[str], *, remove: bool = False) -> tuple[str, Counter[str]]:
    """Return a text with its personal data as placeholders, or without it, and how many spans of each kind it had."""
    parts, at = list[str](), 0
    counts = Counter[str]()
    for span in find(text, kinds):
        parts += [text[at : span.start], "" if remove else PLACEHOLDERS[span.kind]]
        at = span.end
        counts[span.kind] += 1
    return ("".join([*parts, text[at:]]) if counts else text), counts


Spans = Iterator[tuple[int, int]]


def _secrets(text: str) -> Spans:
    yield from (match.span() for match in _SECRET.finditer(text))


def _emails(text: str) -> Spans:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _ibans(text: str) -> Spans:
    at = 0
    while match := _IBAN.search(text, at):
        at = match.start() + 4  # what only begins like one may reach into the next one
        length = _IBAN_LENGTHS.get(match[0][:2].upper())
        end, count = match.start(), 0
        while length is not None and count < length and end < match.end():
            count += text[end].isalnum()
            end += 1
        rest = text[end : end + 1]
        if count == length and not rest.isalnum() and _is_iban(text[match.start() : end]):
            yield match.start(), end
            at = end


def _is_iban(written: str) -> bool:
    plain = written.replace(" ", "").replace("-", "").upper()
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _cards(text: str) -> Spans:
    for match in _CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if _ISSUER.fullmatch(digits) and _luhn(digits):
            yield match.span()


def _luhn(digits: str) -> bool:
    doubled = (int(digit) * (1 + position % 2) for position, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _addresses(text: str) -> Spans:
    for pattern, sign in ((_IPV4, "."), (_IPV6, "::"), (_IPV6, ":")):
        if text.count(sign) < (3 if sign == "." else 1):
            continue
        for match in pattern.finditer(text):
            try:
                is_global = ipaddress.ip_address(match[0]).is_global
            except ValueError:
                continue
            is_number = len(match[0]) == 7 and sign == "."  # four digits are a section or a version
            if is_global and not is_number and not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()


def _national_ids(text: str) -> Spans:
    yield from (match.span() for match in _SSN.finditer(text))


def _phones(text: str) -> Spans:
    for match in _PHONE.finditer(text):
        digits = sum(sign.isdigit() for sign in match[0].partition("x")[0])
        is_version = _VERSION.search(text, max(0, match.start() - 12), match.start())
        if 8 <= digits <= 15 and not _DATE.fullmatch(match[0]) and not is_version:
            yield match.span()


_FINDERS: dict[str, Callable[[str], Spans]] = {
    "secret": _secrets, "email": _emails, "iban": _ibans, "card": _cards, "ip": _addresses,
    "national_id": _national_ids, "phone": _phones,
}  # fmt: skip
