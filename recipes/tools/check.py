"""Reads YAMLs as their stages will, and does nothing else: `python -m recipes.tools.check TARGET CONFIG ...`.

The pipeline runs this in one child before any work, so that a mistyped key of the last stage is not found after the
first has run for minutes. A stage's own parser does the reading: its script is run up to the point where it has parsed
its settings. First all is looked at that needs no TRL, whose import takes some seconds, once.
"""

import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from data_prep import commands, runs
from recipes import config


class Parsed(Exception):
    """Thrown where a stage has its settings, which it carries, to leave it there."""


def stop_scripts_after_parsing(parse: Callable[..., tuple] = config.parse) -> None:
    """From here on, in this process, the one parser of the stages' scripts only parses."""

    def parse_only(*classes: type, argv: list[str] | None = None) -> NoReturn:
        raise Parsed(parse(*classes, argv=argv))

    config.parse = parse_only


def stop_jobs_after_parsing() -> None:
    """From here on, in this process, the one runner of data jobs only parses."""
    from data_prep import jobs  # imports datatrove, which --help does not need

    def settings_only(settings: type, *_: Any, **__: Any) -> NoReturn:
        path, override = (_after(key) for key in ("--config", "--override"))
        raise Parsed((runs.settings(settings, runs.load_config(path, override), str(path)),))

    jobs.run = settings_only


def _after(key: str) -> Path | None:
    """The file that follows a key of the command line."""
    return Path(sys.argv[sys.argv.index(key) + 1]) if key in sys.argv else None


def check(target: str, path: str, *more: str) -> tuple:
    """Parse one YAML, and `more` of a command line, as its script or module does -> its settings. Raises SystemExit or
    runs.ConfigError where that refuses it."""
    sys.argv = [target, "--config", path, *more]
    try:
        if target.endswith(".py"):
            runpy.run_path(target, run_name="__main__")
        else:
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # it may be imported already
                runpy.run_module(target, run_name="__main__", alter_sys=True)
    except Parsed as parsed:
        return parsed.args[0]
    raise RuntimeError(f"{target} has not parsed {path} with recipes.config.parse or data_prep.jobs.run")


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.check", __doc__)
    parser.add_argument("pairs", nargs="+", metavar="TARGET CONFIG", help="a script or module, and its YAML")
    parser.add_argument("--override", metavar="FILE", help=commands.OVERRIDE)
    found = parser.parse_args(argv)
    pairs, more = found.pairs, ("--override", found.override) if found.override else ()
    stop_jobs_after_parsing()
    for parse in (config.read, config.parse):
        stop_scripts_after_parsing(parse)
        for target, path in zip(pairs[::2], pairs[1::2], strict=True):
            check(target, path, *more)


if __name__ == "__main__":
    sys.exit(commands.run(main))
