"""A run is a folder that belongs to a stage, a data job or an evaluation. It is finished when its `run.json` exists.

`outputs/<scale>/<stage>/` holds the stage's own files and two records:

- `begun.json` is written first. It identifies the run, so that a killed run resumes only from its own files.
- `run.json` is written last, by one rename. It records what was run, with which inputs and code. A folder without it is
  unfinished.

A run is identified by its settings and inputs (`identity`). One process at a time works in a folder. Trained files are
never deleted or overwritten. If a folder holds a run with other settings or inputs, it stays as it is, and `--redo`
moves it to `replaced/` beside it. Nothing here imports torch, so that it is fast to check what is left to do.
"""

import dataclasses
import difflib
import importlib.metadata
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from data_prep.runs import files, identity, memory
from data_prep.runs.configs import ConfigError, load_config, settings
from data_prep.runs.files import whole_file, write_json
from data_prep.runs.identity import OUTPUTS, PUBLISHING, ROOT, Identity
from data_prep.runs.publishing import Publishing

__all__ = [
    "OUTPUTS",
    "PUBLISHING",
    "ROOT",
    "ConfigError",
    "Identity",
    "load_config",
    "settings",
    "whole_file",
    "write_json",
]
RECORDED_VERSIONS = ("torch", "trl", "transformers", "peft", "datasets", "accelerate")
REPLACED = "replaced"  # the folder beside a run's own folder to which old runs are moved
KEPT = (".safetensors", ".parquet")  # suffixes of files that a finished run must keep
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
KNOWN_AS = {"r1": "all_scenarios_rl", "student_distilled": "distill"}  # name in the report and the paper: its stage
PASSING = ("samples", "work", "completions")  # folders whose files need not be kept


class MissingRunError(FileNotFoundError):
    """A required run does not exist. The message names the command that makes it."""


class Stopped(RuntimeError):
    """Work stopped before it was finished. The message says why; the same command resumes it."""


class Busy(Stopped):
    """Another process works in the run's folder. The message says which."""


class EngineError(Stopped):
    """Tasks of data_prep.engine did not finish, or their output is unusable. The message says which, why, and where to
    look."""


def is_here(place: str) -> bool:
    """Whether a setting is a local path rather than a Hub id (owner/name)."""
    is_id = HUB_ID.fullmatch(place) and not place.startswith(OUTPUTS) and not place.endswith(identity.ROWS)
    return not is_id or Path(place).exists()


def require_model(place: str) -> None:
    """Raises FileNotFoundError for a path without a model. Hub ids are checked by `data_prep.hub.find`."""
    if is_here(place) and not (Path(place) / "config.json").is_file():
        lacks = "no config.json" if Path(place).is_dir() else "there is no such folder here"
        raise FileNotFoundError(f"{place} holds no checkpoint ({lacks}){advice(place)}")


