"""Runs one command for as long as somebody holds the other end of its standard input, and not a moment longer.

The pipeline starts each stage as `python guard.py COMMAND...`, in a process group of its own, with a pipe as standard
input. When the pipeline dies, by kill -9 too, the pipe closes and the whole group is killed: accelerate's launcher, the
stage under it, and whatever that started. So nobody goes on writing into a folder that the next call takes over.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the pipe closes
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode)
