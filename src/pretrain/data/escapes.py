"""The escapes of free text in settings: a command line cannot hold a new line as easily as it is meant."""

import re

_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}


def read_escapes(text: str) -> str:
    r"""Return the text of a setting with \n, \t, \r, \0 and \\ as the characters that they stand for.

    Any other backslash stands for itself. Separators, templates, delimiters and stop strings are read by this function
    alone; a prompt is not, for it may be code or LaTeX that a model has to see as it stands.
    """
    return re.sub(r"\\([ntr0\\])", lambda escape: _CHARACTERS[escape[1]], text)


def write_escapes(text: str) -> str:
    """Return a text as it is typed in a setting: `read_escapes` of it is the text again."""
    names = {character: name for name, character in _CHARACTERS.items()}
    return re.sub(r"[\n\t\r\0\\]", lambda character: f"\\{names[character[0]]}", text)