def require_rows(config: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError, with `where`, for a file of rows that a config names and that does not exist. Files in
    `outputs/` may be made later."""
    for text in identity.texts(config):
        if text.endswith(identity.ROWS) and not text.startswith(OUTPUTS) and not re.search(r"[\s*]|://", text):
            parts = Path(text).parent.glob(f"{Path(text).stem}-*-of-*")
            if not os.path.exists(text) and not any(parts):
                raise ConfigError(f"{where}: {text}: no such file")


def advice(path: str | Path) -> str:
    """The end of an error message about a missing path: the step that makes it, if a scale has such a step, or a
    similar name that may have been meant."""
    scale, name = [*Path(path).parts[1:3], "", ""][:2]
    if not str(path).startswith(OUTPUTS) or not name:
        return "" if "/" in str(path) or Path(path).suffix else "; a Hub id is owner/name"
    configs = {one.stem: one for one in sorted((ROOT / "recipes" / "configs" / scale).glob("*.yaml"))}
    measured = load_config(configs.pop("evaluate"))["checkpoints"] if "evaluate" in configs else ()
    if name in configs or name in [f"evaluate_{one}" for one in measured]:
        return f": run `python -m recipes.tools.pipeline --scale {scale} --only {name}` first"
    if not configs:
        there = sorted(one.name for one in Path(path).parent.glob(f"*{Path(path).suffix}"))
        return (
            f"; that folder has {', '.join(there)}" if there else f"; there is no scale {scale}: name an existing path"
        )
    if KNOWN_AS.get(name) in configs:
        return f"; {name} lies in {OUTPUTS}{scale}/{KNOWN_AS[name]}"
    if near := difflib.get_close_matches(name, configs, n=1):
        return f"; did you mean {OUTPUTS}{scale}/{near[0]}?"
    return f"; the steps of {scale} are {', '.join(configs)}"


def slug(place: str) -> str:
    """A path or Hub id in a form that can be part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", place).strip("-.")


# A run's folder


def inputs(config: Mapping[str, Any]) -> list[Path]:
    """The distinct runs that a config reads, in order. Every text value that starts with `outputs/` names a run, except
    `output_dir`: `outputs/cpu/world/corpus.parquet` names the run `outputs/cpu/world`.
    """
    own = str(config.get("output_dir", "")).rstrip("/")
    texts = identity.texts({key: value for key, value in config.items() if key not in identity.IGNORED})
    found = dict.fromkeys(_run_of(Path(text)) for text in texts if text.startswith(OUTPUTS))
    return [run for run in found if run is not None and str(run) != own]


def _run_of(path: Path) -> Path | None:
    """The run whose folder contains, or will contain, a path of `outputs/`; None for a path that no run makes."""
    for one in (path, *path.parents):
        if one.parts and any(os.path.isfile(one / name) for name in ("run.json", "begun.json")):
            return one
    run = Path(*path.parts[:3])
    return None if os.path.exists(path) and (run.is_file() or _lies_there(run)) else run


def identify(
    script: Path,
    config: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Identity:
    """The identity of the run of `script` with the settings of a YAML and the `overrides` of the command line, if any.

    Raises MissingRunError if a run that it reads has not been run.
    """
    said = {key: value for key, value in (overrides or {}).items() if value is not None}
    return identity.identify(dict(config) | said, script, _maker, defaults)


def _maker(path: Path) -> tuple[Path, str] | None:
    """The finished run whose folder contains a path, and its id."""
    run = _run_of(path)
    if run is None:
        return None
    record = read(run)
    return run, record.get("id") or record.get("fingerprint", "")  # older records have a fingerprint instead of an id


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a run's folder for an identity. `kind` is one of:

    - "absent": nothing trained or finished is in the folder;
    - "unfinished": the same run was interrupted;
    - "done": the same run is finished and all its files exist;
    - "incomplete": the same run is finished, but files are missing, as `why` says;
    - "changed": a finished run or its checkpoints have other settings or inputs, which `why` names.

    `older_code`: the code version that made a "done" run, if that is not the current version; else "".
    """

    kind: Literal["absent", "unfinished", "done", "incomplete", "changed"]
    why: tuple[str, ...] = ()
    older_code: str = ""


def look(output_dir: Path, now: Identity) -> State:
    """The state of a run's folder for the identity `now`."""
    output_dir = Path(output_dir)
    try:
        record, begun = (_read_json(output_dir / name) for name in ("run.json", "begun.json"))
    except ConfigError as error:
        return State("changed", (str(error),))
    held = record or begun
    if held is None:
        return State("absent")
    then = identity_of(held)
    # The record of a stage has no nested settings. A data job records all nested settings in `config`.
    why = identity.changes(then, now, held.get("config") or {}, nested="hardware" not in held)
    if record is None:
        if "settings" not in held:
            why = ["it was begun by an earlier version of this project, which did not record its settings"]
        if why:
            return State("changed", tuple(why)) if _is_trained(output_dir) else State("absent")
        return State("unfinished")
    if why:
        return State("changed", tuple(why))
    if lacks := lacking(output_dir, record):
        return State("incomplete", (lacks,))
    made = then.code.get("hash", "unknown")
    return State("done", older_code="" if made == now.code["hash"] else then.code.get("commit") or made)


def identity_of(held: Mapping[str, Any]) -> Identity:
    """The identity in a record. It is empty if an earlier version of this project wrote the record."""
    return Identity(**{field.name: held.get(field.name) or {} for field in dataclasses.fields(Identity)})


def _is_trained(output_dir: Path) -> bool:
    """Whether an unfinished folder holds a checkpoint or a model."""
    return any(next(output_dir.rglob(pattern), None) for pattern in ("checkpoint-*", "*.safetensors"))


def carry_out(
    output_dir: Path, now: Identity, hub: Publishing, redo: bool, work: Callable[[], Mapping[str, Any]]
) -> int:
    """The life of a run in one process: begin it, do its `work`, finish it with the record that `work` returns, and
    publish it. For a finished run, only the publishing is done, unless that is done as well. Returns an exit status."""
    if begin(output_dir, now, redo) == "done":
        files.log.info("%s is done already", output_dir)
    else:
        record = work()
        finish(output_dir, **record, inputs=[str(path) for path in inputs(record["config"])])
    return hub.publish(output_dir)


def begin(output_dir: Path, now: Identity, redo: bool = False) -> Literal["done", "resume", "fresh"]:
    """Lock the folder for this run until the process ends. Unless the run is done, begin it: `hold`, then `take`."""
    state = hold(output_dir, now, redo)
    if state != "done":
        take(output_dir, now, state)
    return state


def hold(output_dir: Path, now: Identity, redo: bool = False) -> Literal["done", "resume", "fresh"]:
    """Lock the folder until this process ends, and return what to do. Nothing in the folder is changed.

    "done": the run is finished. "resume": an earlier attempt was interrupted, and its files are there. "fresh": the run
    begins in an empty folder. Without `redo`, "fresh" is returned only if nothing was trained or finished there. With
    `redo` it is always returned, except for an unfinished run with the same identity. Raises Busy while another process
    works there. Raises ConfigError, which names the differences and the remedy, for a folder that must not be changed.
    """
    output_dir = Path(output_dir)
    if who := files.hold(output_dir):
        raise Busy(
            f"{output_dir} is in use by {who}. Wait until that has ended, or end it, or write another output_dir"
        )
    identity.remember()
    found = look(output_dir, now)
    if found.kind == "done" and not redo:
        return "done"
    if found.kind == "unfinished":
        return "resume"
    if found.kind in ("changed", "incomplete") and not redo:
        raise ConfigError(refusal(output_dir, found))
    if _lies_there(output_dir) and not any((output_dir / name).exists() for name in ("begun.json", "run.json")):
        raise ConfigError(
            f"output_dir: {output_dir} holds files but no begun.json, so it is no run's folder. Write another one."
        )
    return "fresh"


def _lies_there(output_dir: Path) -> bool:
    """Whether the folder contains a file. A trainer creates empty folders before it begins; they do not count."""
    return any(path.is_file() and not path.match(".begun.json.*.partial") for path in output_dir.rglob("*"))


def take(output_dir: Path, now: Identity, state: str, since: float | None = None) -> None:
    """Begin the run in a folder that `hold` has locked, now or at the time `since`. For a "fresh" run, old files are
    moved aside, except `samples/`, which stays usable: the key of a sample contains everything that it was drawn from.
    """
    output_dir = Path(os.path.realpath(output_dir))
    since = since or time.time()
    if state == "resume":
        begun = _read_json(output_dir / "begun.json") or {}
        for partial in output_dir.rglob(".*.partial"):
            partial.unlink(missing_ok=True)
        write_json(output_dir / "begun.json", begun | {"begun": since, "tries": begun["tries"] + 1})
    else:
        if any((output_dir / name).exists() for name in ("begun.json", "run.json")):
            set_aside(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        record = dataclasses.asdict(now) | {"id": uuid.uuid4().hex, "begun": since, "tries": 1}
        write_json(output_dir / "begun.json", record)
    kept = sorted((output_dir.parent / REPLACED).glob(f"{output_dir.name}-[0-9][0-9][0-9][0-9]-*/samples"))
    if kept and not (output_dir / "samples").exists():
        kept[-1].rename(output_dir / "samples")


def refusal(output_dir: Path, found: State) -> str:
    """The message that says why a folder is not changed, and what the user can do: redo, or choose another folder."""
    output_dir = Path(output_dir)
    if found.kind == "incomplete":
        held = f"{output_dir} holds this run, finished, but {found.why[0]}. Copy it there again; or"
    else:
        what = "a finished run" if (output_dir / "run.json").exists() else "checkpoints of a run"
        differs = "; ".join(found.why)
        held = f"{output_dir} holds {what} with other settings or inputs: {differs}. It stays as it is. Either"
    return (
        f"{held} add `--redo`, which moves the folder to {output_dir.parent / REPLACED}/ and runs this anew (runs that "
        "were made from it stay, and count as changed; `python -m recipes.tools.runs "
        f"{output_dir.parent}` lists all runs, and its `--remove` deletes a replaced one); or write another output_dir."
    )


def set_aside(output_dir: Path) -> Path:
    """Move a run's folder to `replaced/` beside it, under a name with the time, and return its new path."""
    folder = Path(os.path.realpath(output_dir))
    name = f"{folder.name}-{time.strftime('%Y-%m-%dT%H-%M-%S')}"
    aside = folder.parent / REPLACED / name
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    try:
        aside.parent.mkdir(exist_ok=True)
        folder.rename(aside)
    except OSError as error:  # the folder is a mount, or its parent is read-only
        raise Stopped(f"{folder} cannot be moved to {aside} ({error}); write another output_dir") from error
    files.log.info("what was in %s is in %s now", output_dir, aside)
    return aside


def finish(output_dir: Path, models: Iterable[str] = (), **record: Any) -> None:
    """Write `run.json`, by one rename. From then on, the run is done.

    `models` are the folders below output_dir ("": itself) that now hold a model. Raises Stopped if one of them lacks
    its config, tokenizer or weights. In addition to the caller's `record` (`config`, `parent`, `inputs`, `seed` and
    figures), the file holds the run's id and identity, the files that it made, the stage's name, versions, `seconds` of
    the last attempt, the number of attempts (`tries`), and `peak_rss_gb` of this process or its largest child.
    """
    output_dir = Path(output_dir)
    for name in models:
        if fault := files.model_fault(output_dir / name):
            raise Stopped(f"{output_dir / name} was to hold the trained model, but {fault}")
    begun = {"id": uuid.uuid4().hex} | (_read_json(output_dir / "begun.json") or {})
    found = {dist: _version(dist) for dist in RECORDED_VERSIONS}
    filled = {
        "stage": output_dir.name,
        "versions": {"python": sys.version.split()[0]} | {dist: version for dist, version in found.items() if version},
        "seconds": round(time.time() - begun.pop("begun", time.time()), 2),
        "tries": begun.pop("tries", 1),
        "peak_rss_gb": round(memory.peak() / 2**30, 3),
        "models": list(models),
        "made": {str(path.relative_to(output_dir)): path.stat().st_size for path in _promised(output_dir)},
    }
    if taken := (begun | filled).keys() & record.keys():
        raise ValueError(
            f"{', '.join(sorted(taken))}: run.json has these keys of its own; record it under another name"
        )
    write_json(output_dir / "run.json", begun | filled | record)


def _promised(output_dir: Path) -> list[Path]:
    """The files that a finished run promises to keep: its weights and rows."""

    def is_passing(path: Path) -> bool:
        parts = path.relative_to(output_dir).parts
        return any(part in PASSING or part.startswith((".", "checkpoint-")) for part in parts)

    found = (path for path in output_dir.rglob("*") if path.suffix in KEPT and path.is_file())
    return [path for path in found if not is_passing(path)]


def lacking(output_dir: Path, record: Mapping[str, Any]) -> str:
    """A description of the missing files of a finished run; "" if all files exist."""
    output_dir = Path(output_dir)
    models = record.get("models")
    if models is None and "hardware" in record:  # a stage's record from an earlier version of this project
        models = [path.parent.name for path in output_dir.glob("*/log.jsonl")] or [""]
    for name in models or ():
        if fault := files.model_fault(output_dir / name):
            return f"{name}: {fault}" if name else fault
    for name, size in (record.get("made") or {}).items():
        path = output_dir / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def read(run: Path) -> dict[str, Any]:
    """The record of a finished run. Raises MissingRunError if it is not finished."""
    record = _read_json(Path(run) / "run.json")
    if record is None:
        why = "it has no run.json" if os.path.isdir(run) else "there is no such folder"
        raise MissingRunError(f"{run} has not been run ({why}){advice(run)}")
    return record


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # not written by this project, which writes whole files
        raise ConfigError(f"{path} cannot be read ({error})") from None
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} cannot be read (it holds no record)")
    return found
