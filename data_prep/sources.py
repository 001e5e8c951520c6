"""Open data sets: their records in, rows of the contract out, and nothing dropped in silence.

`python -m data_prep.sources --config <yaml>` converts each data set of the Hub, or local file with the same schema,
into one Parquet file of rows. With ``traces: true``, a row's ``completion`` is a reasoning trace from its data set, so
that the 800k can be built without a teacher; otherwise, rows are prompts. Each gold answer is verified against itself,
and each test set is parsed. Each refused record is a line of ``<name>.quarantine.jsonl`` with its file, its number
(from 0) and the reason; run.json has the counts.

`data_prep.catalogue` has the data sets, and converts their records.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rewards
from data_prep import engine, jobs, rows, shards
from data_prep.catalogue import DEFAULTS, SOURCES, Refused, Source, question_and_answer, turn_texts
from data_prep.rows import Row
from data_prep.runs import advice, commands, whole_file, write_json
from rewards.settings import Count

import pyarrow as pa

log = logging.getLogger(__name__)
KEPT = 5_000  # bytes of zstd Parquet for a trace of 10 kB; a prompt alone is a tenth
RATE = 2_500  # records of 10 kB a second on one core, measured with traces of mathematics
EXTRA = ("source_id", "revision")  # columns after the contract's
PROMPT_COLUMNS = (*rows.COLUMNS, *rows.RULES, *EXTRA)
TRACE_COLUMNS = (*rows.COLUMNS, "completion", "generator", "verified_by", *EXTRA)


def schema(columns: Iterable[str]) -> pa.Schema:
    types = {"thinking": pa.bool_(), "pass_rate": pa.float64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in columns])


@dataclass(frozen=True)
class Rejection:
    """Record ``row`` (from 0) of ``file``, refused for ``reason``."""

    file: str
    row: int
    reason: str


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A source by its ``name`` in `SOURCES`, or "rows" for files that already follow the contract.

    ``local``: a .parquet, .jsonl or .jsonl.gz file, or a folder of them, in the source's schema, to read instead of the
    Hub. ``revision``: a commit of the Hub instead of the table's. ``limit``: the maximum number of records (0: all).
    """

    name: str
    local: str = ""
    revision: str = ""
    limit: Count = 0

    def __post_init__(self) -> None:
        if self.name != "rows" and self.name not in SOURCES:
            raise ValueError(f"source {self.name!r} is not known; write rows or one of {', '.join(SOURCES)}")
        if self.name == "rows" and not self.local:
            raise ValueError("source 'rows' has no `local`; write the file or folder that holds the rows")

    @property
    def label(self) -> str:
        """The name of the output files: the source's name and, for "rows", that of the local file or folder."""
        return self.name if self.name != "rows" else f"rows-{Path(self.local).stem}"


def checked(wanted: list[Wanted], traces: bool, limit: int = 0) -> list[Wanted]:
    """Return the sources with at most ``limit`` records each (0: their own limits). Errors in the config or a missing
    file are raised here, before any records are read."""
    if not wanted:
        raise ValueError(f"`sources` is empty; write `- name: ...` with rows or one of {', '.join(SOURCES)}")
    labels = [one.label for one in wanted]
    for one in wanted:
        if labels.count(one.label) > 1:
            raise ValueError(f"`sources`: {one.label} is listed twice")
        if traces and one.name != "rows" and SOURCES[one.name].trace is None:
            raise ValueError(f"`sources`: {one.name} has no traces; its prompts are for data_prep.rl_prompts")
        if one.local:
            _files(one.local)
    return [replace(one, limit=limit or one.limit) for one in wanted]


def read(wanted: Wanted, traces: bool) -> Iterator[Row | Rejection]:
    """Yield each record of a source, in order, as a row (with ``completion`` if ``traces``) or a rejection."""
    seen: dict[int, int] = {}
    source = SOURCES.get(wanted.name)
    for at, (file, number, record) in enumerate(_records(wanted, source)):
        if isinstance(record, str):
            yield Rejection(file, number, f"unreadable: {record}")
            continue
        try:
            row = _row(wanted, source, at, record, traces) if source else _own(record, traces)
            first = seen.setdefault(hash(row["id"]), at)
            if first != at:
                raise Refused(f"duplicate id: {row['id']!r} is also the id of record {first}")
        except Refused as error:
            yield Rejection(file, number, str(error))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            yield Rejection(file, number, f"schema: {type(error).__name__}: {error}")
        else:
            yield row


