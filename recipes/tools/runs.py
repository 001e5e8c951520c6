"""The runs of a folder, and those that were replaced: `python -m recipes.tools.runs outputs/cpu`.

A run is done, unfinished or changed. It is changed if a file or model in its settings is now a different one. A run
that `--redo` has replaced stays unchanged in `replaced/` until `--remove outputs/cpu/replaced/NAME` deletes it.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_prep import runs
from data_prep.runs import commands, files, identity

COLUMNS = ("run", "state", "begun or made", "by code", "GB")


def found(folder: Path) -> Iterator[Path]:
    """The run folders below a folder, then those of the replaced runs."""
    for place in (folder, folder / runs.REPLACED):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if (path / "begun.json").is_file() or (path / "run.json").is_file():
                yield path


def describe(run: Path) -> tuple[str, ...]:
    """One line of the table."""
    done = (run / "run.json").is_file()
    file = run / ("run.json" if done else "begun.json")
    changed = time.localtime(file.stat().st_mtime)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        record = {}
    code = record.get("code") or {}
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    made = time.strftime("%Y-%m-%d %H:%M", changed)
    return str(run), state(run, record, done), made, code.get("commit") or code.get("hash", ""), f"{size / 1e9:.2f}"


def state(run: Path, record: dict, done: bool) -> str:
    """The state of a run, in words."""
    if files.is_held(run):
        return f"in use by {files.holder(run)}"
    if not record:
        return "unreadable: its record is damaged"
    if not done:
        saved = sorted(int(path.parent.name.rpartition("-")[2]) for path in run.rglob("checkpoint-*/complete.json"))
        return f"unfinished, with a checkpoint of step {saved[-1]}" if saved else "unfinished"
    if run.parent.name == runs.REPLACED:
        return "replaced"
    if lacks := runs.lacking(run, record):
        return f"incomplete: {lacks}"
    try:
        now = runs.identify(Path(identity.__file__), {"output_dir": str(run), **record.get("settings", {})})
    except runs.MissingRunError as error:
        return f"done, but {str(error).partition(':')[0]}"
    why = identity.changes(runs.identity_of(record), now, record.get("config") or {}, nested="hardware" not in record)
    return f"changed: {'; '.join(why)}" if why else "done"


def remove(path: Path) -> None:
    """Delete a replaced run. Raises ConfigError for any other folder."""
    real = Path(os.path.realpath(path))
    if real.parent.name != runs.REPLACED or path.name != real.name or not real.is_dir():
        raise runs.ConfigError(f"--remove: {path} is no replaced run, and only replaced runs are removed")
    shutil.rmtree(real)
    print(f"{path} is deleted")


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.runs", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/cpu"), help="default: outputs/cpu")
    parser.add_argument("--remove", nargs="+", type=Path, metavar="FOLDER", help="delete these replaced runs")
    arguments = parser.parse_args(argv)
    if arguments.remove:
        for path in arguments.remove:
            remove(path)
        return
    lines = [COLUMNS, *(describe(run) for run in found(arguments.folder))]
    if len(lines) == 1:
        first = f"run `make r1 SCALE={arguments.folder.name}` first, or name another folder of runs"
        raise runs.ConfigError(f"{arguments.folder} holds no runs: {first}")
    widths = [max(len(line[at]) for line in lines) for at in (0, 2, 3, 4)]
    for name, said, *rest in lines:
        cells = [name.ljust(widths[0]), *(one.ljust(width) for one, width in zip(rest, widths[1:], strict=True)), said]
        print("  ".join(cells))


if __name__ == "__main__":
    sys.exit(commands.run(main))
