"""The steps of the pipeline: their list, their dependencies, and which are done."""

import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import runs
from data_prep.runs import publishing
from recipes.tools import evaluate, servers
from recipes.tools.check import main_module

EVALUATE = "evaluate"  # its YAML stands for one step for each checkpoint
EVALUATION = "recipes.tools.evaluate"
DEFAULT_ACCELERATE = "accelerate_configs/cpu.yaml"  # for a YAML without the key `accelerate_config`


@dataclass(frozen=True)
class Step:
    """One run of the pipeline: its command, its dependencies and its output folder."""

    name: str
    target: str  # the script or module, as its command names it
    config: Path
    command: tuple[str, ...]
    script: Path  # the file whose code version is recorded
    settings: dict[str, Any]  # as given: YAML, then overrides
    override: Path | None = None  # the file of other values in the command

    @property
    def output_dir(self) -> Path:
        return Path(self.settings["output_dir"])

    @property
    def needs(self) -> list[Path]:
        """The runs that it reads."""
        return runs.inputs(self.settings)

    @property
    def services(self) -> list[servers.Service]:
        """The servers that it uses and that the pipeline starts."""
        return servers.needed(self.settings, str(self.config))

    @property
    def trains(self) -> bool:
        """Whether it is a recipe, which `accelerate launch` starts, instead of a module."""
        return self.target.endswith(".py")

    @property
    def evaluates(self) -> bool:
        """Whether it measures a checkpoint."""
        return self.target == EVALUATION

    @property
    def threads(self) -> int:
        """Number of threads on CPUs. The YAML sets it, because sums, and so output bytes, can depend on it."""
        return self.settings.get("threads", 1)

    @property
    def files(self) -> tuple[str, ...]:
        """The words after `--config` in its command."""
        return _files(self.config, self.override)[1:]

    @property
    def log(self) -> Path:
        """The child's output. It is not in output_dir, which is moved when a stage runs again."""
        return self.output_dir.parent / "logs" / f"{self.name}.log"

    def look(self) -> runs.State:
        """The state of its folder. Raises runs.MissingRunError while a run that it reads is not finished."""
        usual = evaluate.DEFAULTS if self.evaluates else None  # stages and jobs record their own
        return runs.look(self.output_dir, runs.identify(self.script, self.settings, defaults=usual))


def load_steps(
    folder: Path, seed: int | None = None, accelerate_config: Path | None = None, override: Path | None = None
) -> list[Step]:
    """The steps of a folder of YAMLs, each after its dependencies, and first those that most others depend on.

    `accelerate_config` replaces the YAMLs' own. `override`: a file that maps the name of each YAML that it changes to
    other values. Raises runs.ConfigError for a YAML without a stage, a name in `override` without a YAML, a missing or
    duplicate `output_dir`, or a cycle.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not found:
        scales = ", ".join(sorted(path.name for path in (runs.ROOT / "recipes" / "configs").iterdir() if path.is_dir()))
        raise runs.ConfigError(f"{folder}: no such scale; write one of {scales}, or a path such as ./my_scale")
    others = dict.fromkeys(runs.load_config(override), override) if override else {}
    for name in others.keys() - found.keys():
        raise runs.ConfigError(f"{override}: no YAML is called {name}; they are {', '.join(found)}")
    overrides = {} if seed is None else {"seed": seed}
    tail = () if seed is None else ("--seed", str(seed))
    steps = []
    for name, path in found.items():
        if name == EVALUATE:
            continue
        other = others.get(name)
        settings = runs.load_config(path, other) | overrides
        target = _target(path, settings)
        if not str(settings.get("output_dir", "")).startswith(runs.OUTPUTS):
            raise runs.ConfigError(f"{path}: write `output_dir: {runs.OUTPUTS}{folder.name}/{name}`")
        if target.endswith(".py"):
            script = runs.ROOT / target
            target = shown(script)
            processes = accelerate_config or runs.ROOT / settings.get("accelerate_config", DEFAULT_ACCELERATE)
            start = ("accelerate", "launch", "--quiet", "--config_file", shown(processes), target)
        else:
            script = Path(main_module(target).origin)
            start = ("python", "-m", target)
        steps.append(Step(name, target, path, (*start, *_files(path, other), *tail), script, settings, other))
    if path := found.get(EVALUATE):
        script, target, other = Path(evaluate.__file__), EVALUATION, others.get(EVALUATE)
        for name, settings in evaluate.configs(path, seed, other).items():
            command = ("python", "-m", target, *_files(path, other), "--checkpoint", name, *tail)
            steps.append(Step(f"{EVALUATE}_{name}", target, path, command, script, settings, other))
    owners: dict[Path, str] = {}
    for step in steps:
        other = owners.setdefault(step.output_dir, step.name)
        if other != step.name:
            raise runs.ConfigError(f"{step.config}: its output_dir {step.output_dir} is also that of {other}")
    return _in_order(steps)


def _target(path: Path, settings: dict[str, Any]) -> str:
    """The recipe or module that reads a YAML: its key `script`, or else the one with the YAML's name."""
    named = settings.get("script")
    for target in [str(named)] if named else [f"recipes/{path.stem}.py", f"data_prep.{path.stem}"]:
        if (runs.ROOT / target).is_file() if target.endswith(".py") else importlib.util.find_spec(target):
            return target
    wrong = f"there is no {named}" if named else f"no recipe or data job is called {path.stem}"
    raise runs.ConfigError(
        f"{path}: {wrong}; write `script: recipes/r1_zero.py`, `script: data_prep.mixture` or another"
    )


