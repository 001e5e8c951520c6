"""Reads YAMLs as their stages will, and does nothing else: `python -m recipes.tools.check TARGET CONFIG ...`.

The pipeline runs this in one child process before any work, so a mistyped key or a missing file of the last stage is
found before the first one runs for minutes. Everything that does not need TRL is checked first, because its import
takes seconds.
"""

import importlib.util
import sys
import typing
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from data_prep import jobs, runs
from data_prep.runs import commands
from recipes import commandline


def check(
    target: str, path: str, *more: str, elsewhere: bool = False, parse: Callable[..., tuple] = commandline.parse
) -> tuple:
    """The settings of a script or module from a YAML and `more` command line arguments. A script names its settings
    classes in `SETTINGS`, and a job in the annotation of its `load`. Raises runs.ConfigError if the YAML is refused.
    `elsewhere`: read the YAML of a GPU on a machine without one. `parse`: what reads the YAML of a script."""
    if target.endswith(".py"):
        script = Path(target).resolve().relative_to(runs.ROOT).with_suffix("")
        words = ["--config", path, *more, *(commandline.WITHOUT_GPU if elsewhere else ())]
        return parse(*importlib.import_module(".".join(script.parts)).SETTINGS, argv=words)
    job = importlib.import_module(main_module(target).name)
    kind = typing.get_type_hints(job.load)["config"]
    return (runs.settings(kind, _values(path, more), path),)


def require(target: str, path: str, *more: str) -> None:
    """Check what a YAML needs and this machine may lack: its files of rows, and what its job requires. Raises
    runs.ConfigError or the job's own error."""
    runs.require_rows(_values(path, more), path)
    job = None if target.endswith(".py") else check(target, path, *more)[0]
    if isinstance(job, jobs.Job):
        try:
            job.require()
        except ValueError as error:
            raise runs.ConfigError(f"{path}: {error}") from error


def _values(path: str, more: tuple[str, ...]) -> dict[str, Any]:
    return runs.load_config(Path(path), Path(more[more.index("--override") + 1]) if "--override" in more else None)


def main_module(target: str) -> ModuleSpec:
    """The spec of the module that `python -m target` runs: a package's `__main__`. Raises runs.ConfigError if there is
    none."""
    spec = importlib.util.find_spec(target)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{target}.__main__")
    if spec is None or spec.origin is None:
        raise runs.ConfigError(f"`python -m {target}` cannot be run: there is no such module")
    return spec


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.check", __doc__)
    parser.add_argument("pairs", nargs="+", metavar="TARGET CONFIG", help="a script or module, and its YAML")
    parser.add_argument("--override", metavar="FILE", help=commands.OVERRIDE)
    parser.add_argument("--elsewhere", action="store_true", help="they are for a machine that may have another GPU")
    found = parser.parse_args(argv)
    pairs, more = found.pairs, ("--override", found.override) if found.override else ()
    for parse in (commandline.read, commandline.parse):
        for target, path in zip(pairs[::2], pairs[1::2], strict=True):
            check(target, path, *more, elsewhere=found.elsewhere, parse=parse)
    for target, path in () if found.elsewhere else zip(pairs[::2], pairs[1::2], strict=True):
        require(target, path, *more)


if __name__ == "__main__":
    sys.exit(commands.run(main))
