"""What a run is: a folder that a stage or a data job owns, finished when its `run.json` is there.

`outputs/<scale>/<stage>/` holds whatever the stage writes, and two records of ours:

- `begun.json`, written first: whose work lies in the folder, so that a killed run goes on only with its own;
- `run.json`, written last and in one rename: what was run, from what, with which code. A folder without it is
  unfinished.

A run is known by its fingerprint: its settings, its code, and the fingerprints of the runs it reads. Any of them
changes, and the run is done again. Nothing here imports torch, so asking what is left to do takes no time.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import time
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rewards", "data_prep", "recipes")
OUTPUTS = "outputs/"
# Keys of any YAML that say where a finished run goes; they change nothing in it. See data_prep.publishing.
PUBLISHING = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy")
# Keys that name a file which people go on writing: its content counts in the fingerprint, not its name alone.
EDITED = ("review",)
RECORDED_VERSIONS = ("torch", "trl", "transformers", "peft", "datasets", "accelerate")


class ConfigError(ValueError):
    """A YAML says something that cannot be run. The message names the file and the key, and what to write instead."""


class MissingRunError(FileNotFoundError):
    """A run that is needed has not been made. The message names the command that makes it."""


class Stopped(RuntimeError):
    """Work that was begun has ended before it was done. The message says why; the same command goes on."""


class EngineError(Stopped):
    """Tasks of data_prep.engine were left undone, or what they left is of no use. The message says which, why, and
    where to look."""


def is_here(place: str) -> bool:
    """Whether a setting means a path by it, and no Hub id."""
    return place.startswith((OUTPUTS, ".", "/")) or place.count("/") > 1 or Path(place).exists()


# Settings


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, save that a key given twice is an error and not silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key `{key}` is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises ConfigError if there is no such file or it holds something else."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        siblings = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "nothing"
        raise ConfigError(f"{path}: no such file; {path.parent} holds {siblings}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; write `key: value` lines")
    return content


def settings(kind: type, config: Path | Mapping[str, Any], where: str = "", **overrides: Any) -> Any:
    """An instance of the dataclass `kind` with the values of a YAML (or of a mapping that came from one).

    Every key must be a field, every field without a default must be there, every value must have the field's type
    (ints pass as floats, and so does `1e-4`, which YAML reads as text). Overrides that are None are not given.
    Raises ConfigError naming file, key and remedy.
    """
    if isinstance(config, str | os.PathLike):
        where, config = str(config), load_config(Path(config))
        config = {key: value for key, value in config.items() if key not in PUBLISHING}
    values = dict(config) | {key: value for key, value in overrides.items() if value is not None}
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in values.keys() - fields.keys():
        near = difflib.get_close_matches(str(key), fields, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the keys are {', '.join(fields)}"
        raise ConfigError(f"{where}: unknown key `{key}`; {hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: the key `{name}` is missing; write `{name}: ...`")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _typed(value, hints[key], f"{where}: `{key}`") for key, value in values.items()})


def _typed(value: Any, hint: Any, where: str) -> Any:
    """The value as the type hint wants it, or ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if isinstance(value, int | float) and not value >= 0:
        raise ConfigError(f"{where} is {value!r}; write a number that is not below 0")
    if origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not types.NoneType]
        if value is not None and len(options) == 1:
            return _typed(value, options[0], where)
        for option in arguments:
            try:
                return _typed(value, option, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} is {value!r}; write one of {', '.join(map(repr, arguments))}")
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return settings(hint, value, where)
    elif origin in (list, tuple) and isinstance(value, list):
        item = arguments[0] if arguments else Any
        return origin(_typed(part, item, f"{where}[{i}]") for i, part in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        return {key: _typed(part, arguments[1], f"{where}.{key}") for key, part in value.items()}
    elif hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif hint is types.NoneType and value is None:
        return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} is {value!r}; write a value of type {wanted}")


# Fingerprints


def inputs(config: Mapping[str, Any]) -> list[Path]:
    """The runs that a config reads, in order, each once: every text value that starts with `outputs/`, save
    `output_dir`. `outputs/cpu/world/corpus.parquet` names the run `outputs/cpu/world`.
    """
    own = str(config.get("output_dir", "")).rstrip("/")
    found: dict[Path, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Mapping):
            for part in value.values():
                walk(part)
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)
        elif isinstance(value, str | os.PathLike) and str(value).startswith(OUTPUTS):
            run = Path(*Path(value).parts[:3])
            if str(run) != own:
                found[run] = None

    walk({key: value for key, value in config.items() if key != "output_dir"})
    return list(found)


