"""Runs the stages of DeepSeek-R1 in order: `python -m recipes.tools.pipeline --scale cpu`.

Each stage is launched by the very command that a person would type, so any step can be copied out of `--dry-run`. What
depends on what follows from the YAMLs: a value that starts with `outputs/` names the run that must come first. A run
whose `run.json` has the fingerprint of today's settings, code and inputs is done and is skipped; so a second call does
nothing, a killed one goes on, and a changed YAML redoes its stage and what depends on it.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data_prep import runs
from recipes.tools import evaluate, report
from recipes.tools.view import LiveView, PlainView

# (name of the YAML, script or module), in the paper's order. A scale that lacks the YAML lacks the stage: at the scales
# of real models there is no `base`, since that is a model on the Hub. Where two stages could run, the upper goes first.
STAGES = (
    ("world", "data_prep.world"),
    ("base", "recipes/base.py"),
    ("r1_zero", "recipes/r1_zero.py"),
    ("cold_start", "data_prep.cold_start"),
    ("cold_start_sft", "recipes/cold_start_sft.py"),
    ("reasoning_rl", "recipes/reasoning_rl.py"),
    ("rejection_sampling", "data_prep.rejection_sampling"),
    ("general", "data_prep.general"),
    ("mixture", "data_prep.mixture"),
    ("sft_stage_2", "recipes/sft_stage_2.py"),
    ("preferences", "data_prep.preferences"),
    ("reward_models", "recipes/reward_models.py"),
    ("all_scenarios_rl", "recipes/all_scenarios_rl.py"),
    ("distillation", "data_prep.distillation"),
    ("student_base", "recipes/base.py"),
    ("distill", "recipes/distill.py"),
    ("student_rl", "recipes/r1_zero.py"),
    ("reasoning_rl_no_language", "recipes/reasoning_rl.py"),
)
EVALUATE = "evaluate"  # its YAML stands for one step a checkpoint
CPU_SCALES = ("cpu", "tiny")
# On two cores two processes of one thread each do about twice the work of one process: at toy size a second thread in
# one process makes it slower, not faster.
CPU_JOBS = 2
FREE_DISK_GB = 2.0  # the scale `cpu` writes under 1 GB
GUARD = Path(__file__).with_name("guard.py")


@dataclass(frozen=True)
class Step:
    """One run of the pipeline: what starts it, what it depends on, where it writes."""

    name: str
    script: Path  # whose code counts in the fingerprint
    command: tuple[str, ...]
    settings: dict[str, Any]  # effective: YAML, then overrides
    output_dir: Path

    @property
    def needs(self) -> list[Path]:
        return runs.inputs(self.settings)

    @property
    def log(self) -> Path:
        """The child's output. Not in output_dir, which a stage empties when it begins afresh."""
        return self.output_dir.parent / "logs" / f"{self.name}.log"


class PipelineError(RuntimeError):
    """The pipeline cannot start or go on; the message says why and what to do."""


def load_steps(folder: Path, seed: int | None, accelerate_config: Path) -> list[Step]:
    """The steps that a folder of YAMLs asks for, each after what it depends on, else in the order of STAGES.

    Raises runs.ConfigError for a YAML that is no stage's, a missing or double `output_dir`, or a circle.
    """
    targets = dict(STAGES)
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise runs.ConfigError(f"{folder}: no such scale (a folder with a YAML a stage)")
    if strangers := found.keys() - targets.keys() - {EVALUATE}:
        names = ", ".join([*targets, EVALUATE])
        raise runs.ConfigError(f"{found[min(strangers)]}: no stage has this name; they are {names}")
    steps = []
    overrides = {} if seed is None else {"seed": seed}
    tail = () if seed is None else ("--seed", str(seed))
    for name, target in targets.items():
        if name not in found:
            continue
        path = found[name]
        settings = runs.load_config(path) | overrides
        if not str(settings.get("output_dir", "")).startswith(runs.OUTPUTS):
            raise runs.ConfigError(f"{path}: write `output_dir: {runs.OUTPUTS}{folder.name}/{name}`")
        if target.endswith(".py"):
            script = runs.ROOT / target
            command = ("accelerate", "launch", "--config_file", str(accelerate_config), _shown(script))
        else:
            script = module_file(target)
            command = ("python", "-m", target)
        command += ("--config", str(path), *tail)
        steps.append(Step(name, script, command, settings, Path(settings["output_dir"])))
    if EVALUATE in found:
        path = found[EVALUATE]
        for checkpoint, config in evaluate.configs(path, seed).items():
            command = ("python", "-m", evaluate.__name__, "--config", str(path), "--checkpoint", checkpoint, *tail)
            script = Path(evaluate.__file__)
            steps.append(Step(f"evaluate_{checkpoint}", script, command, config, Path(config["output_dir"])))
    owners: dict[Path, str] = {}
    for step in steps:
        if step.output_dir in owners:
            raise runs.ConfigError(f"{step.name} and {owners[step.output_dir]} share the output_dir {step.output_dir}")
        owners[step.output_dir] = step.name
    return _in_order(steps)