def _records(wanted: Wanted, source: Source | None) -> Iterator[tuple[str, int, dict | str]]:
    """Yield (file, number from 0, record or the reason why there is none)."""
    if wanted.local:
        parts = shards.parts(_files(wanted.local))
        found = ((part.path, number, record) for part in parts for number, record in shards.records(part))
    else:
        found = _hub(source, wanted.revision or source.revision)
    for at, one in enumerate(found):
        if wanted.limit and at >= wanted.limit:
            return
        yield one


def _files(local: str) -> list[str]:
    path = Path(local)
    found = map(str, sorted(path.iterdir())) if path.is_dir() else shards.files(local)
    found = [file for file in found if file.endswith((".parquet", ".jsonl", ".jsonl.gz")) and Path(file).is_file()]
    if not found:
        there = path.is_dir() or path.is_file()
        fault = "it has no .parquet, .jsonl or .jsonl.gz file" if there else f"no such file or folder{advice(path)}"
        raise FileNotFoundError(f"{local}: {fault}")
    return found


def _hub(source: Source, revision: str) -> Iterator[tuple[str, int, dict]]:
    from data_prep import hub

    from datasets import load_dataset  # slow to import

    if not revision:
        log.warning("%s: no revision is pinned; write `revision: <commit>` beside its name", source.hub_id)
    place, number = f"{source.hub_id}@{revision or 'main'}", 0
    try:
        where = {"split": "train", "revision": revision or None, "streaming": True}
        instead = "write `local: FILE` beside its name"
        stream = hub.find(
            source.hub_id, lambda: load_dataset(source.hub_id, source.subset, **where), "dataset", instead
        )
        for number, record in enumerate(stream):
            yield place, number, record
    except pa.ArrowException as error:  # a file is corrupt on the Hub, or was truncated in transit
        raise OSError(f"{place}: not readable after record {number}: {str(error).splitlines()[0]}") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(wanted: Wanted, source: Source, at: int, record: dict, traces: bool) -> Row:
    found = source.prompt(record)
    row = DEFAULTS | {"source": source.hub_id, "license": source.license, "source_id": str(at)} | found
    row["id"] = f"{wanted.name}-{row['source_id']}"
    row["revision"] = "local" if wanted.local else wanted.revision or source.revision or "main"
    row["prompt"] = row["question"]
    if not isinstance(row["question"], str):
        raise Refused(f"contract: the question is {type(row['question']).__name__}, must be str")
    row["language"] = rewards.detect_language(row["question"])
    if traces:
        row |= {"completion": _completion(source.trace(record), row["thinking"]), "generator": source.generator}
    return _verified(row, traces)


def _own(record: dict, traces: bool) -> Row:
    """The row of a record that should already follow the contract. A test set may be JSON or a JSON string. Messages
    are converted to text if they are one question and its answer."""
    row = dict.fromkeys(rows.RULES, "") | {"generator": "", "source_id": record.get("id"), "revision": "local"} | record
    for column in ("messages", "conversations"):
        if isinstance(record.get(column), list):
            row["prompt"], row["completion"] = question_and_answer(record[column])
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(column), list):
            row[column] = turn_texts(record[column], role)[0]
    if record.get("system"):
        raise Refused(f"system: {rows.CHAT.partition(';')[0]}")
    row.setdefault("question", row.get("prompt"))
    if not isinstance(row["tests"], str):
        row["tests"] = json.dumps(row["tests"], ensure_ascii=False) if row["tests"] else ""
    return _verified(row, traces)


def _completion(text: str, thinking: bool) -> str:
    """A trace as `<think>reasoning</think>` and the summary, or only the text if ``thinking`` is false. Raises Refused
    for any other form."""
    text = text.strip()
    whole = f"<think>{text}" if thinking and "<think>" not in text else text  # a template may have opened the tag
    if not rewards.is_well_formed(whole, "think", thinking):
        raise Refused("trace: not one reasoning in think tags with a summary after it")
    parts = rewards.parse(whole)
    return f"<think>{parts.reasoning}</think>\n{parts.summary}" if thinking else whole


