"""Read untrusted files within limits: regular files only, of bounded size and nesting depth.

Every reader of JSON, YAML or text from a checkpoint, a run folder, a store, a tokenizer or a downloaded model uses this
module. It raises OSError, or ValueError with a reason that leaves out the path: the caller names the file and chooses
the class of error. SECURITY.md lists the limits.
"""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16_000_000
MAX_YAML_BYTES = 1_000_000
MAX_DEPTH = 100  # of nested lists and objects
_BLOCK_BYTES = 1 << 18


def open_regular(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Open a regular file for reading; never wait for a FIFO or read a device.

    Raises ValueError for anything but a regular file, and for a link if `follow_links` is false; OSError as `open`.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    if not follow_links and path.is_symlink():
        raise ValueError("it is a link, and only a regular file is read here")
    handle = os.open(path, flags)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is {kind_of_file(mode)}, and only a regular file is read here")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def open_own(path: Path, flags: int) -> int:
    """Open or create a file for writing; return its descriptor, never wait for a FIFO.

    Raises ValueError for a link and anything but a regular file.
    """
    if path.is_symlink():
        raise ValueError("it is a link, and only a regular file is written here")
    if path.exists() and not path.is_file():
        raise ValueError(f"it is {kind_of_file(path.stat().st_mode)}, and only a regular file is written here")
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def kind_of_file(mode: int) -> str:
    """Return the kind of a file of this `st_mode` with its article: "a folder"."""
    kinds = {
        stat.S_IFREG: "a regular file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFLNK: "a link",
        stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def read_bytes(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Return the content of a regular file; raise ValueError beyond `limit` bytes, counted while reading."""
    data = bytearray()
    with open_regular(path, follow_links=follow_links) as file:
        while block := file.read(_BLOCK_BYTES):  # a single read would allocate the whole limit
            data += block
            if len(data) > limit:
                raise ValueError(f"it is larger than the {limit:,} bytes that such a file may have")
    return bytes(data)


def read_text(path: Path, limit: int, *, follow_links: bool = True) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes."""
    return read_bytes(path, limit, follow_links=follow_links).decode("utf8")


def read_json(path: Path, limit: int = MAX_JSON_BYTES, *, follow_links: bool = True) -> Any:
    """Return the value of a JSON file."""
    return parse_json(read_bytes(path, limit, follow_links=follow_links))


def parse_json(data: str | bytes) -> Any:
    """Return the value of a JSON text; raise ValueError if invalid or nested too deeply."""
    text = data.decode("utf8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    _check_depth(value)
    return value


def read_yaml(path: Path, limit: int = MAX_YAML_BYTES, *, follow_links: bool = True) -> Any:
    """Return the value of a YAML file without aliases, which could expand to billions."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = read_text(path, limit, follow_links=follow_links)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it holds a YAML alias (*name), and only plain values are read here")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        return loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())[:200]}") from None


def _check_depth(value: Any) -> None:
    """Raise ValueError if lists and objects are nested deeper than MAX_DEPTH; without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        items = (item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent))
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
