"""How a process that runs for months asks the C library to give memory back.

glibc gives every thread a heap of its own, raises the size from which blocks are mapped singly to whatever was last
freed, and keeps freed memory at a heap's end. A worker decodes in one thread, computes in others, and now and then
reads a policy of megabytes or the ends of all its topics: what that leaves behind is never needed again, and looks like
a leak. So there are few heaps, and large blocks are always mapped, and so always returned; and after a great piece of
work what lies free between what is held goes back too.
"""

import ctypes
import sys

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
ARENAS = 2
LARGE = 131_072  # bytes; glibc's own value, which naming it keeps from rising


def give_back() -> bool:
    """Set this process's malloc so; return whether it could be, which it can where glibc is the C library."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {M_ARENA_MAX: ARENAS, M_MMAP_THRESHOLD: LARGE, M_TRIM_THRESHOLD: LARGE}
    taken = [library.mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)


def trim() -> None:
    """Give back now what lies free; takes milliseconds, in which other threads may have to wait for memory."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
