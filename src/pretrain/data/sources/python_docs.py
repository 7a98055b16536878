"""The English text in every Python installation: help topics and docstrings of the standard library.

About 2 MB of prose with nothing to download. Files are parsed, never imported, so no module's code runs.
"""

import ast
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pretrain.data.sources.source import Document, Source

SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})
VERSION = 1  # of the rules that make documents from files; raise it and older stores are no longer used
MIN_BYTES = 40  # shorter paragraphs are headings, shorter documents titles without a text
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PythonDocs(Source):
    """The help topics and docstrings of the running Python."""

    def fingerprint(self) -> str:
        """Return the hash of the Python version and of the files read."""
        return fingerprint()

    def read(self, position: Any = None) -> Iterator[Document]:
        return documents()

    def origin(self) -> str:
        return f"data.kind={self.config.kind}: this Python's standard library"


def documents() -> Iterator[Document]:
    """Yield every help topic, then all docstrings of each module as one document, in fixed order.

    Topics quote one another and modules share passages: a paragraph appears once, so that no held-out text occurs in
    the training documents. Documents under 40 bytes are dropped.
    """
    seen: set[str] = set()
    for name, passages in chain(_topics(), _modules()):
        text = "\n\n".join(fresh for passage in passages if (fresh := _fresh(passage, seen)))
        if len(text.encode("utf-8", "replace")) >= MIN_BYTES:
            yield Document(text + "\n", name)


def _fresh(passage: str, seen: set[str]) -> str:
    """Return a passage without the paragraphs in `seen`, and add the new ones to `seen`.

    Short paragraphs such as headings stay. Returns "" if half of the passage or more was seen: the rest is fragments.
    """
    fresh, repeated, total = [], 0, 0
    for paragraph in re.split(r"\n\s*\n", passage.strip()):
        key = " ".join(paragraph.split())
        total += len(key)
        if key in seen:
            repeated += len(key)
            continue
        if len(key) >= MIN_BYTES:
            seen.add(key)
        fresh.append(paragraph)
    return "\n\n".join(fresh) if repeated < total / 2 else ""


def fingerprint() -> str:
    """Return the xxh3_128 (32 hexadecimal digits) of the Python version and all files read."""
    import xxhash

    digest = xxhash.xxh3_128(f"{VERSION} {sys.version}".encode())
    for path in _files():
        digest.update(xxhash.xxh3_128(path.read_bytes()).digest())
    return digest.hexdigest()


def _files() -> list[Path]:
    """Return the source files of the standard library in sorted order, without its tests."""
    files = []
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


def _topics() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and text of each `help("...")` topic; none if this Python has no topics."""
    tree = _parse(Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py"))
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            yield from ((f"help:{name}", [topics[name]]) for name in sorted(topics))
            return


def _modules() -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the docstrings of each module."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _files():
        tree = _parse(path)
        if tree is not None:
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield name, list(_docstrings(tree))


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d" in the library's own strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _docstrings(node: ast.Module | Definition) -> Iterator[str]:
    """Yield the docstring of a module or definition, then those of its members."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield inspect.cleandoc(docstring).strip()
    for child in node.body:
        if isinstance(child, Definition):
            yield from _docstrings(child)
