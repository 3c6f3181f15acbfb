"""Makes the C library return freed memory to the system, for processes that run for months.

glibc gives every thread its own heap, raises the size from which blocks are mapped individually to whatever was last
freed, and keeps freed memory at a heap's end. A worker decodes in one thread, computes in others, and occasionally
reads a policy of megabytes or the ends of all its topics: the memory that this leaves behind looks like a leak. So the
number of heaps is limited, large blocks are always mapped and therefore always returned, and `trim` returns free pages
between used ones after a large task.
"""

import ctypes
import sys

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
ARENAS = 2
LARGE = 131_072  # bytes; glibc's default, which no longer rises once it is set


def limit_heaps() -> bool:
    """Configure malloc of this process; return whether that is possible, which requires glibc."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {M_ARENA_MAX: ARENAS, M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: LARGE}
    taken = [library.mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)


def trim() -> None:
    """Return free memory to the system; takes milliseconds, in which other threads may wait for memory."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
