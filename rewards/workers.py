"""Worker processes that are killed at their time limit, replaced and counted.

A thread cannot be stopped, `signal.alarm` works only in the main thread and cannot interrupt a long C call, and
`concurrent.futures` cannot end one of its workers. So each worker is a separate process. It is not forked from this
process, because forks do not go well with CUDA and threads. It receives lines of JSON, and its parent kills it when a
task is late. A worker whose parent is gone ends at the end of its input, or at a CPU time limit that the kernel
enforces.
"""

import atexit
import json
import logging
import os
import resource
import select
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
MAX_TASKS, MAX_RSS_MB, ADDRESS_SPACE_MB = 20_000, 400, 3_000


class WorkersUnavailable(RuntimeError):
    """No worker could be started. This says nothing about the task."""


class _Worker:
    def __init__(self, target: str) -> None:
        module, _, function = target.partition(":")
        program = f"from rewards.workers import serve; from {module} import {function}; serve({function})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # only the parent handles a Ctrl-C in the terminal
        )
        self.buffer = bytearray()
        self.tasks = 0
        self.task: int | None = None
        self.sent = time.monotonic()
        self.deadline = self.sent + START_SECONDS
        self.ready = False

    def send(self, number: int, task: Any, seconds: float) -> None:
        self.task, self.sent = number, time.monotonic()
        self.deadline = self.sent + seconds
        self.tasks += 1
        self.process.stdin.write(json.dumps([seconds, task]).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> list[Any] | None:
        """The complete lines of one read, or None if the worker has ended."""
        chunk = os.read(self.process.stdout.fileno(), 65_536)
        if not chunk:
            return None
        self.buffer += chunk
        *lines, rest = bytes(self.buffer).split(b"\n")
        self.buffer = bytearray(rest)
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                logger.debug("a worker died with a task in its pipe")


@dataclass
class WorkerPool:
    """Calls a function in worker processes, with a time limit for each call.

    Args:
        target: "package.module:function". The function has one argument. Argument and result are sent as JSON.
        workers: Number of processes, which start when they are first needed.
        seconds: Limit of a call. After one `map` has lost `patience` seconds to late calls, the limit of its remaining
            calls is a tenth of `seconds`, so a batch of hostile answers cannot stall a training step.
    """

    target: str
    workers: int = 2
    seconds: float = 3.0
    patience: float = 12.0
    killed: int = field(default=0, init=False)
    _pool: list[_Worker] = field(default_factory=list, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)
    _pid: int = field(default_factory=os.getpid, init=False, repr=False)

    def map(self, tasks: Sequence[Any]) -> list[tuple[bool, Any]]:
        """Return (whether it was in time, result) for every task, in order. Concurrent threads take turns."""
        if self._pid != os.getpid():  # a forked child must not use its parent's pipes
            self._pool, self._lock, self._pid = [], threading.Lock(), os.getpid()
        if not tasks:
            return []
        with self._lock:
            try:
                return self._map(tasks)
            except BaseException:  # its workers still have tasks, whose results the next call would take for its own
                self._close()
                raise

    def _map(self, tasks: Sequence[Any]) -> list[tuple[bool, Any]]:
        results: list[tuple[bool, Any]] = [(False, None)] * len(tasks)
        waiting = list(range(len(tasks)))[::-1]
        lost, failed_starts = 0.0, 0
        with selectors.DefaultSelector() as selector:
            for worker in self._pool:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            while waiting or any(worker.task is not None for worker in self._pool):
                while len(self._pool) < min(self.workers, len(waiting) + sum(w.task is not None for w in self._pool)):
                    worker = _Worker(self.target)
                    self._pool.append(worker)
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                for worker in self._pool:
                    if waiting and worker.ready and worker.task is None:
                        number = waiting.pop()
                        seconds = self.seconds if lost < self.patience else self.seconds / 10
                        try:
                            worker.send(number, tasks[number], seconds)
                        except OSError:  # the worker died between two tasks; the end of its output is handled below
                            waiting.append(number)
                            worker.task = None
                            break
                busy = [worker.deadline for worker in self._pool if worker.task is not None or not worker.ready]
                timeout = max(0.0, min(busy, default=time.monotonic()) - time.monotonic())
                over: list[_Worker] = []
                for key, _ in selector.select(timeout):
                    worker = key.data
                    replies = worker.receive()
                    if replies is None:
                        failed_starts += not worker.ready
                        over.append(worker)
                    for reply in replies or []:
                        if not worker.ready:
                            worker.ready = True
                        else:
                            results[worker.task] = (True, reply["result"])
                            worker.task = None
                            if worker.tasks >= MAX_TASKS or reply["rss_mb"] > MAX_RSS_MB:
                                over.append(worker)
                now = time.monotonic()
                for worker in [*self._pool]:
                    late = worker.deadline <= now and (worker.task is not None or not worker.ready)
                    if late or worker in over:
                        if worker.task is not None:
                            self.killed += 1
                            lost += now - worker.sent
                        failed_starts += late and not worker.ready
                        selector.unregister(worker.process.stdout)
                        self._pool.remove(worker)
                        worker.end()
                if failed_starts >= 3:
                    raise WorkersUnavailable(f"three workers for {self.target} ended before they were ready")
        return results

    def _close(self) -> None:
        for worker in self._pool:
            worker.end()
        self._pool = []

    def close(self) -> None:
        """End all workers; the next `map` starts new ones."""
        if self._pid == os.getpid():
            with self._lock:
                self._close()


_POOLS: dict[str, WorkerPool] = {}
_POOLS_LOCK = threading.Lock()


def pool(target: str, seconds: float = WorkerPool.seconds) -> WorkerPool:
    """The one pool that this process has for a function. Its workers end with the process."""
    with _POOLS_LOCK:
        if target not in _POOLS:
            _POOLS[target] = WorkerPool(target, seconds=seconds)
            atexit.register(_POOLS[target].close)
        return _POOLS[target]


def serve(function: Callable[[Any], Any]) -> None:
    """The loop of a worker: read a task and answer it until the input ends or the parent is gone."""
    parent = os.getppid()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MB << 20,) * 2)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    own = psutil.Process()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr, and not among the answers
    _answer(answers, "ready")
    while True:
        if not select.select([sys.stdin], [], [], 5.0)[0]:
            if os.getppid() != parent:
                return
            continue
        line = sys.stdin.buffer.readline()
        if not line:
            return
        seconds, task = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))
        try:
            result = function(task)
        except (MemoryError, RecursionError):
            result = None
        # The maximum of getrusage would include the memory of the parent, which here is a whole trainer.
        _answer(answers, {"result": result, "rss_mb": own.memory_info().rss >> 20})


def _answer(stream: Any, reply: Any) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()
