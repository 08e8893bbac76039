"""Hands memory that training has freed back to the system at once."""

from __future__ import annotations

import ctypes

LARGE = 4 << 20  # bytes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def return_large_blocks() -> bool:
    """Make glibc map each block of 4 MiB or more separately; return whether this system has such a setting.

    By itself it keeps freed maps of a picture in the heap, where smaller blocks cut them up: the process grows to
    several
    times of what is in use. Own mappings are returned when they are freed, and cleared again for each new block,
    which takes time. It holds for the whole process and cannot be undone.

    Example:
        >>> return_large_blocks() in (True, False)
        True
    """
    try:
        return ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE) == 1
    except (AttributeError, OSError, TypeError):  # another system, or another C library
        return False
