"""A row is the record that every data job reads and writes. The rewards receive its columns as arguments.

Rows are stored as Parquet. ``COLUMNS`` come first, in this order; SFT rows add ``completion`` (the full assistant
text), and a job may add further columns after these. In the toy world, ``prompt`` (the user's message) equals
``question`` (used to detect the language). ``answer`` is the gold answer, or "" if there is none. For a code row, it is
the output that the program must print. A row with verifier "gym" has the inputs of reasoning-gym's scorer in ``task``
and ``entry``; with verifier "judge", its answer is a reference that only a generative judge can compare with.
docs/rejection_sampling.md says how conversations and system prompts are handled.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.runs import Stopped, advice, is_here, whole_file

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "id": str,
    "question": str,
    "prompt": str,
    "answer": str,
    "kind": ("reasoning", "helpful", "harmless"),
    "domain": ("math", "code", "stem", "logic", "general"),
    "language": ("en", "zh"),
    "verifier": ("math", "choice", "code", "gym", "judge", "none"),
    "thinking": bool,
    "source": str,
    "license": str,
}
RULES = ("tests", "task", "entry")  # text that rules read beside `answer`; optional
Row = dict[str, Any]
CHUNK = 1_000  # rows read or written at a time
CHATS = ("messages", "conversations", "system")  # columns of a conversation, which is not a valid row
CHAT = (
    "a row has room for one question and one answer, as text, and for no system prompt; the source `rows` of "
    "data_prep.sources makes rows of messages"
)


# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0",
    "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "gemma", "unknown", "other",
}  # fmt: skip
# Licences that allow commercial use. Any other licence, or none, is taken not to allow it.
COMMERCIAL = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "odc-by", "cdla-permissive-2.0",
}  # fmt: skip


def hub_license(stated: str) -> str | None:
    """The Hub's identifier of a licence, given by that identifier, by SPDX or by its short name; None if unknown.

    "Apache License 2.0" is apache-2.0, "GPL-3.0-or-later" and "GNU GPLv3+" are gpl-3.0, "ODC-By-1.0" is odc-by.
    """
    name = re.sub(r"[\s_]+", "-", stated.strip().lower()) or "unknown"
    short = re.sub(r"\b(the|gnu|licen[sc]e|version)\b|,", "", name)
    short = re.sub(r"(?<=[a-z])-*v\.?-?(?=\d)", "-", short)
    short = re.sub(r"-(only|or-later)$|(?<=\d)\+$", "", re.sub(r"-+", "-", short).strip("-"))
    apart = re.sub(r"(?<=[a-z])(?=\d)", "-", short)  # apache2.0
    family = re.sub(r"^(odc-by|odbl|pddl|gfdl|l?gpl|c-uda)-\d\.\d$", r"\1", short)  # the Hub has no version of it
    found = (name, short, apart, f"{short}.0", f"{apart}.0", family, "cc0-1.0" if short == "cc0" else "")
    return next((one for one in found if one in HUB_LICENSES), None)


def commercial(license: str) -> bool:
    """Whether the licence of a row is known to allow commercial use."""
    return hub_license(license) in COMMERCIAL


def fault(row: Row, sft: bool = False) -> str | None:
    """The first error in a row (a missing column, a wrong type or value, an empty id, question, prompt or completion),
    or None if it follows the contract."""
    required = COLUMNS | ({"completion": str} if sft else {})
    for column, allowed in required.items():
        place = f"column '{column}'"
        if column not in row:
            chat = next((name for name in CHATS if name in row), None)
            return f"column '{chat}': {CHAT}" if chat else f"{place}: missing; a row has {', '.join(required)}"
        value = row[column]
        if isinstance(allowed, tuple):
            if value not in allowed:
                return f"{place}: {value!r} is not one of {', '.join(allowed)}"
        elif isinstance(value, list) and column in ("question", "prompt", "completion"):
            return f"{place}: a list; {CHAT}"
        elif not isinstance(value, allowed):
            return f"{place}: {value!r} is {type(value).__name__}, must be {allowed.__name__}"
        if value == "" and column in ("id", "question", "prompt", "completion"):
            return f"{place}: empty"
    for column in RULES:
        if not isinstance(row.get(column), str | None):
            return f"column '{column}': {row[column]!r:.60} is {type(row[column]).__name__}, must be text"
    return f"column 'system': {CHAT}" if row.get("system") else None


def validate(rows: list[Row], where: str, sft: bool = False) -> None:
    """Raises ValueError with ``where``, the row's number and the column for the first error, which is a ``fault`` of a
    row or a repeated id."""
    seen: dict[object, int] = {}
    for number, row in enumerate(rows):
        found = fault(row, sft)
        if found:
            raise ValueError(f"{where}, row {number}, {found}")
        if row["id"] in seen:
            raise ValueError(f"{where}, row {number}, column 'id': row {seen[row['id']]} has {row['id']!r}, too")
        seen[row["id"]] = number


def local_files(source: str | Path) -> list[Path] | None:
    """The Parquet files of a source, or None for a Hub id. Raises FileNotFoundError for a path that does not exist."""
    path = Path(source)
    if path.suffix == ".parquet":
        return parquet_files(path)
    if is_here(str(source)):
        fault = "" if path.exists() else "no such file, and "
        raise FileNotFoundError(
            f"{source}: {fault}not a Parquet file; write the path of a .parquet file, or a Hub id, which is owner/name"
        )
    return None


def load_rows(source: str | Path, split: str = "train", sft: bool = False, without: tuple[str, ...] = ()) -> list[Row]:
    """The rows of a Parquet file, or of a Hub dataset ("owner/name") whose columns follow the contract. ``without``:
    columns of a file to leave out.

    Raises FileNotFoundError for a path that does not exist and ValueError for an invalid file or row.
    """
    if local_files(source):
        rows = read_parquet(source, without)
    else:
        from data_prep import hub

        from datasets import load_dataset  # slow to import, and only needed for the Hub

        rows = hub.find(str(source), lambda: load_dataset(str(source), split=split), "dataset").to_list()
    if not rows:
        raise ValueError(f"{source} has no rows")
    validate(rows, str(source), sft)
    return rows


def sft_row(row: Row, number: int, completion: str, generator: str) -> Row:
    """The training row for the ``number``th completion of a prompt; ``generator`` is the model that wrote it. The row
    keeps the columns that rules read, so that other answers to the prompt can be graded."""
    first = {name: row[name] for name in COLUMNS} | {"id": f"{row['id']}-{number}"}
    rules = {name: row[name] for name in RULES if row.get(name)}
    return first | {"completion": completion, "generator": generator} | rules


def parquet_files(path: str | Path) -> list[Path]:
    """The file itself or, if there is no ``train.parquet``, ``train-00000-of-00012.parquet`` and so on. Raises
    ValueError if these are not exactly the parts of one data set."""
    path = Path(path)
    shards = sorted(path.parent.glob(f"{path.stem}-[0-9]*-of-[0-9]*.parquet"))
    if path.is_file() and not shards:
        return [path]
    if not shards:
        raise FileNotFoundError(f"{path}: no such file{advice(path)}")
    names = [shard.name for shard in shards]
    if path.is_file() or names != [f"{path.stem}-{at:05d}-of-{len(names):05d}.parquet" for at in range(len(names))]:
        there = ", ".join([path.name] * path.is_file() + names)
        raise ValueError(
            f"{path}: {path.parent} holds {there}, which are not all parts of one data set and nothing else; delete "
            "those of an earlier run, or run its stage again"
        )
    return shards


def part_names(count: int) -> list[str]:
    """File names for a data set in ``count`` parts, which `parquet_files` and the Hub read as one."""
    return [f"train-{at:05d}-of-{count:05d}.parquet" for at in range(count)] if count > 1 else ["train.parquet"]


def stream(files: Iterable[Path], columns: list[str] | None = None) -> Iterator[Row]:
    """Yield the records of Parquet files in order, with one batch in memory at a time."""
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(CHUNK, columns=columns):
                yield from batch.to_pylist()


def read_parquet(path: str | Path, without: tuple[str, ...] = ()) -> list[Row]:
    """All records of a Parquet file (see ``parquet_files``) as dicts, without some columns. The errors for a missing or
    corrupt file name it."""
    files = parquet_files(path)
    try:
        columns = [name for name in pq.read_schema(files[0]).names if name not in without]
        return [record for file in files for record in pq.read_table(file, columns=columns).to_pylist()]
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path}: not a readable Parquet file ({error}); write it again, or delete it and run its stage again"
        ) from error


def json_lines(path: str | Path) -> Iterator[tuple[int, Row | str]]:
    """Yield (number from 0, record, or what is wrong with it) for each line of a .jsonl or .jsonl.gz file."""
    number = -1
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(file):
                try:
                    record = json.loads(line)
                    if b"\\ud" in line.lower() or b"\xed" in line:
                        json.dumps(record, ensure_ascii=False).encode()  # a lone surrogate could not be written
                    yield number, record if isinstance(record, dict) else f"a {type(record).__name__}, not an object"
                except (ValueError, RecursionError) as error:
                    yield number, f"not JSON ({error})"
    except (OSError, EOFError) as error:
        yield number + 1, f"not readable on ({error})"


def configurations(names: Iterable[str]) -> dict[str, list[str]]:
    """The configurations of a data set, as name -> Parquet files. The shards of a file form one configuration."""
    found: dict[str, list[str]] = {}
    for name in sorted(name for name in names if name.endswith(".parquet")):
        found.setdefault(re.sub(r"-\d{5}-of-\d{5}$", "", name.removesuffix(".parquet")), []).append(name)
    return found


def write_rows(path: str | Path, rows: Iterable[Row], sft: bool = False) -> None:
    """Validate rows and write them with ``write_parquet``, with the contract's columns first."""
    rows = list(rows)
    validate(rows, str(path), sft)
    first = [*COLUMNS, "completion"] if sft else list(COLUMNS)
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    write_parquet(path, [{name: row.get(name) for name in names} for row in rows])


class NoRowsError(Stopped):
    """There are no rows to write. An empty file would only fail later."""


def write_parquet(path: str | Path, records: list[Row]) -> None:
    """Write records atomically; the same records give the same bytes. After a kill, either the old or the new file
    exists. Raises NoRowsError if there are no records."""
    if not records:
        raise NoRowsError(f"{path}: no rows to write; every candidate was dropped (see the counts above)")
    with whole_file(path) as file:
        pq.write_table(pa.Table.from_pylist(records), file, compression="zstd")


def write_stream(path: Path, found: Iterable[Row], schema: pa.Schema) -> int:
    """Write rows in the given order, atomically and with ``CHUNK`` rows in memory, and return their number."""
    count, left = 0, iter(found)
    with whole_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while chunk := list(itertools.islice(left, CHUNK)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))
            count += len(chunk)
    return count