def module_file(module: str) -> Path:
    """The file that `python -m module` runs."""
    path = runs.ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def _shown(path: Path) -> str:
    """The path as a person in this working directory would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _in_order(steps: list[Step]) -> list[Step]:
    ordered: list[Step] = []
    made = {step.output_dir for step in steps}
    while len(ordered) < len(steps):
        placed = {step.output_dir for step in ordered}
        ready = [s for s in steps if s.output_dir not in placed and all(n in placed or n not in made for n in s.needs)]
        if not ready:
            circle = ", ".join(step.name for step in steps if step.output_dir not in placed)
            raise runs.ConfigError(
                f"these stages wait for each other: {circle}; look at the outputs/ paths in their YAMLs"
            )
        ordered.append(ready[0])
    return ordered


def find_done(steps: list[Step]) -> set[str]:
    """Names of the steps whose run is finished with today's fingerprint, and so are all that they depend on."""
    by_output = {step.output_dir: step for step in steps}
    done: set[str] = set()
    for step in steps:  # in order, so what a step needs was looked at before
        if any(need in by_output and by_output[need].name not in done for need in step.needs):
            continue
        with contextlib.suppress(runs.MissingRunError):
            if runs.is_done(step.output_dir, runs.fingerprint(step.script, step.settings)):
                done.add(step.name)
    return done


def dependents(steps: list[Step], name: str) -> list[Step]:
    """The named step and all that depend on it, directly or not, in order."""
    taken: dict[Path, Step] = {}
    for step in steps:
        if step.name == name or any(need in taken for need in step.needs):
            taken[step.output_dir] = step
    return list(taken.values())


def choose(steps: list[Step], start: str | None, only: list[str] | None) -> list[Step]:
    """The steps that `--from` and `--only` leave. Raises PipelineError for a name that is no step's."""
    names = [step.name for step in steps]
    for name in [*([start] if start else []), *(only or [])]:
        if name not in names:
            raise PipelineError(f"no step is called {name!r}; they are {', '.join(names)}")
    if only:
        return [step for step in steps if step.name in only]
    return dependents(steps, start) if start else steps


def preflight(steps: list[Step], todo: list[Step], folder: Path) -> None:
    """Everything that can be known to fail before any work is done. Raises PipelineError or runs.ConfigError."""
    made = {step.output_dir for step in todo}
    for step in todo:
        for need in step.needs:
            if need in made:
                continue
            maker = next((other.name for other in steps if other.output_dir == need), None)
            if not (need / "run.json").exists() and not (maker is None and need.exists()):
                hint = f"run `--only {maker}` first" if maker else f"no YAML in {folder} makes it; correct the path"
                raise PipelineError(f"{step.name} needs {need}, which is not there: {hint}")
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < FREE_DISK_GB:
        raise PipelineError(
            f"{free:.1f} GB are free in {Path.cwd()}, {FREE_DISK_GB:.0f} GB are needed: make room first"
        )


