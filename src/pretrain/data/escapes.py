"""Escape sequences in text settings, such as \\n for a line break."""

import re

_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


def read_escapes(text: str) -> str:
    r"""Return the text of a setting with \n, \t, \r, \0 and \\ as the characters that they stand for.

    Any other backslash is literal. Separators, templates, delimiters and stop strings are read by this function; a
    prompt is not, as it may be code or LaTeX.
    """
    return re.sub(r"\\([ntr0\\])", lambda escape: _CHARACTERS[escape[1]], text)


def write_escapes(text: str) -> str:
    """Return a text as typed in a setting; the inverse of `read_escapes`."""
    names = {character: name for name, character in _CHARACTERS.items()}
    return re.sub(r"[\n\t\r\0\\]", lambda character: f"\\{names[character[0]]}", text)
