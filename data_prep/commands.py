"""What the commands of this project share: how they are asked, and how they end.

An error that a person can mend is one paragraph on stderr that says how; `--debug`, which every command takes, shows
where it came from as well. What nobody foresaw keeps its trace: it is ours to mend.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from data_prep.runs import ConfigError

DEBUG = "show where an error came from"


class Stopped(RuntimeError):
    """Work that was begun has ended before it was done. The message says why, and what goes on."""


def parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `python -m module`, with the module's docstring and `--debug`."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--debug", action="store_true", help=DEBUG)
    return made


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """The exit status of a command: its main's, 2 for settings or inputs that cannot be, 1 for work that ended early
    (the same command goes on), 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return main(argv) or 0
    except (ConfigError, FileNotFoundError) as error:  # MissingRunError among them
        return _tell(error, 2, argv)
    except (Stopped, OSError) as error:
        return _tell(error, 1, argv)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130


def _tell(error: Exception, status: int, argv: list[str]) -> int:
    if "--debug" in argv:
        traceback.print_exception(error)
    sys.stderr.write(f"error: {error}\n")
    return status
