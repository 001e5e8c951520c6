"""What is freed on a CPU is taken again without a page fault, and is held."""

import subprocess
import sys

COUNT = """
import resource, sys
from data_prep import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
bytearray(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_what_is_freed_is_taken_again_without_asking_the_kernel():
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True).stdout)

    assert faults("given back") > 50 * max(faults("kept"), 1)


HELD = """
import psutil
from data_prep import memory
memory.keep_freed()
kept, taken = memory.Kept(), lambda: psutil.Process().memory_info().rss
kept.hold()
pieces = [bytearray(500_000) for _ in range(800)]
del pieces[::2]  # lie between what lives
full = taken()
del pieces[:-1]
before = taken()
kept.hold()
print(full, before, taken())
"""


def test_what_is_kept_is_given_back_once_it_is_a_quarter_more_than_after_the_first_step():
    said = subprocess.run([sys.executable, "-c", HELD], capture_output=True, check=True).stdout.split()
    full, before, after = map(int, said)
    assert before > 0.95 * full and after < before - 300_000_000
