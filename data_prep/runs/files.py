"""Atomic writes, locks on folders, and checks that files are complete."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
PATIENCE = 50  # tenths of a second to wait for a lock: the children of a killed pipeline need a moment to end
_held: dict[Path, IO[str]] = {}


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that appears at ``path`` complete or not at all, even if other processes write the same file or the
    machine stops. A kill may leave a partial file, which is removed when the run starts again."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with whole_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1, default=str).encode() + b"\n")


# One process at a time


def lock_of(folder: Path) -> Path:
    """The path of the folder's lock. It is beside the folder, so that the folder can be moved while it is locked."""
    folder = Path(os.path.realpath(folder))
    return folder.parent / f".{folder.name}.lock"


def hold(folder: Path) -> str | None:
    """Lock the folder until this process ends. Returns None, or a description of the process that holds the lock.

    It is a POSIX lock: forked children do not inherit it, and the system releases it when the process ends.
    """
    path = lock_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _held.get(path) or path.open("a+", encoding="utf-8")  # closing a second file would release the lock
    for attempt in range(PATIENCE + 1):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                log.warning(
                    "%s cannot be locked (%s), so do not start another process that writes there", folder, error
                )
                break
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if attempt == PATIENCE:
            return holder(folder)
        time.sleep(0.1)
    _held[path] = file
    file.seek(0)
    file.truncate()
    file.write(who())
    file.flush()
    return None


def who() -> str:
    """A description of this process."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()} since {since}: {shlex.join(sys.argv)}"


def holder(folder: Path) -> str:
    """A description of the process that last locked the folder."""
    path = lock_of(folder)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def is_held(folder: Path) -> bool:
    """Whether another process has locked the folder."""
    path = lock_of(folder)
    if not path.is_file() or path in _held:
        return False
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


# Completeness


def model_fault(folder: Path) -> str | None:
    """What is missing from a model's folder (config, tokenizer or weights), or None if it is complete. Every weight
    file must have the size that its header states. The weights themselves are not read."""
    folder = Path(folder)
    for name in ("config.json", INDEX):
        if (folder / name).is_file() and _json(folder / name) is None:
            return f"{name} cannot be read"
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    if not any(_size(folder / name) for name in VOCABULARIES):
        return "its tokenizer is missing"
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif (folder / INDEX).is_file():
        names = sorted(set((_json(folder / INDEX) or {}).get("weight_map", {}).values()))
    else:
        names = []
    return next(filter(None, (weights_fault(folder / name) for name in names)), None if names else "it has no weights")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def weights_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file according to its header, or None."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 0 < length <= size else {}
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError):
            ends = []
    if not ends:
        return f"the header of {path.name} cannot be read"
    whole = 8 + length + max(ends)
    return None if size == whole else f"{path.name} has {size:,} bytes instead of {whole:,}"


def _json(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
