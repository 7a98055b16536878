"""Freed memory is kept for reuse if the C library can and no environment variable objects."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

from pretrain.kernels.malloc import REUSE

FAULTS = """
import json, os, resource, sys
from pretrain.kernels.malloc import keep_freed_memory
keep_freed_memory()
bytearray(64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    bytearray(64 << 20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([faults, {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}]))
"""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs GNU's C library"
)


def faults(**environment: str) -> tuple[int, dict[str, str]]:
    """Return how many pages a process asks for to have 512 MiB, 64 at a time, and the MALLOC_ words it ends with."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    typed = [sys.executable, "-c", FAULTS]
    done = subprocess.run(typed, env=bare | environment, capture_output=True, text=True, check=True)
    found, words = json.loads(done.stdout)
    return found, words


def test_pages_are_asked_for_once() -> None:
    kept, words = faults()
    assert words == REUSE  # for the processes that this one starts
    assert kept < 1000
    assert faults(**REUSE)[0] < 1000


def test_what_the_environment_says_is_left_alone() -> None:
    given = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    anew, words = faults(**given)
    assert words == given
    assert anew > 100_000  # 4 KiB each