def _verified(row: Row, traces: bool) -> Row:
    """The row with its final columns. Raises Refused if it is invalid or its gold answer cannot be verified."""
    fault = rows.fault(row, traces)
    if fault:
        raise Refused(f"contract: {fault}")
    if row["verifier"] in ("math", "choice", "gym"):
        wrong = rewards.gold_error(row["answer"], row["verifier"], row["entry"])
        if wrong:
            raise Refused(f"gold: {wrong}")
    elif row["verifier"] == "code" and (row["tests"] or not row["answer"]):
        try:
            rewards.parse_tests(row["tests"])
        except (ValueError, TypeError) as error:
            raise Refused(f"tests: {error}") from error
    if traces:
        graded = row["verifier"] in ("math", "choice", "gym")
        rule = row["answer"], row["verifier"], row["entry"]
        if graded and not rewards.is_correct(row["completion"], *rule):
            raise Refused(f"trace: it does not answer {row['answer']!r}")
        row["verified_by"] = "rule" if graded else ""
    return {name: row[name] for name in (TRACE_COLUMNS if traces else PROMPT_COLUMNS)}


# --- writing ----------------------------------------------------------------------------------------------------------


def convert(wanted: Wanted, folder: Path, traces: bool) -> tuple[Path, dict[str, Any]]:
    """Write ``<label>.parquet`` and ``<label>.quarantine.jsonl`` to a folder and return (the Parquet file, its counts).

    A source whose files exist is not read again. Raises NoRowsError if no record gives a row.
    """
    path, done = folder / f"{wanted.label}.parquet", folder / f"{wanted.label}.json"
    if done.is_file():
        return path, json.loads(done.read_text(encoding="utf-8"))
    reasons: Counter[str] = Counter()
    first = ""
    with whole_file(folder / f"{wanted.label}.quarantine.jsonl") as quarantine:

        def kept() -> Iterator[Row]:
            nonlocal first
            for found in commands.progress(read(wanted, traces), wanted.label, wanted.limit or None):
                if isinstance(found, Rejection):
                    reasons[found.reason.partition(":")[0]] += 1
                    first = first or f"{found.file}, record {found.row}: {found.reason}"
                    line = {"file": found.file, "row": found.row, "reason": found.reason}
                    quarantine.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                else:
                    yield found

        count = rows.write_stream(path, kept(), schema(TRACE_COLUMNS if traces else PROMPT_COLUMNS))
    counts = {"rows": count, "refused": reasons.total(), "reasons": dict(sorted(reasons.items()))}
    log.info("%s: %d rows, %d records refused %s", wanted.label, count, reasons.total(), counts["reasons"] or "")
    if not count:
        raise rows.NoRowsError(f"{wanted.label}: no record gives a row. {first}")
    write_json(done, counts)
    return path, counts


def convert_all(wanted: list[Wanted], folder: Path, traces: bool, where: engine.Executor) -> dict[str, dict[str, Any]]:
    """Run ``convert`` for each source as a separate task, and return the counts by label."""
    task = engine.Task(functools.partial(_convert_one, wanted, folder, traces))
    engine.run([task], len(wanted), folder / "work", where)
    engine.discard(folder / "work")
    return {one.label: convert(one, folder, traces)[1] for one in wanted}


def _convert_one(wanted: list[Wanted], folder: Path, traces: bool, rank: int, tasks: int) -> None:
    convert(wanted[rank], folder, traces)


# --- the job ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sources(jobs.Job):
    """``traces``: rows with a completion, for an SFT mixture; else prompts. ``limit``: most records of each source."""

    sources: list[Wanted]
    traces: bool = True
    distributed = True


def load(config: Sources) -> dict[str, list]:
    return {"sources": checked(config.sources, config.traces, config.limit)}


def plan(config: Any, sources: list[Wanted]) -> list[str]:
    """One line for each source (name, origin, size, licence), then one for the total work."""
    lines, total = [], 0
    for one in sources:
        if one.local:
            found = shards.parts(_files(one.local))
            total += sum(max(part.rows, 0) for part in found)
            lines.append(f"{one.label}: from {one.local}, {shards.described(found)}")
            continue
        source = SOURCES[one.name]
        count = min(one.limit or source.rows, source.rows)
        total += count
        place = f"{source.hub_id} {source.subset or ''}@{one.revision or source.revision or 'main'}"
        lines.append(f"{one.label}: {count:,} records of {place}, {source.license}")
    disk = total * (KEPT if getattr(config, "traces", False) else KEPT / 10) / 2**30
    work = f"about {total / RATE / 60:,.0f} minutes of one core beside the download, up to {disk:,.1f} GB of disk"
    return [*lines, f"{total:,} records, {work}"]


def build(config: Sources, output_dir: Path, sources: list[Wanted]) -> dict[str, object]:
    figures = convert_all(sources, output_dir, config.traces, config.executor)
    return {"rows": sum(counts["rows"] for counts in figures.values()), "sources": figures}


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
