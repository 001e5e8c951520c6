"""Reads YAMLs as their stages will, and does nothing else: `python -m recipes.tools.check TARGET CONFIG ...`.

The pipeline runs this in one child before any work, so that a mistyped key of the last stage is not found after the
first has run for minutes. First all is looked at that needs no TRL, whose import takes some seconds, once.
"""

import importlib
import importlib.util
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from data_prep import commands, runs
from recipes import config


def check(target: str, path: str, *more: str, parse: Callable[..., tuple] | None = None) -> tuple:
    """The settings that a YAML, and `more` of a command line, give a script or module. A script names its classes of
    settings as `SETTINGS`, a job in the annotation of what its `load` takes. Raises runs.ConfigError where the YAML is
    refused. `parse` stands in for recipes.config.parse."""
    words = ["--config", path, *more]
    if target.endswith(".py"):
        script = Path(target).resolve().relative_to(runs.ROOT).with_suffix("")
        return (parse or config.parse)(*importlib.import_module(".".join(script.parts)).SETTINGS, argv=words)
    package = importlib.util.find_spec(target).submodule_search_locations is not None
    job = importlib.import_module(f"{target}.__main__" if package else target)
    override = Path(more[more.index("--override") + 1]) if "--override" in more else None
    kind = typing.get_type_hints(job.load)["config"]
    return (runs.settings(kind, runs.load_config(Path(path), override), path),)


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.check", __doc__)
    parser.add_argument("pairs", nargs="+", metavar="TARGET CONFIG", help="a script or module, and its YAML")
    parser.add_argument("--override", metavar="FILE", help=commands.OVERRIDE)
    parser.add_argument("--elsewhere", action="store_true", help="they are for a machine that may have another GPU")
    found = parser.parse_args(argv)
    pairs, more = found.pairs, ("--override", found.override) if found.override else ()
    for parse in (config.read, config.parse):
        for target, path in zip(pairs[::2], pairs[1::2], strict=True):
            check(
                target,
                path,
                *more,
                *(config.WITHOUT_GPU if found.elsewhere and target.endswith(".py") else ()),
                parse=parse,
            )


if __name__ == "__main__":
    sys.exit(commands.run(main))