def _files(config: Path, override: Path | None) -> tuple[str, ...]:
    return ("--config", str(config), *(("--override", shown(override)) if override else ()))


def scale_folder(scale: str) -> Path:
    """The folder of YAMLs for a name in recipes/configs or a path."""
    return Path(scale) if "/" in scale else Path(shown(runs.ROOT / "recipes" / "configs" / scale))


def shown(path: Path) -> str:
    """The path as a user would type it in this working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _in_order(steps: list[Step]) -> list[Step]:
    made = {step.output_dir for step in steps}
    needs = {step.output_dir: [need for need in step.needs if need in made] for step in steps}
    waiting = {step.output_dir: {step.output_dir} for step in steps}  # its direct and indirect dependents
    for _ in steps:
        for later, inputs in needs.items():
            for need in inputs:
                waiting[need] |= waiting[later]
    ordered: dict[Path, Step] = {}
    for _ in steps:
        left = [step for step in steps if step.output_dir not in ordered]
        ready = [step for step in left if all(need in ordered for need in needs[step.output_dir])]
        if not ready:
            circle = ", ".join(step.name for step in left)
            raise runs.ConfigError(f"{circle} wait for each other; look at the outputs/ paths in their YAMLs")
        first = max(ready, key=lambda step: len(waiting[step.output_dir]))
        ordered[first.output_dir] = first
    return list(ordered.values())


def missing_inputs(step: Step, steps: list[Step], todo: list[Step]) -> Iterator[str]:
    """An error message for each run that a step reads, that is not there, and that no step of `todo` makes."""
    makers, made = {one.output_dir: one.name for one in steps}, {one.output_dir for one in todo}
    folders = {one.name: one for one in makers}
    for need in step.needs:
        if need not in made and not (need / "run.json").exists():
            near = difflib.get_close_matches(need.name, folders, n=1)
            meant = f"; did you mean {folders[near[0]]}?" if near else ""
            hint = f"run `--only {makers[need]}` first" if need in makers else f"no YAML of this scale makes it{meant}"
            yield f"{step.config}: {need} is not there: {hint}"


def is_pushed(step: Step) -> bool:
    """Whether a finished run is on the Hub, if its settings ask for that."""
    return not publishing.pending(step.output_dir, publishing.read(step.settings, str(step.config)))


def dependents(steps: list[Step], name: str) -> list[Step]:
    """The named step and all its direct and indirect dependents, in order."""
    taken: dict[Path, Step] = {}
    for step in steps:
        if step.name == name or any(need in taken for need in step.needs):
            taken[step.output_dir] = step
    return list(taken.values())


def after(config: str, output_dir: Path) -> list[Step]:
    """The steps that read a run, in order, from the YAMLs beside its own; none if these are not a scale."""
    try:
        return [step for step in load_steps(Path(config).parent) if output_dir in step.needs]
    except runs.ConfigError:
        return []


def require_names(steps: list[Step], names: Iterable[str]) -> None:
    """Raises runs.ConfigError for a name without a step."""
    known = [step.name for step in steps]
    for name in names:
        if name not in known:
            raise runs.ConfigError(f"no step is called {name!r}; they are {', '.join(known)}")
