"""The identity of a run: the settings and inputs that decide whether a folder already holds this run.

An `Identity` holds the given settings, hashes of all files that they name, the runs that made their model folders, and
the user's own reward modules. The version of this project's code is recorded too, but does not decide whether two runs
are the same. Nothing here imports torch, so that it is fast to check what is left to do.
"""

import ast
import dataclasses
import enum
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.runs.files import write_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rewards", "data_prep", "recipes")
OUTPUTS = "outputs/"
# Keys of any YAML that decide where a finished run is published; see data_prep.runs.publishing.
PUBLISHING = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy")
# Keys that decide where a run works and what it logs, but not its result.
IGNORED = ("output_dir", "script", "executor", "doctor", "logging_dir", "dataset_num_proc", *PUBLISHING)
# Nested keys that do not decide the result either: `serve` says how the pipeline starts a server.
IGNORED_WITHIN = ("serve",)
# The key of the accelerate config. The name of that file is part of the identity, but its content is not.
LAUNCH = "accelerate_config"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
ROWS = (".parquet", ".jsonl", ".json", ".csv", ".arrow", ".gz", ".zst")
SAMPLED = 2**30  # bytes; larger files in folders that no run made are hashed in parts
HASHES = Path(OUTPUTS, ".hashes.json")  # for each path the size and times of the file, and its hash
MISSING = object()


@dataclasses.dataclass(frozen=True)
class Identity:
    """`settings`: as given. `defaults`: the known defaults of all keys. `files`: SHA-256 by path.
    `runs`: by folder, the id of the run that made it. If no run made it and it holds a model or rows, a hash instead.
    `modules`: hashes of the user's own code by module name. `code`: the version of this project's code."""

    settings: dict[str, Any]
    defaults: dict[str, Any]
    files: dict[str, str]
    runs: dict[str, str]
    modules: dict[str, str]
    code: dict[str, str]


def identify(
    settings: Mapping[str, Any],
    script: Path,
    made_by: Callable[[Path], tuple[Path, str] | None],
    defaults: Mapping[str, Any] | None = None,
) -> Identity:
    """The identity of a run with these settings, started by `script`.

    `made_by` returns the folder and the id of the finished run that a path belongs to, or None if the path is in no
    run's folder. It may raise an error for an unfinished run. `defaults` are the known defaults of all keys.
    """
    given = {key: plain(value) for key, value in settings.items() if key not in IGNORED}
    usual = {key: plain(value) for key, value in (defaults or {}).items() if key not in IGNORED}
    own_folder = Path(settings["output_dir"]) if settings.get("output_dir") else None
    files, folders = {}, {}
    for text in texts({key: value for key, value in given.items() if key != LAUNCH}):
        path = Path(text)
        if own_folder and path.is_relative_to(own_folder):
            continue
        found = made_by(path) if text.startswith(OUTPUTS) or os.path.exists(path) else None
        if os.path.isfile(path):
            files[text] = content(path)
        elif found:
            folders[text] = "/".join([found[1], *path.relative_to(found[0]).parts])
        elif os.path.isdir(path) and (digest := _hash_folder(path)):
            folders[text] = digest
        elif path.suffix == ".parquet" and os.path.isdir(path.parent):  # rows that several tasks wrote
            files |= {str(part): content(part) for part in sorted(path.parent.glob(f"{path.stem}-*-of-*.parquet"))}
    own = {}
    for name in texts(given.get("reward_funcs")):
        own |= _own_modules(name)
    return Identity(given, usual, files, folders, own, code_version(script))