def fingerprint(script: Path, config: Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> str:
    """What a run depends on, as 64 hex digits: its settings (YAML, then overrides from the command line; those that
    are None are not given; `executor`, `doctor` and `PUBLISHING` say nothing of what it makes), the code of `script`
    and of every module of ours that it imports, directly or not, the templates beside them, the fingerprints of its
    inputs, and the content of the files of `EDITED`. Comments and layout of YAML and code do not count.

    Raises MissingRunError when an input has not been run.
    """
    if isinstance(config, str | os.PathLike):
        config = load_config(Path(config))
    values = dict(config) | {key: value for key, value in (overrides or {}).items() if value is not None}
    for key in ("executor", "doctor", *PUBLISHING):
        values.pop(key, None)
    code = sources(script)
    templates = sorted(path for folder in {path.parent for path in code} for path in folder.glob("*.jinja"))
    parts = {
        "settings": values,
        "code": {_name(path): _code(path, path.stat().st_mtime_ns)[0] for path in code},
        "templates": {_name(path): path.read_text(encoding="utf-8") for path in templates},
        "inputs": {str(run): read(run)["fingerprint"] for run in inputs(values)},
        "edited": [_hash(values[key]) for key in EDITED if os.path.isfile(values.get(key) or "")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def sources(script: Path) -> list[Path]:
    """The script's file and the files of all modules of this project that it imports, directly or not, sorted."""
    waiting, seen = [Path(script).resolve()], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _code(path, path.stat().st_mtime_ns)[1]:
            waiting += _files(module)
    return sorted(seen)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


@functools.lru_cache(maxsize=1024)
def _code(path: Path, mtime_ns: int) -> tuple[str, tuple[str, ...]]:
    """(hash of the code without comments, dotted names that it imports from this project)."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = list(path.relative_to(ROOT).parent.parts) if path.is_relative_to(ROOT) else []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    own = sorted(name for name in names if name.split(".")[0] in PACKAGES)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(own)


def _files(module: str) -> list[Path]:
    """The files that `import module` runs: each package's `__init__.py` on the way, and the module's own."""
    files, folder = [], ROOT
    for part in module.split("."):
        folder = folder / part
        files += [path for path in (folder.with_suffix(".py"), folder / "__init__.py") if path.is_file()]
    return files


# A run's folder


def begin(output_dir: Path, fingerprint: str) -> Literal["done", "resume", "fresh"]:
    """Take the folder for the run with this fingerprint.

    "done": it is finished, do nothing. "resume": an earlier try with this fingerprint was cut off, its files are
    there. "fresh": what another fingerprint left in the folder is gone, save `samples/`: a sample is known by what
    it was drawn from, so that a changed threshold throws none away.
    Raises ValueError for a folder that holds files but is no run's.
    """
    output_dir = Path(output_dir)
    if is_done(output_dir, fingerprint):
        return "done"
    begun = _read_json(output_dir / "begun.json") or {}
    if begun.get("fingerprint") == fingerprint:
        for partial in output_dir.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        write_json(output_dir / "begun.json", begun | {"begun": time.time(), "tries": begun["tries"] + 1})
        return "resume"
    if output_dir.is_dir():
        _wipe(output_dir, keep="samples")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "begun.json", {"fingerprint": fingerprint, "begun": time.time(), "tries": 1})
    return "fresh"


def _wipe(output_dir: Path, keep: str = "") -> None:
    """Empty the folder but for a `begun.json` that is nobody's, so that a wipe cut short is wiped again."""
    names = {path.name for path in output_dir.iterdir() if not path.match(".begun.json.*.partial")}
    if names and not names & {"begun.json", "run.json"}:
        raise ValueError(
            f"{output_dir} holds files but no begun.json, so it is no run's folder: name another output_dir"
        )
    write_json(output_dir / "begun.json", {"fingerprint": None, "tries": 0})
    (output_dir / "run.json").unlink(missing_ok=True)
    for path in output_dir.iterdir():
        if path.name in ("begun.json", keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def finish(output_dir: Path, fingerprint: str, **record: Any) -> None:
    """Write `run.json`, in one rename: from then on the run is done.

    Beside what the caller records (`config`, `parent`, `inputs`, `seed`, its own figures) it holds the stage's name,
    versions, `seconds` of the try that finished it, `tries`, and `peak_rss_gb` of this process and its largest child.
    """
    output_dir = Path(output_dir)
    begun = _read_json(output_dir / "begun.json") or {}
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    found = {dist: _version(dist) for dist in RECORDED_VERSIONS}
    filled = {
        "stage": output_dir.name,
        "fingerprint": fingerprint,
        "versions": {"python": sys.version.split()[0]} | {dist: version for dist, version in found.items() if version},
        "seconds": round(time.time() - begun.get("begun", time.time()), 2),
        "tries": begun.get("tries", 1),
        "peak_rss_gb": round(sum(usage) * unit / 2**30, 3),
    }
    write_json(output_dir / "run.json", filled | record)


def forget(output_dir: Path) -> None:
    """Make the run count as not begun: the next one with any fingerprint starts afresh."""
    if Path(output_dir).is_dir():
        _wipe(Path(output_dir))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_done(output_dir: Path, fingerprint: str) -> bool:
    """Is the run with this fingerprint finished?"""
    return (_read_json(Path(output_dir) / "run.json") or {}).get("fingerprint") == fingerprint


def read(run: Path) -> dict[str, Any]:
    """The record of a finished run. Raises MissingRunError when it is not finished."""
    record = _read_json(Path(run) / "run.json")
    if record is None:
        scale, stage = Path(run).parts[-2:] if len(Path(run).parts) > 1 else ("cpu", str(run))
        command = f"python -m recipes.tools.pipeline --scale {scale} --only {stage}"
        raise MissingRunError(f"{run} has not been run (it has no run.json): run `{command}` first")
    return record


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not of ours, which are written whole
        raise ConfigError(f"{path} cannot be read ({error}): delete it, and its run is made again") from None


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into, which appears at ``path`` whole or not at all, whoever else writes the same one and also
    when the machine stops. What a kill leaves of it is removed when the run begins again."""
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
    """Write a JSON file whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1, default=str).encode() + b"\n")
