"""Runs untrusted programs: in the embedded sandbox, which needs no service, or on Piston for scale.

A provider has one method, `run(program, stdin)`. It raises `SandboxUnavailable` for an outage, which is not the
program's fault.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rewards import retry
from rewards.settings import Count, Positive, Seconds, check

JAIL = Path(__file__).with_name("jail.py")
UNUSED_UID = 61_637


class SandboxUnavailable(RuntimeError):
    """The sandbox could not run the program. This says nothing about the program."""


class SandboxRefused(RuntimeError):
    """This machine or server can never run a program. The message names what is missing."""


@dataclass(frozen=True)
class Outcome:
    """What a program did. `stopped` is the limit that ended it, "time" or "output", or None."""

    stdout: str
    stderr: str
    exit_code: int
    stopped: str | None = None
    layers: tuple[str, ...] = ()


class Provider(Protocol):
    """Where programs run."""

    def run(self, program: str, stdin: str = "") -> Outcome:
        """Run a Python program until it ends or reaches a limit.

        Raises:
            SandboxUnavailable: The program could not be run now.
            SandboxRefused: This machine can never run it safely.
        """


@dataclass(frozen=True)
class LocalSandbox:
    """The embedded sandbox: Landlock, seccomp, resource limits, and namespaces if the kernel has them.

    Args:
        seconds: Wall-clock limit of a run. The CPU time limit is the next whole second.
        memory_mb: Limit of the address space in MB.
        output_bytes: Limit of the output in bytes.
    """

    seconds: Seconds = 6.0
    memory_mb: Positive = 512
    output_bytes: Positive = 1 << 20
    __post_init__ = check

    def run(self, program: str, stdin: str = "") -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
        try:
            return self._run(folder, program, stdin)
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox could not start: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path, program: str, stdin: str) -> Outcome:
        folder.chmod(0o755)
        scratch, source = folder / "scratch", folder / "main.py"
        scratch.mkdir()
        source.write_text(program, encoding="utf-8", errors="replace")
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        interpreter = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
        packages = sysconfig.get_path("purelib")
        readable = [str(source), sys.base_prefix, packages, "/usr/lib", "/usr/share/zoneinfo", "/lib", "/lib64"]
        readable += [interpreter, "/etc/ld.so.cache", "/etc/localtime", str(folder / "stdin")]  # as /dev/stdin too
        status_out, status_in = os.pipe()
        jail = {
            "status": status_in,
            "scratch": str(scratch),
            "uid": UNUSED_UID if os.getuid() == 0 and _open_to_all(interpreter, sys.base_prefix, folder) else None,
            "cpu_seconds": int(self.seconds) + 1,
            "memory_mb": self.memory_mb,
            "readable": readable,
            "command": [interpreter, "-s", "-B", str(source)],
            "environment": {
                "PATH": "/usr/bin:/bin",
                "HOME": str(scratch),
                "TMPDIR": str(scratch),
                "LANG": "C.UTF-8",
                "PYTHONPATH": packages,
                "PYTHONHASHSEED": "0",
                "PYTHONINTMAXSTRDIGITS": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        }
        try:
            with open(folder / "stdin", "rb") as file:
                process = subprocess.Popen(
                    [interpreter, "-I", "-S", str(JAIL), json.dumps(jail)],
                    stdin=file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={},
                    cwd="/",
                    pass_fds=(status_in,),
                    start_new_session=True,
                )
        finally:
            os.close(status_in)
        try:
            out, err, stopped = self._collect(process)
            report = os.read(status_out, 65_536).decode(errors="replace")
        finally:
            os.close(status_out)
            _end(process)
        state = json.loads(report) if report.endswith("\n") else {}
        if "missing" in state:
            raise SandboxRefused(
                f"this machine cannot isolate a program, because it lacks {state['missing']}. Use another machine, or "
                "a server: set `piston_url` of code_reward"
            )
        if "layers" not in state:
            raise SandboxUnavailable(f"the sandbox did not start: {state.get('error') or err[-500:] or 'no report'}")
        return Outcome(out, err, process.returncode, stopped, tuple(state["layers"]))

    def _collect(self, process: subprocess.Popen) -> tuple[str, str, str | None]:
        """(stdout, stderr, the limit that stopped it) of a process, once it has closed both or has to be ended."""
        deadline = time.monotonic() + self.seconds
        kept: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
        stopped = None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, "out")
            selector.register(process.stderr, selectors.EVENT_READ, "err")
            while selector.get_map() and stopped is None:
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    chunk = os.read(key.fd, 65_536)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    kept[key.data] += chunk
                    if len(kept[key.data]) > self.output_bytes:
                        stopped = "output"
                if time.monotonic() >= deadline:
                    stopped = stopped or "time"
        if stopped is None:
            try:
                process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                stopped = "time"
        out, err = (bytes(kept[name][: self.output_bytes]).decode("utf-8", "replace") for name in ("out", "err"))
        return out, err, stopped


def _end(process: subprocess.Popen) -> None:
    """Kill the process group of a run. Its pid 1 takes everything in its namespace with it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _open_to_all(*paths: str | Path) -> bool:
    """Whether all users may enter the folders of these paths."""
    return all(parent.stat().st_mode & 0o001 for path in paths for parent in (Path(path), *Path(path).parents))


