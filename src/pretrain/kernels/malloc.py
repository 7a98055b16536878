"""Keep freed memory in the process, so that the tensors of each step reuse that of the step before."""

import ctypes
import os
import sys

# of the C library's allocator, https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
REUSE = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_MAX_": "0"}  # give nothing back; map nothing apart


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have this process, and those that it starts, keep freed memory instead of giving it back to Linux.

    Large tensors are otherwise mapped anew and returned each time, and new pages are slower to fill than old ones.
    Nothing is changed where the environment says how memory is to be had, and where the C library is not GNU's.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(_M_TRIM_THRESHOLD, -1)  # none: the number does not fit
    library.mallopt(_M_MMAP_MAX, 0)
    os.environ.update(REUSE)
