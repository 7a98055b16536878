"""What becomes of freed memory: steps of a training reuse it, tasks of a curation give it back."""

import ctypes
import os
import sys

# parameters of glibc's malloc, https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
REUSE = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_MAX_": "0"}  # never trim the heap; never use mmap
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Set malloc, in this process and its children, to keep freed memory instead of returning it to Linux.

    By default each large tensor is mapped anew, and new pages are slower to fill than reused ones. Does nothing if the
    environment configures an allocator or the C library is not glibc.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return
    library = _glibc()
    if library is None:
        return
    library.mallopt(_M_TRIM_THRESHOLD, -1)  # no limit: 1 << 34 does not fit its int
    library.mallopt(_M_MMAP_MAX, 0)
    os.environ.update(REUSE)


def return_freed_memory() -> None:
    """Give the memory that was freed back to Linux. Does nothing if the C library is not glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
