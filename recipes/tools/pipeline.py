"""Runs the stages of DeepSeek-R1 in order: `python -m recipes.tools.pipeline --scale cpu`.

Each stage is launched by the command that a user would type, so any step can be copied from `--dry-run`; on a CPU it
needs no new interpreter (`children.py`). The YAMLs determine the dependencies: a value that starts with `outputs/`
names a run that must come first. Runs that are finished with the current settings and inputs are skipped, so a second
call does nothing and a killed one resumes. If the settings or inputs of a finished run have changed, the pipeline
reports the changes and stops, and the run is kept. `--redo` moves such runs, and those made from them, to
`outputs/<scale>/replaced/` and runs them again.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep import runs
from data_prep.runs import commands, files, memory
from recipes.tools import children, report, servers
from recipes.tools.steps import Step, dependents, is_pushed, load_steps, missing_inputs, require_names, scale_folder
from recipes.tools.view import View

import psutil

# Two steps with one thread each do more than one step with two, which is 1.5 times as fast as with one. So only a step
# that all others wait for sets `threads: 2`. More threads than cores are the slowest, because waiting threads spin.
CPU_JOBS = 2
FREE_DISK_GB = 2.0  # the scale `cpu` writes less than 1 GB


class PipelineError(runs.Stopped):
    """The pipeline cannot start or continue. The message says why and what to do."""


def preflight(steps: list[Step], todo: list[Step], scale_dir: Path) -> None:
    """Check before any work for missing inputs, a full disk and YAMLs that their stages refuse. Raises
    runs.ConfigError, and PipelineError for the disk."""
    for step in todo:
        for service in step.services:
            service.is_there()  # raises if its address is taken
        for fault in missing_inputs(step, steps, todo):
            raise runs.ConfigError(fault)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < FREE_DISK_GB:
        raise PipelineError(f"{Path.cwd()} has {free:.1f} GB free, and {FREE_DISK_GB:.0f} GB are needed: make room")
    require_readable(todo, scale_dir / "logs" / "check.log")


def require_readable(steps: list[Step], log: Path, *words: str) -> None:
    """Raises runs.ConfigError for a YAML that its stage or job refuses. `words` are for `recipes.tools.check`."""
    plain = [step for step in steps if not step.evaluates]  # evaluations were read when the steps were listed
    for override in {step.override for step in plain}:
        pairs = [word for step in plain if step.override == override for word in (step.target, str(step.config))]
        more = (*words, "--override", str(override)) if override else words
        process = children.start(("python", "-m", "recipes.tools.check", *pairs, *more), log, child_environment(None))
        process.join()
        if process.exitcode:
            raise runs.ConfigError(log.read_text(encoding="utf-8").strip().rpartition("error: ")[2])


class Child:
    """A running step: the documented command, with its output in the step's log."""

    def __init__(self, step: Step, environment: dict[str, str], lock: int):
        self.step = step
        self.started = time.monotonic()
        # The scale stays locked until the child has ended too.
        self.process = children.start(step.command, step.log, environment, lock)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def require_success(self) -> None:
        """Raises PipelineError, with the end of the log, if the child ended without finishing its run."""
        code = self.process.exitcode
        if code:
            wrong = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        elif (found := self.step.look()).kind != "done":
            said = "; ".join(found.why) or "it has no run.json"
            wrong = f"ended, but {self.step.output_dir} does not hold its finished run ({said})"
        else:
            return
        text = self.step.log.read_text(encoding="utf-8", errors="replace")
        raise PipelineError(
            f"{self.step.name} {wrong}. The end of {self.step.log}:\n{children.end_of(text)}To run it alone:\n"
            f"  {shlex.join(self.step.command)}\n"
            "What is finished stays, and so does what this step has saved: the same command resumes from there."
        )


