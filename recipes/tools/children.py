"""Starts the steps of the pipeline, each in its own process group, which ends together with the pipeline.

Everything that the step started ends too, because `accelerate launch` gives each of several processes its own session.

A step that is one process on a CPU is forked from a process that has already imported the libraries, with the arguments
and environment of `accelerate launch`. This saves the ten seconds of that import in each of 28 steps; accelerate's
public ways to launch a script all start a new interpreter. The step runs this project's code as it is on disk at its
start. Any other step runs its command as a child of such a fork.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from functools import partial
from multiprocessing import reduction
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil

LIBRARIES = (
    "data_prep",  # first, because it silences some of the others; a step imports it again
    "torch",
    "datasets",
    "peft",
    "accelerate.commands.launch",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "trl.trainer.reward_trainer",
)
OURS = ("recipes", "data_prep", "rewards")
LOG_TAIL, LOG_WIDTH = 20, 240  # lines, characters
_server = multiprocessing.get_context("forkserver")


def hold_libraries() -> None:
    """Make later calls of `start` fork a process with the libraries. The first start takes the time of their import."""
    _server.set_forkserver_preload(list(LIBRARIES))


def start(command: tuple[str, ...], log: Path, environment: dict[str, str], lock: int | None = None):
    """Start `accelerate launch ...` or `python -m ...` with its output in `log`, which is overwritten. The child holds
    the file descriptor `lock` as long as it lives. -> its multiprocessing.Process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"$ {shlex.join(command)}\n", encoding="utf-8")
    process = _server.Process(target=_work, args=(command, log, environment, lock and _Descriptor(lock)))
    process.start()
    return process


def end_of(log: str) -> str:
    """The last lines of a log's text, for an error message."""
    return "".join(f"  {line[:LOG_WIDTH]}\n" for line in log.splitlines()[-LOG_TAIL:])


def end(process: ForkServerProcess) -> None:
    """Kill the remaining processes of a child and of everything that it started."""
    _kill_descendants(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # a new process may have no group yet
    process.join()


def _kill_descendants(pid: int) -> None:
    """The direct child is the last: as soon as it ends, `_work` ends this process and its threads."""
    with contextlib.suppress(psutil.Error):
        for process in reversed(psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                process.kill()


class _Descriptor:
    """A file descriptor that is passed to the child."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self):
        return _detach, (reduction.DupFd(self.number),)


def _detach(sent) -> int:
    return sent.detach()


def _work(command: tuple[str, ...], log: Path, environment: dict[str, str], lock: int | None) -> None:
    """The main function of the child."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    threading.Thread(target=_end_with_pipeline, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if "torch" in sys.modules and (run := _here(command)):
        try:
            run()
        finally:
            atexit._run_exitfuncs()  # multiprocessing's children skip this before Python 3.13
    else:
        raise SystemExit(subprocess.run(command, stdin=subprocess.DEVNULL).returncode)


def _end_with_pipeline() -> None:
    multiprocessing.parent_process().join()
    _kill_descendants(os.getpid())
    os.killpg(0, signal.SIGKILL)


def _here(command: tuple[str, ...]) -> partial | None:
    """A callable that runs the command in this process like a new interpreter; None if it is not one CPU process."""
    if command[0] == "accelerate":
        from accelerate.commands import launch
        from accelerate.utils.launch import prepare_simple_launcher_cmd_env

        args, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(command[2:]))
        if not args.use_cpu or args.num_processes > 1:
            return None
        (_, *sys.argv), environment = prepare_simple_launcher_cmd_env(args)
        os.environ.update(environment)
        sys.path[0] = str(Path(sys.argv[0]).absolute().parent)
        run = partial(runpy.run_path, sys.argv[0], run_name="__main__")
    elif command[0] == "python":  # with -m
        sys.argv = list(command[2:])
        run = partial(runpy.run_module, sys.argv[0], run_name="__main__", alter_sys=True)
    else:  # a server
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]  # the pipeline's modules, including this one
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    return run
