"""What is freed on a CPU is taken again without a page fault, and what processes hold is counted once."""

import subprocess
import sys

COUNT = """
import resource, sys
from data_prep.runs import memory
if sys.argv[1] != "given back":
    memory.keep_freed(10**9 if sys.argv[1] == "large" else 10**6)
bytearray(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_freed_is_taken_again_without_asking_the_kernel():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True).stdout)

    assert min(faults("given back"), faults("large")) > 50 * max(faults("kept"), 1)


FORKED = """
import os, time
import psutil
from data_prep.runs import memory
held = b"1" * 2**29
alone = memory.of_tree(psutil.Process())
child = os.fork() or time.sleep(60)
print(alone, memory.of_tree(psutil.Process()), psutil.Process(child).memory_info().rss)
os.kill(child, 9)
"""


def test_a_child_that_is_its_parents_copy_is_not_counted():
    said = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, check=True).stdout
    alone, together, copy = map(int, said.split())
    assert copy > 2**29 and together < 1.1 * alone