class Session:
    """Writes this call's wall seconds and peak memory to outputs/<scale>/report/sessions.json, which the report sums.

    A call that finds nothing done starts a new list. So the sum is the time of one whole run, even if it was cut off
    several times. For the same reason the file is updated while the call runs.
    """

    def __init__(self, scale_dir: Path, afresh: bool):
        self.path = scale_dir / "report" / "sessions.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = not afresh and self.path.exists()
        self.before = json.loads(self.path.read_text(encoding="utf-8")) if known else []
        self.started = time.monotonic()
        self.measured = 0.0
        self.peak_rss = 0

    def measure(self) -> None:
        """Measure the resident memory of the pipeline and its descendants once a second. Shared pages count in each."""
        seconds = time.monotonic() - self.started
        if seconds - self.measured < 1:
            return
        self.measured = seconds
        self.peak_rss = max(self.peak_rss, memory.of_tree(psutil.Process()))
        self.save()

    def save(self) -> None:
        seconds, peak = time.monotonic() - self.started, self.peak_rss / 2**30
        content = [*self.before, {"seconds": round(seconds, 1), "peak_rss_gb": round(peak, 3)}]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def work(
    todo: list[Step],
    jobs: int,
    view: View,
    session: Session,
    on_cpu: bool,
    lock: int,
    server_timeout: float = servers.START_LIMIT,
) -> None:
    """Run each step after the ones it needs, in parallel up to `jobs` threads. A server runs while a running step needs
    it. Raises PipelineError for the first step that fails and ServeError for a server. No child outlives the call."""
    waiting, running = list(todo), []
    unfinished = {step.output_dir for step in todo}
    # This is computed once, because the folder of a run that just starts looks as if there were no run.
    needs = {step.output_dir: step.needs for step in todo}
    with servers.Servers(child_environment(None), server_timeout, view.say) as up:
        try:
            while waiting or running:
                for step in [step for step in waiting if unfinished.isdisjoint(needs[step.output_dir])]:
                    if running and sum(child.step.threads for child in running) + step.threads > jobs:
                        break  # later steps must not overtake a step that needs two threads
                    waiting.remove(step)
                    up.keep([*step.services, *(one for child in running for one in child.step.services)])
                    up.require(step.services, step.log.parent)
                    running.append(Child(step, child_environment(step.threads if on_cpu else None), lock))
                    view.started(step)
                time.sleep(0.2)
                session.measure()
                up.check()
                for child in [child for child in running if child.process.exitcode is not None]:
                    children.end(child.process)
                    running.remove(child)
                    child.require_success()
                    unfinished.discard(child.step.output_dir)
                    view.finished(child.step, child.seconds)
                view.update([(child.step, child.seconds) for child in running])
        finally:
            for child in running:
                children.end(child.process)
            session.save()


def child_environment(threads: int | None) -> dict[str, str]:
    """The environment of a child, in which `python` and `accelerate` are those beside this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    more = {"PATH": path, "PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return os.environ | more


@contextlib.contextmanager
def locked(scale_dir: Path) -> Iterator[int]:
    """Locks outputs/<scale> for this pipeline and yields the lock's file descriptor. Raises PipelineError if locked."""
    scale_dir.mkdir(parents=True, exist_ok=True)
    with (scale_dir / ".lock").open("a+") as file:
        for _ in range(50):  # the children of a pipeline that was just killed need a moment to end
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            file.seek(0)
            raise PipelineError(f"another pipeline is at work in {scale_dir}: {file.read()}; wait for it or end it")
        file.truncate(0)
        file.write(files.who())
        file.flush()
        yield file.fileno()


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = commands.parser("recipes.tools.pipeline", __doc__)
    parser.add_argument("--scale", default="cpu", help="a name in recipes/configs, or a path to a folder of YAMLs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the steps to run, and stop")
    aside = "and all that was made from it again; the old runs are moved aside"
    parser.add_argument("--from", dest="start", metavar="STEP", help=f"run STEP {aside}")
    parser.add_argument("--redo", action="store_true", help=f"run what has changed {aside}")
    parser.add_argument("--redo-code", action="store_true", help=f"run what older code made {aside}")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="run only these steps")
    parser.add_argument("--seed", type=int, help="use this seed instead of those in the YAMLs")
    parser.add_argument(
        "--jobs", type=int, help=f"run steps with this many threads at once ({CPU_JOBS} at the CPU scales, else 1)"
    )
    parser.add_argument(
        "--server-timeout",
        type=float,
        metavar="SECONDS",
        default=servers.START_LIMIT,
        help=f"how long a model that a YAML says to `serve` may take to answer (default {servers.START_LIMIT:.0f})",
    )
    parser.add_argument("--accelerate-config", type=Path, metavar="FILE", help="use this file for every stage")
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    return parser.parse_args(argv)


@dataclass
class Choice:
    """The plan of this call. `done`: steps to keep. `todo`: steps to run, in order. `refused`: finished runs that no
    longer match, with the differences. `older`: steps in `done` that older code made, with its version."""

    done: list[Step] = field(default_factory=list)
    todo: list[Step] = field(default_factory=list)
    refused: list[tuple[Step, runs.State]] = field(default_factory=list)
    older: dict[str, str] = field(default_factory=dict)


def choose(steps: list[Step], chosen: list[Step], again: set[str], redo: bool, redo_code: bool) -> Choice:
    """Check the folder of each chosen step. `again`: names of steps to run again in any case. `redo`: also changed
    runs. `redo_code`: also runs made by older code, and those made from them."""
    found, made = Choice(), set()
    for step in [step for step in steps if step in chosen]:
        inputs = [need for need in step.needs if need in made]
        finished = (step.output_dir / "run.json").exists()
        try:
            state = runs.State("absent") if inputs else step.look()
        except runs.MissingRunError:
            state = runs.State("absent")
        if inputs and finished:
            state = runs.State("changed", (f"{' and '.join(map(str, inputs))} will be made anew",))
        changed = state.kind in ("changed", "incomplete")
        anew = step.name in again or (redo and changed) or (redo_code and (state.older_code or (inputs and changed)))
        if changed and not anew:
            found.refused.append((step, state))
        elif state.kind == "done" and not anew:
            (found.done if is_pushed(step) else found.todo).append(step)
            found.older |= {step.name: state.older_code} if state.older_code else {}
        else:
            made.add(step.output_dir)
            told = (*step.command, "--redo") if finished or changed else step.command
            found.todo.append(replace(step, command=told))
    return found


