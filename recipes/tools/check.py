"""Reads YAMLs as their stages will, and does nothing else: `python -m recipes.tools.check TARGET CONFIG ...`.

The pipeline runs this in one child before any work, so that a mistyped key of the last stage is not found after the
first has run for minutes. A stage's own parser does the reading: its script is run up to the point where it has parsed
its settings. First all is looked at that needs no TRL, whose import takes some seconds, once.
"""

import contextlib
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from data_prep import commands, runs
from recipes import config


class Parsed(Exception):
    """Thrown where a stage has its settings, which it carries, to leave it there."""


@contextlib.contextmanager
def _only_parsing(parse: Callable[..., tuple], jobs_too: bool) -> Iterator[None]:
    """In here, the one parser of the stages' scripts, and the one runner of data jobs, only parse."""

    def parse_only(*classes: type, argv: list[str] | None = None) -> NoReturn:
        raise Parsed(parse(*classes, argv=argv))

    def settings_only(settings: type, *_: Any, **__: Any) -> NoReturn:
        path, override = (_after(key) for key in ("--config", "--override"))
        raise Parsed((runs.settings(settings, runs.load_config(path, override), str(path)),))

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(config, "parse", parse_only))
        if jobs_too:
            from data_prep import jobs  # imports datatrove, which --help does not need

            patches.enter_context(mock.patch.object(jobs, "run", settings_only))
        yield


def _after(key: str) -> Path | None:
    """The file that follows a key of the command line."""
    return Path(sys.argv[sys.argv.index(key) + 1]) if key in sys.argv else None


def check(target: str, path: str, *more: str, parse: Callable[..., tuple] | None = None) -> tuple:
    """Parse one YAML, and `more` of a command line, as its script or module does -> its settings. Raises SystemExit or
    runs.ConfigError where that refuses it. `parse` stands in for recipes.config.parse."""
    script = target.endswith(".py")
    with (
        _only_parsing(parse or config.parse, jobs_too=not script),
        mock.patch.object(sys, "argv", [target, "--config", path, *more]),
        warnings.catch_warnings(action="ignore", category=RuntimeWarning),  # a module may be imported already
    ):
        try:
            if script:
                runpy.run_path(target, run_name="__main__")
            else:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
        except Parsed as parsed:
            return parsed.args[0]
    raise RuntimeError(f"{target} has not parsed {path} with recipes.config.parse or data_prep.jobs.run")


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
