"""What the C library does with memory that PyTorch frees on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep memory that is freed for what is allocated next, for training on a CPU.

    glibc otherwise gets every tensor of more than 32 MB, as the gradients of stacked experts are, from the system and
    returns it at once, and the system clears each of its pages anew in every update.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
