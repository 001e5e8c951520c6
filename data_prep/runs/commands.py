"""The argument parser, progress bar and exit status that all commands of this project share.

A user error is reported as one paragraph on stderr that says how to fix it. With `--debug`, which every command takes,
the traceback is shown as well. Unexpected errors always show their traceback, since they are bugs of this project.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_prep.runs import ConfigError, Stopped
from rewards.gym import GymMissing

from tqdm import tqdm

log = logging.getLogger(__name__)
DEBUG = "with an error, show where it came from"
REDO = "where the run lies finished, or was made with other settings or inputs, move its folder aside and run it anew"
OVERRIDE = "a YAML of other values, by the name of the YAML that they change"


def parser(module: str, doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of `python -m module`, with the module's docstring and `--debug`; the caller adds the rest."""
    shape = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        f"python -m {module}", description=doc, epilog=epilog, formatter_class=shape, allow_abbrev=False
    )
    made.add_argument("--debug", action="store_true", help=DEBUG)
    return made


def keys(kind: type, indent: str = "  ") -> Iterator[str]:
    """Yield one line for each key that a YAML may have for a dataclass; nested keys follow their parent."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        nested = [hint for hint in (hints[field.name], *typing.get_args(hints[field.name])) if _is_settings(hint)]
        name = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
        if typing.get_origin(hints[field.name]) is typing.Annotated:
            value, allowed = typing.get_args(hints[field.name])
            name = f"{getattr(value, '__name__', value)} ({allowed})"
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        yield f"{indent}{field.name}: " + ("" if nested else name + default)
        for one in nested:
            yield from keys(one, indent + "  ")


def defaults(kind: type) -> dict[str, Any]:
    """The default of each key of a dataclass that has one."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
    return {key: dataclasses.asdict(value) if _is_settings(type(value)) else value for key, value in found.items()}


def _is_settings(hint: object) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def progress(items: Iterable | None, what: str, total: int | None = None, unit: str = "row") -> tqdm:
    """The items with a progress bar, which shows the time left and appears after one second. There is no bar if stderr
    is not a terminal."""
    return tqdm(items, desc=what, total=total, unit=unit, disable=None, leave=False, delay=1, dynamic_ncols=True)


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: that of ``main``, 1 if work stopped early, or 130 for Ctrl-C. Invalid
    settings, inputs or arguments end the process with status 2."""
    argv = sys.argv[1:] if argv is None else argv
    for name in ("httpx", "httpx2"):  # both log every request; the Hub's client uses httpx2
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return main(argv) or 0
    except (ConfigError, FileNotFoundError, GymMissing) as error:  # MissingRunError among them
        _trace(error, argv)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("data_prep", "recipes", "rewards"):
            raise
        _trace(error, argv)
        said = str(error).strip().rstrip(".")
        sys.stderr.write(f"error: {said}. requirements.txt and requirements-gpu.txt list what is installed for this\n")
        raise SystemExit(2) from None
    except (Stopped, OSError) as error:
        _trace(error, argv)
        log.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes from here\n")
        return 130


def _trace(error: Exception, argv: list[str]) -> None:
    if "--debug" in argv:
        traceback.print_exception(error)
