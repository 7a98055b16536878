"""Text that came from a model or a corpus, made safe to show."""

import sys


def printable(text: str) -> str:
    """Return text that a terminal shows as it stands: control characters and what it cannot encode are escaped."""
    visible = "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    encoding = sys.stdout.encoding or "utf8"
    return visible.encode(encoding, "backslashreplace").decode(encoding)
