"""Where a job's tasks run: on this machine, on a Slurm cluster or on Ray, by datatrove's executors.

A job runs one or more pipelines in turn. Each is a list of datatrove ``PipelineStep``s that every task runs on its
share of the rows. A task's output must depend only on its number and on the number of tasks, and must be written
atomically (``runs.whole_file``); then the result is the same, byte for byte, for any number of workers, any engine and
after any kill. Finished tasks are not run again.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from data_prep.runs import EngineError, commands, whole_file
from rewards.settings import Count, Range, check

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

log = logging.getLogger(__name__)
POLL_S = 2.0
ENDED = {  # sacct's states of a job that has ended
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Executor:
    """``workers`` tasks run at a time; 0: one per core on this machine, all of them on a cluster. A cluster reserves
    ``memory_gb`` and ``gpus`` for each task, which sees no other GPU. ``partition``, ``time`` and ``sbatch`` (further
    arguments of sbatch, as in {account: us}) are for Slurm. Ray uses the cluster that RAY_ADDRESS names, else the one
    on this machine, else a new one. The nodes of a cluster must share the file system of the working directory."""

    kind: Literal["local", "ray", "slurm"] = "local"
    workers: Count = 0
    memory_gb: Annotated[float, Range(0, open=True)] = 2.0
    gpus: Count = 0
    partition: str = ""
    time: str = "10:00:00"
    sbatch: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "executor: ")
        if self.kind == "slurm" and not self.partition:
            raise ValueError("`executor: kind: slurm` needs the name of a partition; write `executor: partition: ...`")


class Task(PipelineStep):
    """A pipeline of one function of (number of the task, number of tasks). It runs in the directory where the job was
    started, so that relative paths mean the same on every node."""

    type, name = "step", "work"

    def __init__(self, work: Callable[[int, int], object]):
        super().__init__()
        self.work, self.folder = work, Path.cwd()

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        os.chdir(self.folder)
        self.work(rank, world_size)
        yield from ()


def run(steps: list[PipelineStep], tasks: int, folder: Path, settings: Executor) -> None:
    """Run the pipeline's unfinished tasks; ``folder`` records which tasks are finished and holds their logs.

    Raises EngineError if a task failed or its process was killed; the next run does only the remaining tasks.
    """
    where = {"pipeline": steps, "tasks": tasks, "logging_dir": str(folder.resolve())}
    reserved = {"mem_per_cpu_gb": settings.memory_gb, "gpus_per_task": settings.gpus}
    if settings.kind == "local":
        executor = _Local(**where, workers=min(tasks, settings.workers or os.cpu_count() or 1))
    elif settings.kind == "ray":
        executor = RayPipelineExecutor(**where, **reserved, workers=settings.workers or -1)
        _connect_to_ray()
    else:
        executor = _Slurm(
            folder.resolve() / "slurm_job",
            **where,
            **reserved,
            workers=settings.workers or -1,
            partition=settings.partition,
            time=settings.time,
            job_name=f"{folder.parent.parent.name}-{folder.name}",
            qos="",
            sbatch_args=dict(settings.sbatch),
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        )
    cause = None
    try:
        executor.run()
    except (OSError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
        cause = error
    undone = executor.get_incomplete_ranks()
    if undone:
        numbers = ", ".join(map(str, undone[:5])) + (", ..." if len(undone) > 5 else "")
        why = f": {cause}" if cause else ""
        raise EngineError(
            f"{len(undone)} of {tasks} tasks did not finish ({numbers}){why}; see {folder}/logs"
        ) from cause
    if cause:
        raise cause


class _Local(LocalPipelineExecutor):
    """datatrove's executor on a pool that reports killed workers. With its own pool, it would wait for them forever."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            steps = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(steps)  # steps hold the counts of a task
                self._run_for_rank(rank)
            return
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context(self.start_method), initializer=_end_with_job
        ) as pool:
            try:
                list(commands.progress(pool.map(self._run_for_rank, ranks), "working", len(ranks), "task"))
            except BrokenProcessPool as error:
                why = "a worker was killed, perhaps because memory ran out; the same command resumes"
                raise EngineError(why) from error

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        logger.disable("datatrove.executor.base")  # it logs a traceback; the job reports the error in one sentence
        try:
            super()._run_for_rank(rank, local_rank + 1, node_rank)  # only errors on the console
        except Exception:
            with self.logging_dir.open(f"logs/task_{rank:05d}.log", "a") as file:
                traceback.print_exc(file=file)
            raise


def _end_with_job() -> None:
    """Make a worker end with its job; otherwise it would outlive a job that is killed with SIGKILL."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _connect_to_ray() -> None:
    try:
        import ray
    except ImportError:
        raise EngineError("`executor: kind: ray` needs Ray: pip install ray") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)


class _Slurm(SlurmPipelineExecutor):
    """datatrove's executor, extended to wait for its job array. Before it submits, it waits for an array of an earlier
    start. ``record`` holds the array's number for as long as the array may be in the queue."""

    def __init__(self, record: Path, **settings: object):
        super().__init__(**settings, job_id_retriever=functools.partial(_submitted, record))
        self.record = record

    def run(self) -> None:
        if "SLURM_ARRAY_TASK_ID" in os.environ:  # it was loaded on a node
            super().run()
            return
        self._wait()
        super().run()
        self._wait()

    def launch_merge_stats(self) -> None:
        """Do nothing: the merged file is unused, and after a failed task the merge would wait in the queue forever."""

    def _wait(self) -> None:
        """Wait until all tasks are done or the array has ended. One look at the queue may be wrong, so that two are
        needed, and 60 if sacct still reports the array as running."""
        if not self.record.is_file():
            return
        job = self.record.read_text(encoding="utf-8")
        log.info("waiting for Slurm's job %s", job)
        looks = 0
        while self.get_incomplete_ranks():
            left, accounted = _is_in_queue(job), _is_accounted_running(job)
            if left is None:
                left = accounted  # squeue failed, so ask sacct
            looks = looks + 1 if left is False else 0
            if looks >= (60 if accounted else 2):
                break
            time.sleep(POLL_S)
        self.record.unlink()


def _submitted(record: Path, said: str) -> str:
    """Read the job's number from the output of sbatch and record it at once."""
    found = re.search(
        r"^(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*$", said, re.M
    )  # sites may add their own lines
    if not found:
        raise EngineError(
            f"sbatch printed {said!r}, which names no job; look at `squeue --me` before you start this again"
        )
    with whole_file(record) as file:
        file.write(found[1].encode())
    return found[1]


def _is_in_queue(job: str) -> bool | None:
    """Whether squeue lists the job; None if squeue failed."""
    queue = subprocess.run(["squeue", "--noheader", "--job", job], capture_output=True, text=True)
    if queue.returncode and "Invalid job id" not in queue.stderr:  # its message for a job that ended minutes ago
        log.warning("squeue has failed and is called again: %s", queue.stderr.strip() or f"status {queue.returncode}")
        return None
    return bool(queue.stdout.strip())


def _is_accounted_running(job: str) -> bool | None:
    """Whether sacct reports the job as running; None if sacct is missing, failed or does not know the job."""
    if not shutil.which("sacct"):
        return None
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", job]
    found = subprocess.run(command, capture_output=True, text=True)
    states = [] if found.returncode else [line.split()[0] for line in found.stdout.splitlines() if line.strip()]
    return any(state not in ENDED for state in states) if states else None


def discard(folder: Path) -> None:
    """Remove a folder atomically: after a kill, it is either complete or gone."""
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)