def plain(value: Any) -> Any:
    """A setting as a JSON value, without the keys in `IGNORED_WITHIN`. `1e-4`, `1E-4` and `0.0001` become equal."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items() if key not in IGNORED_WITHIN}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def changes(then: Identity, now: Identity, config: Mapping[str, Any], nested: bool = True) -> list[str]:
    """Describe the differences between two identities; [] means the same run.

    `config` holds all recorded settings of the earlier run, including defaults. So it is no change if a key is now
    written out with the value that it had. With `nested`, a mapping may be written in part.
    """
    found = []
    for key in sorted(then.settings.keys() | now.settings.keys()):
        new = now.settings.get(key, now.defaults.get(key, then.defaults.get(key, MISSING)))
        in_force = plain(config[key]) if key in config else MISSING
        if key in then.settings:
            was = [then.settings[key]]
        else:
            was = [one for one in (in_force, then.defaults.get(key, MISSING)) if one is not MISSING]
            was = was or [now.defaults.get(key, MISSING)]
        spelt_out = nested and _covers(in_force, new) and (key not in then.settings or _covers(new, was[0]))
        if not spelt_out and not any(_same(one, new) for one in was):
            found.append(f"`{key}` was {_shown(was[0])} and is {_shown(new)} now")
    named = set(texts(then.settings))
    for name, digest in now.files.items():
        if then.files.get(name, digest) != digest:
            found.append(f"the content of {name} has changed")
    for name, maker in now.runs.items():
        if then.runs.get(name, maker) != maker:
            found.append(f"{name} was made by run {then.runs[name][:12]} and now holds run {maker[:12]}")
    for name in now.files | now.runs:
        if name in named and name not in then.files | then.runs:
            found.append(f"{name} was not there and is there now")
    for name, digest in now.modules.items():
        if then.modules.get(name, digest) != digest:
            found.append(f"your module {name} has changed")
    return found


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return os.path.abspath(one) == os.path.abspath(other)  # one path may be spelt in two ways
    return one == other or [one] == other or one == [other]  # a command line writes a list of one item as the item


def _covers(whole: Any, part: Any) -> bool:
    """Whether `whole` has every value of `part`. A mapping in `part` may leave out keys."""
    if isinstance(whole, Mapping) and isinstance(part, Mapping) and bool(whole) == bool(part):
        return all(key in whole and _covers(whole[key], value) for key, value in part.items())
    return _same(whole, part)


def _shown(value: Any) -> str:
    return "not set" if value is MISSING else json.dumps(value, ensure_ascii=False)


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a setting, at any depth."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from texts(part)
    elif isinstance(value, str) and 0 < len(value) < 1024 and "\n" not in value and "\0" not in value:
        yield value


# Files


_known: dict[str, list] = {}  # by absolute path: [version of the file, its SHA-256]


def _read_hashes() -> dict[str, list]:
    try:
        return json.loads(HASHES.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the files are hashed again
        return {}


def remember() -> None:
    """Write the hashes of this process to HASHES, so that other processes need not read those files again."""
    stored = _read_hashes()
    mine = {path: entry for path, entry in _known.items() if stored.get(path) != entry}
    if mine and HASHES.parent.is_dir():
        write_json(HASHES, {path: entry for path, entry in (stored | mine).items() if os.path.exists(path)})


def content(path: Path, sampled: bool = False) -> str:
    """The SHA-256 of a file, cached by its size and times. With `sampled`, the hash of a large file is only of its size
    and of 64 evenly spaced megabytes."""
    stat = path.stat()
    sampled = sampled and stat.st_size > SAMPLED
    version = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sampled]
    name = str(path.absolute())
    entry = _known.get(name) or _read_hashes().get(name)
    if entry and entry[0] == version:
        _known[name] = entry
        return entry[1]
    with path.open("rb") as file:
        if sampled:
            digest = hashlib.sha256(str(stat.st_size).encode())
            for part in range(64):
                file.seek((stat.st_size - 2**20) * part // 63)
                digest.update(file.read(2**20))
        else:
            digest = hashlib.file_digest(file, "sha256")
    _known[name] = [version, digest.hexdigest()]
    return digest.hexdigest()


def _hash_folder(folder: Path) -> str | None:
    """A hash of the names and contents of all files in a folder that no run made, if it holds a model or rows; else
    None."""
    if not any(path.name == "config.json" or path.suffix in ROWS for path in folder.iterdir()):
        return None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    parts = [[str(path.relative_to(folder)), content(path, sampled=True)] for path in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# Code


def code_version(script: Path) -> dict[str, str]:
    """Return `hash` and `commit`. `hash` covers `script`, all modules of this project that it imports, directly or not,
    and the templates beside them, without comments, docstrings and layout. `commit` is git's, or "" without a
    repository.
    """
    code = closure_of_ours(script)
    templates = sorted(path for folder in {path.parent for path in code} for path in folder.glob("*.jinja"))
    said = [[path.name, path.read_text(encoding="utf-8")] for path in templates]
    parts = [[path.name, _code(path, path.stat().st_mtime_ns)[0]] for path in code]
    return {"hash": hashlib.sha256(json.dumps([parts, said]).encode()).hexdigest()[:12], "commit": _commit()}


def closure_of_ours(script: Path) -> list[Path]:
    """The sorted files of the script and of all modules of this project that it imports, directly or not."""
    return _closure(Path(script).resolve(), ROOT, lambda name: name.partition(".")[0] in PACKAGES)


@functools.cache
def _commit() -> str:
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no commit yet: the hash suffices
        return ""


def _own_modules(dotted: str) -> dict[str, str]:
    """Hashes of the module that a dotted path to a user's reward names, and of the modules that it imports from its own
    folder. For an installed module, only its own hash."""
    module = dotted.rpartition(".")[0]
    if not module or module.partition(".")[0] in PACKAGES:
        return {}
    for root in map(Path, [os.getcwd(), *sys.path]):
        if files := _files(module, root):
            if str(root) in sysconfig.get_paths().values():
                code = files[-1:]
            else:
                code = _closure(files[-1], root, lambda name: name.partition(".")[0] not in PACKAGES)
            return {str(path.relative_to(root)): _code(path, path.stat().st_mtime_ns)[0] for path in code}
    return {}


def _closure(start: Path, root: Path, counts: Callable[[str], bool]) -> list[Path]:
    """The file `start` and, directly or not, the modules below `root` that it imports and whose names pass `counts`."""
    waiting, seen = [start], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            package = path.relative_to(root).parent.parts if path.is_relative_to(root) else ()
            for level, name in _code(path, path.stat().st_mtime_ns)[1]:
                above = package[: len(package) - level + 1] if level else ()
                module = ".".join([*above, *([name] if name else [])])
                waiting += _files(module, root) if counts(module) else []
    return sorted(seen)


@functools.lru_cache(maxsize=1024)
def _code(path: Path, mtime_ns: int) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Return (hash of the code without comments and docstrings, its imports as (level, name))."""
    try:
        return _read_code(ast.parse(path.read_bytes(), filename=str(path)))
    except (SyntaxError, ValueError, RecursionError):  # the import itself will report the error
        return hashlib.sha256(path.read_bytes()).hexdigest(), ()


def _read_code(tree: ast.Module) -> tuple[str, tuple[tuple[int, str], ...]]:
    names: set[tuple[int, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            names |= {(node.level, ".".join([*base, *more])) for more in ([], *([alias.name] for alias in node.names))}
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(sorted(names))


def _files(module: str, root: Path) -> list[Path]:
    """The files below `root` that `import module` runs: the `__init__.py` of each package on the way, and the module's
    own file."""
    files, folder = [], root
    for part in filter(None, module.split(".")):
        folder = folder / part
        files += [path for path in (folder / "__init__.py", folder.with_suffix(".py")) if path.is_file()]
    return files