class Running:
    """A step's child process: the documented command under the guard, its output in the step's log."""

    def __init__(self, step: Step, environment: dict[str, str], lock: int):
        self.step = step
        self.started = time.monotonic()
        self.fingerprint = runs.fingerprint(step.script, step.settings)
        step.log.parent.mkdir(parents=True, exist_ok=True)
        with step.log.open("wb") as log:
            log.write(f"$ {shlex.join(step.command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-S", str(GUARD), *step.command],
                stdin=subprocess.PIPE,  # held open by us alone; the guard ends its group when it closes
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),  # the folder stays locked until the last of the children is gone
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def kill(self) -> None:
        """End the child and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def failure(self) -> str | None:
        """None while it runs or when it ended well; otherwise what went wrong."""
        code = self.process.poll()
        if code is None:
            return None
        if code:
            return f"was killed by {signal.Signals(abs(code)).name}" if code < 0 else f"ended with exit status {code}"
        if not runs.is_done(self.step.output_dir, self.fingerprint):
            return f"ended without error, but {self.step.output_dir}/run.json is not that of this run"
        return None


class Session:
    """This call's wall seconds and peak memory in outputs/<scale>/report/sessions.json, which the report adds up.

    A call that found nothing done opens the list anew, so that the sum is the time of one whole run, however often it
    was cut off; for the same reason the file is brought up to date while the call is at work.
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
        """Add up the resident memory of the pipeline and all its descendants, once a second; pages that they share
        count in each."""
        seconds = time.monotonic() - self.started
        if seconds - self.measured < 1:
            return
        self.measured, total = seconds, 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it ended in between
                total += process.memory_info().rss
        self.peak_rss = max(self.peak_rss, total)
        self.save()

    def save(self) -> None:
        this = {
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_rss_gb": round(self.peak_rss / 2**30, 3),
        }
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps([*self.before, this], indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


class Pipeline:
    """Runs steps side by side, `jobs` at a time, and stops all at the first failure."""

    def __init__(
        self, todo: list[Step], view: Any, session: Session, jobs: int, environment: dict[str, str], lock: int
    ):
        self.waiting = list(todo)
        self.unfinished = {step.output_dir for step in todo}
        self.running: list[Running] = []
        self.view = view
        self.session = session
        self.jobs = jobs
        self.environment = environment
        self.lock = lock

    def run(self) -> None:
        """Raises PipelineError, with the end of the log, for the first step that fails."""
        try:
            while self.waiting or self.running:
                self._start_ready()
                time.sleep(0.2)
                self.session.measure()
                self._collect()
                self.view.update([(child.step, child.seconds) for child in self.running])
        finally:
            for child in self.running:
                child.kill()
            self.session.save()

    def _start_ready(self) -> None:
        for step in list(self.waiting):
            if len(self.running) == self.jobs:
                return
            if not any(need in self.unfinished for need in step.needs):
                self.waiting.remove(step)
                self.running.append(Running(step, self.environment, self.lock))
                self.view.started(step)

    def _collect(self) -> None:
        for child in [child for child in self.running if child.process.poll() is not None]:
            self.running.remove(child)
            wrong = child.failure()
            child.kill()  # what it may have left behind in its group
            if wrong:
                raise PipelineError(_explain(child.step, wrong))
            self.unfinished.discard(child.step.output_dir)
            self.view.finished(child.step, child.seconds)


def _explain(step: Step, wrong: str) -> str:
    lines = step.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    end = "\n".join(f"  {line}" for line in lines[-20:])
    return (
        f"{step.name} {wrong}. The end of {step.log}:\n{end}\n"
        f"To run it alone:\n  {shlex.join(step.command)}\n"
        "What is finished is kept, and so is what this stage has saved: the same command goes on from there."
    )


def child_environment(on_cpu: bool) -> dict[str, str]:
    """The children's environment: `python` and `accelerate` are this interpreter's, the floors are importable."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONUNBUFFERED"] = "1"
    if on_cpu:
        environment["OMP_NUM_THREADS"] = "1"
    return environment


@contextlib.contextmanager
def locked(scale_dir: Path) -> Any:
    """Holds outputs/<scale> for this pipeline; yields the lock's file descriptor. Raises PipelineError if taken."""
    scale_dir.mkdir(parents=True, exist_ok=True)
    with (scale_dir / ".lock").open("a") as file:
        for attempt in range(50):  # children of a pipeline that was just killed need a moment to be gone
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 49:
                    raise PipelineError(f"another pipeline is at work in {scale_dir}: wait for it or end it") from None
                time.sleep(0.1)
        yield file.fileno()


def scale_folder(scale: str) -> Path:
    """recipes/configs/<scale>, or the folder itself when `scale` is a path to one."""
    return Path(scale) if "/" in scale else Path(_shown(runs.ROOT / "recipes" / "configs" / scale))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m recipes.tools.pipeline", description=__doc__.split("\n\n")[0])
    parser.add_argument("--scale", default="cpu", help="recipes/configs/<scale>, or a path to a folder of YAMLs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of what is not done, and stop")
    parser.add_argument("--from", dest="start", metavar="STEP", help="do STEP and all that depends on it again")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps")
    parser.add_argument("--seed", type=int, help="in place of the YAMLs' seeds")
    parser.add_argument("--jobs", type=int, help=f"steps side by side (default: {CPU_JOBS} at the CPU scales, else 1)")
    parser.add_argument(
        "--accelerate-config", type=Path, default=Path(_shown(runs.ROOT / "accelerate_configs" / "cpu.yaml"))
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a step failed, 2 it could not start, 130 interrupted."""
    arguments = parse_arguments(argv)
    try:
        return _run(arguments)
    except (runs.ConfigError, runs.MissingRunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    folder = scale_folder(arguments.scale)
    on_cpu = folder.name in CPU_SCALES
    steps = load_steps(folder, arguments.seed, arguments.accelerate_config)
    chosen = choose(steps, arguments.start, arguments.only)
    finished = find_done(steps)
    done = set() if arguments.start else finished
    todo = [step for step in chosen if step.name not in done]
    if arguments.dry_run:
        for step in chosen:
            print(shlex.join(step.command) if step in todo else f"# done: {step.name}")
        return 0
    preflight(steps, todo, folder)
    scale_dir = steps[0].output_dir.parent
    with locked(scale_dir) as lock:
        if todo:
            if arguments.start:
                for step in todo:
                    runs.forget(step.output_dir)
            with (LiveView if sys.stdout.isatty() else PlainView)(chosen, done) as view:
                session = Session(scale_dir, afresh=not finished)
                jobs = arguments.jobs or (CPU_JOBS if on_cpu else 1)
                Pipeline(todo, view, session, jobs, child_environment(on_cpu), lock).run()
        else:
            print(f"nothing to do: {len(chosen)} steps are done")
        if any(step.name.startswith("evaluate_") for step in chosen):
            report.main(["--scale", str(scale_dir)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
