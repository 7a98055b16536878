"""The English that every Python carries: its help topics and the docstrings of its standard library.

About 2 MB of prose with nothing to download. Files are parsed, never imported, so no module's code runs.
"""

import ast
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pretrain.data.sources import Document

SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})
MIN_BYTES = 40  # shorter documents are titles without a text

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents() -> Iterator[Document]:
    """Yield every help topic, then one document for each module: its docstring and those of what it defines.

    The order is fixed. A docstring that an earlier module also has appears once; documents under 40 bytes are left out.
    """
    seen: set[str] = set()
    for name, text in chain(_topics().items(), _module_texts(seen)):
        if text not in seen and len(text.encode("utf-8", "replace")) >= MIN_BYTES:
            seen.add(text)
            yield Document(text, name)


def fingerprint() -> str:
    """Return 32 hexadecimal digits (xxh3_128) of the Python version and the bytes of every file that is read."""
    import xxhash

    digest = xxhash.xxh3_128(sys.version.encode())
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


def _topics() -> dict[str, str]:
    """Return the texts of Python's `help("...")` topics by name; none where this Python was packaged without them."""
    tree = _parse(Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py"))
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
            return {f"help:{name}": topics[name].strip() + "\n" for name in sorted(topics)}
    return {}


def _module_texts(seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the collected docstrings of each module, adding every docstring to `seen`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _files():
        tree = _parse(path)
        if tree is not None:
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield name, "\n\n".join(_passages(tree, "", seen)) + "\n"


def _parse(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d" in the library's own strings
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _passages(node: ast.Module | Definition, prefix: str, seen: set[str]) -> Iterator[str]:
    """Yield the docstring of a module or definition under a line that names it, then those of what it contains."""
    docstring = ast.get_docstring(node, clean=False)
    text = inspect.cleandoc(docstring).strip() if docstring else ""
    if text and text not in seen:
        seen.add(text)
        yield text if isinstance(node, ast.Module) else f"{_title(node, prefix)}\n{text}"
    inside = prefix if isinstance(node, ast.Module) else f"{prefix}{node.name}."
    for child in node.body:
        if isinstance(child, Definition):
            yield from _passages(child, inside, seen)


def _title(node: Definition, prefix: str) -> str:
    """Return a line such as `class Path` or `def Path.joinpath(self, *pathsegments)`."""
    if isinstance(node, ast.ClassDef):
        return f"class {prefix}{node.name}"
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return f"def {prefix}{node.name}({', '.join(names)})"
