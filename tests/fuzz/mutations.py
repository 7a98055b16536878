"""Named mutations of a file, hostile or accidental, deterministic for a seed."""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_RAW = "raw-value-of-the-fuzz-test"
LEAVES = [
    "0", "-1", "1.5", "9223372036854775808", "4294967295", "1e308", "1e999", "-Infinity", "NaN", "9" * 5000,
    "null", "true", "[]", "{}", '""', '"\\u001b[31m\\u0007\\n\\r\\u202e\\u0000"', '"\\ud800"', '"${oc.env:HOME}"',
    '"../../outside/target.txt"', '"/dev/zero"', '"' + "x" * 1_000_000 + '"', "[" * 90 + "]" * 90,
    "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000 + "]" * 100_000, '["a", 1, null]',
    '{"kind": "os.system", "_target_": "os.system"}', "[" + "1," * 300_000 + "1]",
]  # fmt: skip
CELLS = ["", "-1", "1e999", "nan", "9" * 5000, "\x1b[31m\x07", "\x00", "\ud800", "x" * 1_000_000, '"', "\n", "{", "é"]


@dataclass(frozen=True)
class Mutation:
    """A change of one file."""

    name: str
    apply: Callable[[Path], None]


def mutations(path: Path, outside: Path, draw: random.Random) -> Iterator[Mutation]:
    """Yield changes of the file for ever, of all kinds in turn; `outside` is a folder that links may lead to."""
    kinds = [_of_bytes(path, draw), _of_kind(outside, draw)]
    kinds += [_of_structure(path, draw)] * 3 if _reader_of(path) else [_of_cells(path, draw)]
    while True:
        yield next(kinds[draw.randrange(len(kinds))])


