"""The English that every Python carries: its help topics and the docstrings of its standard library.

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

from pretrain.data.sources.source import Document

SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})


VERSION = 1  # of how documents are made from the files; raise it and stores made before are left aside


MIN_BYTES = 40  # shorter paragraphs are headings, shorter documents titles without a text


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents() -> Iterator[Document]:
    """Yield every help topic, then one document for each module: its docstring and those of what it defines.

    The order is fixed. Topics quote one another and modules share passages: a paragraph appears once, so that nothing
    is held out for validation that was read in training. Documents under 40 bytes are left out.
    """
    seen: set[str] = set()
    for name, passages in chain(_topics(), _modules()):
        text = "\n\n".join(fresh for passage in passages if (fresh := _fresh(passage, seen)))
        if len(text.encode("utf-8", "replace")) >= MIN_BYTES:
            yield Document(text + "\n", name)


def _fresh(passage: str, seen: set[str]) -> str:
    """Return a passage without the paragraphs in `seen`, and add the others to it; headings and the like stay.

    Nothing is returned where half of the passage or more is known: what remains would be fragments.
    """
    kept, known, whole = [], 0, 0
    for paragraph in re.split(r"\n\s*\n", passage.strip()):
        key = " ".join(paragraph.split())
        whole += len(key)
        if key in seen:
            known += len(key)
            continue
        if len(key) >= MIN_BYTES:
            seen.add(key)
        kept.append(paragraph)
    return "\n\n".join(kept) if known < whole / 2 else ""


def fingerprint() -> str:
    """Return 32 hexadecimal digits (xxh3_128) of the Python version and the bytes of every file that is read."""
    import xxhash

    digest = xxhash.xxh3_128(f"{VERSION} {sys.version}".encode())
    for path in _files():
        digest.update(xxhash.xxh3_128(path.read_bytes()).digest())
    return digest.hexdigest()


def _files() -> list[Path]:
    """Return the source files of the standard library in sorted order, without its tests."""
    found = []
    for folder, folders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def _topics() -> Iterator[tuple[str, list[str]]]:
    """Yield the texts of Python's `help("...")` topics by name; none where this Python was packaged without them."""
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
    """Yield the docstring of a module or definition, then those of what it contains."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield inspect.cleandoc(docstring).strip()
    for child in node.body:
        if isinstance(child, Definition):
            yield from _docstrings(child)
