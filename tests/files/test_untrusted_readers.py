"""Untrusted files are checked for kind, size and depth before they take memory or time."""

import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest
import yaml

from pretrain.files.untrusted_files import (
    MAX_DEPTH,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
)

LAUGHS = "a: &a [x,x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_read(path: str):
    with pytest.raises(ValueError, match="it is a character device, and only a regular file is read here"):
        read_bytes(Path(path), 10)


def test_folders_fifos_and_sockets_are_not_read_and_nothing_waits(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, reason in ((tmp_path, "a folder"), (tmp_path / "fifo", "a FIFO")):
            with pytest.raises(ValueError, match=f"it is {reason}"):
                open_regular(path)
        with pytest.raises(OSError, match="No such device or address"):
            open_regular(tmp_path / "socket")


def test_links_are_followed_only_on_request(tmp_path: Path):
    (tmp_path / "real").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_json(tmp_path / "link") == 1
    with pytest.raises(ValueError, match="it is a link"):
        read_json(tmp_path / "link", follow_links=False)


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert len(read_bytes(tmp_path / "file", 1 << 32)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_the_size_is_counted_while_reading(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_text(tmp_path / "file", 11) == "x" * 11
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        read_bytes(tmp_path / "file", 10)
    assert Path("/proc/self/status").stat().st_size == 0  # its size in the file system is 0
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        read_bytes(Path("/proc/self/status"), 10)


@pytest.mark.parametrize(
    "text", ["[" * 101 + "]" * 101, '{"a":' * 101 + "1" + "}" * 101, "[" * 900 + "]" * 900, "[" * 10**6 + "]" * 10**6]
)
def test_nesting_is_bounded(text: str):
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parse_json(text)


def test_nesting_within_the_bound_is_read():
    assert json.dumps(parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)) == "[" * MAX_DEPTH + "]" * MAX_DEPTH


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, r"holds a YAML alias"),
        ("a: [" * 200, "nested deeper than 100 levels"),
        ("[" * 2000 + "]" * 2000, "nested deeper than 100 levels"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: 'open", "not valid YAML"),
    ],
)
def test_yaml_is_plain_values(tmp_path: Path, text: str, reason: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(tmp_path / "config.yaml")


def test_written_yaml_is_read_back(tmp_path: Path):
    value = {"name": "a: b", "rate": 1e-3, "prompts": ["x", "é 😀"], "none": None, "model": {"n_layers": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf8")
    assert read_yaml(tmp_path / "config.yaml") == value
