"""Memory of a CPU: what a process may still take, and what it keeps of what it frees."""

import ctypes
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGE = 30_000_000  # parameters


def keep_freed(parameters: int) -> None:
    """Let glibc keep what is freed, for a model of so many parameters. Each step frees the tensors of the one before
    and takes as much again. To give it to the kernel in between, which clears every page, took a tenth of a step.

    A large model is left alone: what is free lies in pieces that a batch of another length does not fit into, and 5 GB
    became 12 within 190 steps of 135M parameters. So is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and parameters < LARGE:
        mallopt(_TRIM_THRESHOLD, -1)  # never given back from the end of the heap
        mallopt(_MMAP_MAX, 0)  # nor put outside of it


def available() -> int:
    """Bytes that this process may still take: what the machine has free, and what the limits of its control groups
    (version 2; of a container or a Slurm job) leave of it."""
    found = psutil.virtual_memory().available
    leaf = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip())
    for limit in (group / "memory.max" for group in (leaf, *leaf.parents)):
        if limit.is_file() and (said := limit.read_text().strip()) != "max":
            found = min(found, int(said) - int(limit.with_name("memory.current").read_text()))
    return found