def refusal(steps: list[Step], refused: list[tuple[Step, runs.State]]) -> str:
    """Why nothing was started, and the two ways to continue."""
    said = " ".join(f"{step.output_dir} no longer fits: {'; '.join(state.why)}." for step, state in refused)
    names = [step.name for step, _ in refused]
    follow = [later for name in names for later in dependents(steps, name) if (later.output_dir / "run.json").exists()]
    made = [name for name in dict.fromkeys(step.name for step in follow) if name not in names]
    more = f", and what was made from it ({', '.join(made)})," if made else ""
    scale_dir = steps[0].output_dir.parent
    return (
        f"{said} Nothing was started, and nothing was changed. Either add `--redo` (`make r1 ARGS=--redo`), which "
        f"moves {', '.join(names)}{more} to {scale_dir / runs.REPLACED}/ and runs it anew "
        f"(`python -m recipes.tools.runs {scale_dir}` lists all runs, and its `--remove` deletes a replaced one); or "
        "write another output_dir."
    )


def print_commands(chosen: list[Step], choice: Choice) -> None:
    """Print each chosen step's command, with those that start and stop its servers, or a remark if it will not run."""
    lines = {step.name: shlex.join(step.command) for step in choice.todo}
    remarks = {step.name: f"# done: {step.name}" for step in choice.done}
    remarks |= {step.name: f"# changed: {step.name}: {'; '.join(state.why)}" for step, state in choice.refused}
    up: list[servers.Service] = []
    for step in chosen:
        if step.name in lines:
            needed = step.services
            for service in up:
                if service not in needed:
                    print(service.stop_script)
            for service in needed:
                if service not in up:
                    print(service.script)
            up = needed
        print(lines.get(step.name) or remarks[step.name])
    for service in up:
        print(service.stop_script)


def run(arguments: argparse.Namespace) -> None:
    """Raises PipelineError, runs.ConfigError or runs.MissingRunError with the reason."""
    folder = scale_folder(arguments.scale)
    steps = load_steps(folder, arguments.seed, arguments.accelerate_config, arguments.override)
    require_names(steps, [*(arguments.only or []), *([arguments.start] if arguments.start else [])])
    again = {step.name for step in dependents(steps, arguments.start)} if arguments.start else set()
    chosen = [step for step in steps if not arguments.only or step.name in arguments.only]
    choice = choose(steps, chosen, again, arguments.redo, arguments.redo_code)
    if arguments.debug:
        choice.todo = [replace(step, command=(*step.command, "--debug")) for step in choice.todo]
    if arguments.dry_run:
        if arguments.override:
            with tempfile.TemporaryDirectory() as logs:
                changed = [step for step in choice.todo if step.override]
                require_readable(changed, Path(logs) / "check.log", "--elsewhere")
        print_commands(chosen, choice)
        return
    if choice.refused:
        raise runs.ConfigError(refusal(steps, choice.refused))
    with locked(steps[0].output_dir.parent) as lock:
        if choice.todo:
            execute(steps, chosen, choice, lock, arguments.jobs, arguments.server_timeout)
        else:
            print(f"nothing to do: {len(chosen)} steps are done")
        conclude(steps, choice)


def execute(
    steps: list[Step], chosen: list[Step], choice: Choice, lock: int, jobs: int | None, server_timeout: float
) -> None:
    """Run the steps to do, after the checks that need no work. Raises the errors of `preflight` and `work`."""
    scale_dir, done = steps[0].output_dir.parent, {step.name for step in choice.done}
    on_cpu = all(step.settings.get("use_cpu") for step in steps if step.trains)
    if on_cpu and any(step.trains or step.evaluates for step in choice.todo):
        children.hold_libraries()
    preflight(steps, choice.todo, scale_dir)
    session = Session(scale_dir, afresh=not done)
    with View(chosen, done) as view:
        work(choice.todo, jobs or (CPU_JOBS if on_cpu else 1), view, session, on_cpu, lock, server_timeout)


def conclude(steps: list[Step], choice: Choice) -> None:
    """Name the runs that older code made, write the report, and name R1's folder."""
    if choice.older:
        made = ", ".join(f"{name} ({version})" for name, version in choice.older.items())
        print(f"{len(choice.older)} runs were made by older code, and stay: {made}")
        print("To run them and what was made from them again: make r1 ARGS=--redo-code")
    if any(step.evaluates for step in steps):
        report.main(["--scale", str(steps[0].output_dir.parent), "--configs", str(steps[0].config.parent)])
    for last in [step.output_dir for step in steps if step.name == "all_scenarios_rl"]:
        if (last / "run.json").exists():
            print(f"R1 is in {last}; the README.md there says how to prompt it. To push it:")
            print(f"python -m data_prep.push {last} --hub-model-id OWNER/NAME")


def main(argv: list[str]) -> None:
    run(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(commands.run(main))
