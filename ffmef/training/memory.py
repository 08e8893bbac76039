"""Hands memory that training has freed back to the system at once."""

from __future__ import annotations

import ctypes

LARGE = 4 << 20  # bytes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def return_large_blocks() -> bool:
    """Make glibc map each block of 4 MiB or more separately; return whether this system has such a setting.

    Otherwise glibc keeps freed maps of a picture in the heap, where smaller blocks fragment them: the process grows to
    several times the memory in use. Separate mappings are returned when freed, but every new one must be cleared, which
    takes time. The setting holds for the whole process and cannot be undone.

    Example:
        >>> return_large_blocks() in (True, False)
        True
    """
    try:
        return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE) == 1
    except (AttributeError, OSError, TypeError):  # another system, or another C library
        return False