@dataclass(frozen=True)
class PistonSandbox:
    """Runs programs on a Piston server (https://github.com/engineer-man/piston), for scale.

    The server's limits have to be raised first. Its defaults, PISTON_RUN_TIMEOUT and PISTON_RUN_CPU_TIME of 3,000 ms
    and a PISTON_OUTPUT_MAX_SIZE of 1,024 characters, kill correct programs.

    Args:
        url: URL of the server, such as "http://localhost:2000".
        seconds, memory_mb: Wall-clock and memory limits of a run. The server refuses values above its own limits.
        retries: Number of further attempts, after about 1, 2, 4 ... seconds, if the server does not answer or is busy.
    """

    url: str
    seconds: Seconds = 6.0
    memory_mb: Positive = 512
    version: str = "3.x"
    retries: Count = 3
    __post_init__ = check

    def run(self, program: str, stdin: str = "") -> Outcome:
        import httpx

        # A lone surrogate cannot be sent. That is the program's fault, not an outage.
        program, stdin = (text.encode("utf-8", "replace").decode() for text in (program, stdin))
        request = {
            "language": "python",
            "version": self.version,
            "files": [{"name": "main.py", "content": program}],
            "stdin": stdin,
            "run_timeout": int(self.seconds * 1000),
            "run_memory_limit": self.memory_mb << 20,
        }
        reason, asked = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(retry.wait_s(attempt, 1.0, min(asked, retry.LONGEST_S)))
            try:
                reply = httpx.post(f"{self.url.rstrip('/')}/api/v2/execute", json=request, timeout=self.seconds + 30)
                asked = retry.asked_s(reply.headers)
                if reply.status_code == 200 and (ran := reply.json()["run"]).get("status") != "XX":
                    killed = ran.get("signal") == "SIGKILL" or ran.get("status") in ("TO", "OL", "EL")
                    stopped = ("output" if ran.get("status") in ("OL", "EL") else "time") if killed else None
                    code = ran["code"] if ran.get("code") is not None else -1
                    return Outcome(ran["stdout"], ran["stderr"], code, stopped, ("piston",))
                reason = f"{reply.status_code} {reply.text[:200]}"
                if reply.status_code == 413 and len(program) > len(stdin):
                    return Outcome("", "the program is too large for the server", -1, "output", ("piston",))
                if reply.status_code >= 400 and not retry.is_passing(reply.status_code):
                    raise SandboxRefused(f"the Piston server at {self.url} refuses such a request: {reason}")
            except (httpx.HTTPError, ValueError, KeyError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise SandboxUnavailable(f"the Piston server at {self.url} did not run the program: {reason}")
