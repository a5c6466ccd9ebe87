"""How this process gets memory from the system."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
NEVER = -1


def keep_freed_memory() -> None:
    """Tells the allocator to keep what is freed, for tensors that come and go thousands of times.

    By default glibc maps every large block anew and gives it back, and each time the kernel has to
    clear its pages. Does nothing where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
