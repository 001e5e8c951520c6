"""Where a job's tasks run: on this machine, on a Slurm cluster or on Ray, by datatrove's executors.

A job is one pipeline or several, one after the other; each is a list of datatrove ``PipelineStep``s that every task
runs on its share of the rows. What a task writes must depend on its number and on the number of tasks only, and must
appear whole (``runs.whole_file``); then workers, engines and kills change no byte. Finished tasks are not run again.
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

from data_prep import commands
from data_prep.runs import EngineError, whole_file
from rewards.settings import Count, Range, check

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

log = logging.getLogger(__name__)
POLL_S = 2.0
ENDED = {  # what sacct calls a job that will not run on
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Executor:
    """``workers`` tasks run at a time; 0: one a core on this machine, all of them on a cluster. ``memory_gb`` and
    ``gpus`` are what a cluster reserves for a task, which sees no other GPU; ``partition``, ``time`` and ``sbatch``
    (further arguments of sbatch, as in {account: us}) are Slurm's. Ray is the cluster that RAY_ADDRESS names, else the
    one on this machine, else a new one. The nodes of a cluster must share the file system of the working directory."""

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
    """A pipeline of one function of (number of the task, number of tasks), in the directory where the job was started:
    relative paths mean the same on every node."""

    type, name = "step", "work"

    def __init__(self, work: Callable[[int, int], object]):
        super().__init__()
        self.work, self.folder = work, Path.cwd()

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        os.chdir(self.folder)
        self.work(rank, world_size)
        yield from ()


def run(steps: list[PipelineStep], tasks: int, folder: Path, settings: Executor) -> None:
    """Runs the pipeline's unfinished tasks to their end; ``folder`` holds which are finished, and their logs.

    Raises EngineError when a task failed or its process was killed; the next run does only what is left.
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
        raise EngineError(f"{len(undone)} of {tasks} tasks are undone ({numbers}){why}; see {folder}/logs") from cause
    if cause:
        raise cause


class _Local(LocalPipelineExecutor):
    """datatrove's, over a pool that says when a worker was killed: datatrove's own waits for its task for ever."""

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            steps = self.pipeline
            for rank in ranks:
                self.pipeline = deepcopy(steps)  # they hold counts of a task
                self._run_for_rank(rank)
            return
        with ProcessPoolExecutor(
            self.workers, multiprocessing.get_context(self.start_method), initializer=_end_with_job
        ) as pool:
            try:
                list(commands.progress(pool.map(self._run_for_rank, ranks), "working", len(ranks), "task"))
            except BrokenProcessPool as error:
                why = "a worker was killed, for want of memory perhaps; the same command goes on"
                raise EngineError(why) from error

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        logger.disable("datatrove.executor.base")  # a traceback on the console, where the job ends with one sentence
        try:
            super()._run_for_rank(rank, local_rank + 1, node_rank)  # only errors on the console
        except Exception:
            with self.logging_dir.open(f"logs/task_{rank:05d}.log", "a") as file:
                traceback.print_exc(file=file)
            raise


def _end_with_job() -> None:
    """Starts in a worker what ends it with its job: it would outlive one that is killed with -9."""

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
    """datatrove's, which waits for its array, and for one that an earlier start has submitted before it submits its
    own. ``record`` holds the array's number for as long as it may be in the queue."""

    def __init__(self, record: Path, **settings: object):
        super().__init__(**settings, job_id_retriever=functools.partial(_submitted, record))
        self.record = record

    def run(self) -> None:
        if "SLURM_ARRAY_TASK_ID" in os.environ:  # a node has loaded it
            super().run()
            return
        self._wait()
        super().run()
        self._wait()

    def launch_merge_stats(self) -> None:
        """Nobody reads its file; and after a failed task it would wait in the queue for ever."""

    def _wait(self) -> None:
        """Until all tasks are done, or the array has ended. One look may be mistaken, so that two are needed, and far
        more where sacct has it running still."""
        if not self.record.is_file():
            return
        job = self.record.read_text(encoding="utf-8")
        log.info("waiting for Slurm's job %s", job)
        looks = 0
        while self.get_incomplete_ranks():
            left, accounted = _is_in_queue(job), _is_accounted_running(job)
            if left is None:
                left = accounted  # squeue has failed; sacct may know
            looks = looks + 1 if left is False else 0
            if looks >= (60 if accounted else 2):
                break
            time.sleep(POLL_S)
        self.record.unlink()


def _submitted(record: Path, said: str) -> str:
    """The number of the job that sbatch has just submitted. It is recorded at once."""
    found = re.search(
        r"^(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*$", said, re.M
    )  # among a site's words
    if not found:
        raise EngineError(
            f"sbatch said {said!r}, which names no job; look at `squeue --me` before you start this again"
        )
    with whole_file(record) as file:
        file.write(found[1].encode())
    return found[1]


def _is_in_queue(job: str) -> bool | None:
    """What squeue says; None where it has failed."""
    queue = subprocess.run(["squeue", "--noheader", "--job", job], capture_output=True, text=True)
    if queue.returncode and "Invalid job id" not in queue.stderr:  # so it calls a job that ended minutes ago
        log.warning("squeue has failed, and is asked again: %s", queue.stderr.strip() or f"status {queue.returncode}")
        return None
    return bool(queue.stdout.strip())


def _is_accounted_running(job: str) -> bool | None:
    """What sacct says; None where there is none, or it has failed, or knows nothing."""
    if not shutil.which("sacct"):
        return None
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format", "State", "--jobs", job]
    found = subprocess.run(command, capture_output=True, text=True)
    states = [] if found.returncode else [line.split()[0] for line in found.stdout.splitlines() if line.strip()]
    return any(state not in ENDED for state in states) if states else None


def discard(folder: Path) -> None:
    """Removes a folder so that a kill leaves either all of it or none of it at its place."""
    if folder.exists():
        trash = folder.with_name(f".{folder.name}.trash")
        shutil.rmtree(trash, ignore_errors=True)
        folder.rename(trash)
        shutil.rmtree(trash)