def _of_bytes(path: Path, draw: random.Random) -> Iterator[Mutation]:
    """Yield truncations, flipped bits, swapped and repeated halves, bytes of other values."""
    size = max(2, path.stat().st_size)  # a lock is empty
    while True:
        for cut in (0, 1, size // 2, size - 1, draw.randrange(size)):
            yield Mutation(f"truncated to {cut} bytes", _rewriting(lambda data, cut=cut: data[:cut]))
            at, bit = draw.randrange(min(size, 2048) if draw.random() < 0.5 else size), draw.randrange(8)
            yield Mutation(f"bit {bit} of byte {at} flipped", _rewriting(lambda data, a=at, b=bit: _flip(data, a, b)))
        yield Mutation("halves swapped", _rewriting(lambda data: data[len(data) // 2 :] + data[: len(data) // 2]))
        yield Mutation("written twice", _rewriting(lambda data: data + data))
        yield Mutation("all bytes zero", _rewriting(lambda data: bytes(len(data))))
        noise = draw.randbytes(size)
        yield Mutation("random bytes", _rewriting(lambda data, noise=noise: noise))
        yield Mutation("a megabyte of brackets", _rewriting(lambda data: b"[" * 1_000_000))


def _flip(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data.ljust(at + 1, b"\0"))
    changed[at] ^= 1 << bit
    return bytes(changed)


def _rewriting(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(change(path.read_bytes())))


def void(_: object) -> None:
    """Return nothing, whatever is given."""


def _of_kind(outside: Path, draw: random.Random) -> Iterator[Mutation]:
    """Yield replacements of the file by something that is no regular file, and its removal."""

    def replacing(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            path.unlink()
            make(path)

        return apply

    while True:
        kinds: dict[str, Callable[[Path], object]] = {
            "removed": lambda path: None,
            "a FIFO": os.mkfifo,
            "a folder": lambda path: path.mkdir(),
            "a link to a file elsewhere": lambda path: path.symlink_to(outside / "target.txt"),
            "a link to nothing": lambda path: path.symlink_to(outside / "nothing"),
            "a link to itself": lambda path: path.symlink_to(path),
            "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
            "a link to a folder elsewhere": lambda path: path.symlink_to(outside),
        }
        names = list(kinds)
        draw.shuffle(names)
        for name in names:
            yield Mutation(name, replacing(kinds[name]))


def _reader_of(path: Path) -> Callable[[bytes], Any] | None:
    """Return what parses a file into lists and objects, where it has such a form."""
    if path.name.endswith((".json", ".jsonl")):
        return json.loads
    return yaml.safe_load if path.suffix == ".yaml" else _header if path.suffix == ".safetensors" else None


def _header(data: bytes) -> Any:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _of_structure(path: Path, draw: random.Random) -> Iterator[Mutation]:
    """Yield changes of a value anywhere in a JSON or YAML file, of a line, or of a tensor file's header."""
    reader = _reader_of(path)
    assert reader is not None
    in_lines = path.suffix == ".jsonl" or path.name == "a.json"
    lines = path.read_bytes().splitlines() if in_lines else []
    while True:
        number = draw.randrange(len(lines)) if lines else None
        tree = reader(lines[number] if number is not None else path.read_bytes())
        places = list(_places(tree, ()))
        place = places[draw.randrange(len(places))]
        raw, how = draw.choice(LEAVES), draw.random()
        if how < 0.1 and place:
            changed, name = _with(tree, place, None, remove=True), "removed"
        elif how < 0.2 and place and isinstance(place[-1], str):
            key = draw.choice(["\x1b[31m\n", "x" * 10_000, "", "../../outside/target.txt", "__class__"])
            changed, name = _with(tree, place, None, rename=key), f"renamed to {key[:30]!r}"
        else:
            changed, name = _with(tree, place, _RAW), f"= {raw[:30]}"
        text = json.dumps(changed).replace(f'"{_RAW}"', raw)
        label = f"{'.'.join(map(str, place))[:60] or 'all of it'} {name}" + (f" in line {number}" if lines else "")
        yield Mutation(label, _replacing_text(text, number))


def _places(tree: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value, and of at most 50 items of each list or object."""
    yield above
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    for key, value in items[:: max(1, len(items) // 50)]:
        yield from _places(value, (*above, key))


def _with(tree: Any, place: tuple[Any, ...], value: Any, *, remove: bool = False, rename: str | None = None) -> Any:
    """Return a copy of a tree with the value at a place set, removed, or moved to another key."""
    if not place:
        return value
    tree = tree.copy()
    if len(place) > 1:
        tree[place[0]] = _with(tree[place[0]], place[1:], value, remove=remove, rename=rename)
    elif rename is not None:
        tree[rename] = tree.pop(place[0])
    elif remove:
        del tree[place[0]]
    else:
        tree[place[0]] = value
    return tree


def _replacing_text(text: str, line: int | None) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = path.read_bytes()
        new = text.encode()
        if path.suffix == ".safetensors":
            new = len(new).to_bytes(8, "little") + new + data[8 + int.from_bytes(data[:8], "little") :]
        elif line is not None:
            lines = data.splitlines()
            lines[line] = new
            new = b"\n".join(lines) + b"\n"
        path.write_bytes(new)

    return apply


def _of_cells(path: Path, draw: random.Random) -> Iterator[Mutation]:
    """Yield changes of one word of a text, such as a cell of a table."""
    parts = re.split(rb"([,\t\n ])", path.read_bytes()[:20_000])
    while True:
        at, cell = 2 * draw.randrange((len(parts) + 1) // 2), draw.choice(CELLS)
        new = cell.encode(errors="surrogatepass")

        def change(data: bytes, at: int = at, new: bytes = new) -> bytes:
            return b"".join([*parts[:at], new, *parts[at + 1 :]]) + data[20_000:]

        yield Mutation(f"word {at // 2} is {cell[:30]!r}", _rewriting(change))


def snapshot(folder: Path) -> dict[str, str]:
    """Return what is below a folder: kind and content of each entry, links not followed."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def copy_anew(template: Path, folder: Path) -> None:
    """Have `folder` be a fresh copy of `template`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
