"""CPU memory: how much a process may still allocate, and whether it keeps freed memory."""

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
LARGE = 30_000_000  # parameters


def keep_freed(parameters: int) -> bool:
    """Let glibc keep freed memory, for a model with this many parameters; returns whether it does.

    Each step frees the tensors of the last one and allocates as much again. Returning that memory to the kernel, which
    clears every page, took 10% of a step.

    Nothing is changed for a large model or for another C library. With a large model, the free memory is in pieces into
    which a batch of another length does not fit: 5 GB became 12 within 190 steps of 135M parameters."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    keeps = mallopt is not None and parameters < LARGE
    if keeps:
        mallopt(_TRIM_THRESHOLD, -1)  # never return the end of the heap
        mallopt(_MMAP_MAX, 0)  # never allocate outside the heap
    return keeps


def give_back(done: int = 0) -> None:
    """Return the memory of freed tensors to the system, if `done` of them is a multiple of 32.

    The C library may allocate tensors in one heap, which fragments: each kept tensor fills the gap of a temporary one,
    so the next does not fit. Loading 112 MB took 1,570 MB in one of two runs. SFT of 135M parameters took 9.7 GB in
    140 steps, and 6.5 GB in 200 steps of the same size with a call of this function at each step.
    """
    libc = ctypes.CDLL(None)
    if done % 32 == 0 and hasattr(libc, "malloc_trim"):  # only in glibc
        libc.malloc_trim(0)


def peak() -> int:
    """The most resident bytes that this process had, or a larger child.

    Before it executes another program, a child has all of its parent's memory, and Linux counts that as its own in
    `ru_maxrss`. So this process asks for the peak of its program (VmHWM), and the two are not added up.
    """
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    if sys.platform == "darwin":
        return max(own, child)  # bytes there, and KiB on Linux
    program = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return max(int(program[1]), child) * 1024


def of_tree(root: psutil.Process) -> int:
    """Resident bytes of a process and all its descendants. Pages that they share are counted in each. A child that was
    just forked is left out: until it starts another program, its memory is that of its parent."""
    found: dict[int, tuple[int, int, int]] = {}
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has just ended
            memory = process.memory_info()
            found[process.pid] = process.ppid(), memory.rss, memory.vms
    return sum(rss for parent, rss, size in found.values() if parent not in found or found[parent][2] != size)


def available() -> int:
    """Bytes that this process may still allocate: the machine's free memory, or less if the limits of the process's
    control groups (version 2; set by containers and Slurm jobs) leave less."""
    found = psutil.virtual_memory().available
    leaf = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip())
    for limit in (group / "memory.max" for group in (leaf, *leaf.parents)):
        if limit.is_file() and (said := limit.read_text().strip()) != "max":
            found = min(found, int(said) - int(limit.with_name("memory.current").read_text()))
    return found
