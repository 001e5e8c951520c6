"""Where a job's tasks run: on this machine, on a Slurm cluster or on Ray, by datatrove's executors.

A job is one pipeline or several, one after the other; each is a list of datatrove ``PipelineStep``s that every task
runs on its share of the rows. What a task writes must depend on its number and on the number of tasks only, and must
appear whole (``whole_file``); then workers, engines and kills change no byte. Finished tasks are skipped on a re-run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import psutil
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as datatrove_logger

log = logging.getLogger(__name__)
datatrove_logger.disable("datatrove.executor.local")  # its summaries; each task's own log is a file
POLL_S, GRACE_S = 1.0, 10.0


class EngineError(RuntimeError):
    """Tasks were left undone, or what they left is of no use. The message says which, why, and where to look."""


@dataclass(frozen=True)
class Executor:
    """``workers`` tasks run at a time; 0: one a core on this machine, all of them on a cluster. ``memory_gb`` is what a
    cluster reserves for a task; ``partition``, ``time`` and ``sbatch`` (further arguments of sbatch, as in
    {account: us}) are Slurm's. Ray is the cluster that RAY_ADDRESS names, else the one on this machine, else a new one.
    On a cluster the working directory must be on a file system that all nodes share."""

    kind: Literal["local", "ray", "slurm"] = "local"
    workers: int = 0
    memory_gb: float = 2.0
    partition: str = ""
    time: str = "10:00:00"
    sbatch: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "slurm" and not self.partition:
            raise ValueError("`executor: kind: slurm` needs the name of a partition; write `executor: partition: ...`")
        if self.workers < 0:
            raise ValueError(
                f"`executor: workers` is {self.workers}; write how many, or 0 for as many as there is room"
            )


def run(steps: list[PipelineStep], tasks: int, folder: Path, settings: Executor) -> None:
    """Runs the pipeline's unfinished tasks to their end; ``folder`` holds which are finished, and their logs.

    Raises EngineError when a task failed or its process was killed; the next run does only what is left.
    """
    where = {"pipeline": steps, "tasks": tasks, "logging_dir": str(folder.resolve())}
    if settings.kind == "local":
        executor = _Local(**where, workers=min(tasks, settings.workers or os.cpu_count() or 1))
    elif settings.kind == "ray":
        executor = RayPipelineExecutor(**where, workers=settings.workers or -1, mem_per_cpu_gb=settings.memory_gb)
        _connect_to_ray()
    else:
        executor = SlurmPipelineExecutor(
            **where,
            workers=settings.workers or -1,
            mem_per_cpu_gb=settings.memory_gb,
            partition=settings.partition,
            time=settings.time,
            job_name=f"{folder.parent.parent.name}-{folder.name}",
            qos="",
            sbatch_args=dict(settings.sbatch),
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        )
    cause = None
    try:
        with _killed_workers_are_noticed() if settings.kind == "local" else nullcontext():
            executor.run()
        if settings.kind == "slurm":
            _wait_for_slurm(executor)
    except (OSError, ValueError, RuntimeError) as error:
        cause = error
    undone = executor.get_incomplete_ranks()
    if undone:
        numbers = ", ".join(map(str, undone[:5])) + (", ..." if len(undone) > 5 else "")
        why = f": {cause}" if cause else ""
        raise EngineError(f"{len(undone)} of {tasks} tasks are undone ({numbers}){why}; see {folder}/logs") from cause
    if cause:
        raise cause


class _Local(LocalPipelineExecutor):
    """datatrove's, with nothing on the console but errors."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1):
        return super()._run_for_rank(rank, local_rank + 1, node_rank)


# A pool's manager, and by it the pool, would outlive a job that is killed with -9. Linux only; elsewhere they stay.
_running = threading.Event()


def _die_with_parent() -> None:
    if _running.is_set() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


os.register_at_fork(after_in_child=_die_with_parent)


@contextmanager
def _killed_workers_are_noticed() -> Iterator[None]:
    """A pool waits for ever for the task of a worker that was killed, as for want of memory: end this process then."""
    done = threading.Event()

    def watch() -> None:
        seen: dict[int, psutil.Process] = {}
        while not done.wait(POLL_S):
            for pid, process in seen.items():
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    if done.wait(GRACE_S):  # the pool was closing
                        return
                    log.error("error: worker %d was killed, for want of memory perhaps; the same command goes on", pid)
                    logging.shutdown()
                    os._exit(1)
            for process in psutil.Process().children(recursive=True):
                seen.setdefault(process.pid, process)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _running.set()
    try:
        yield
    finally:
        _running.clear()
        done.set()
        watcher.join()


def _connect_to_ray() -> None:
    try:
        import ray
    except ImportError:
        raise EngineError("`executor: kind: ray` needs Ray: pip install ray") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)


def _wait_for_slurm(executor: PipelineExecutor) -> None:
    """Until all tasks are done, or the job array has left the queue."""
    while executor.get_incomplete_ranks():
        queue = subprocess.run(["squeue", "--noheader", "--job", str(executor.job_id)], capture_output=True, text=True)
        if not queue.stdout.strip():
            return
        time.sleep(POLL_S)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which appears at ``path`` whole or not at all, whoever else writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Removes a folder so that a kill leaves either all of it or none of it at its place."""
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)
