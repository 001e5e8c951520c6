"""What a process on a CPU keeps of the memory that it frees."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> None:
    """Let glibc keep what is freed. Each step frees the tensors of the one before and takes as much again. To give it
    to the kernel in between, which clears every page, took a tenth of a step. What is free but lies between tensors
    that live stays taken, too. Another C library is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # never given back from the end of the heap
        mallopt(_MMAP_MAX, 0)  # nor put outside of it
