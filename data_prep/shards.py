"""Processing of any number of rows in bounded memory: they are read in parts, sorted by a key, and written to files.

``Read`` turns its task's share of some Parquet and JSONL files into documents, one per row, with the row as metadata.
Further steps ``drop`` documents, with the name of the step and the reason. Dropped documents are passed on to ``Keep``,
which lists them. It stores the others in runs, which are sorted by a key and split into buckets of the key. ``Collect``
writes the chosen rows of one bucket, from all runs, to one file. The result is therefore in the order of the keys,
however many tasks there were.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep import rows
from data_prep.runs import OUTPUTS, advice, whole_file, write_json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

log = logging.getLogger(__name__)
RUN_BYTES = 64 * 2**20  # text that a task holds before it is sorted and stored
TASK_BYTES = 128 * 2**20  # text of a task, and of a file of the result, by default
BATCH = 256  # rows
MAGIC = b"PAR1"  # at the beginning of every Parquet file
CONTRACT = [(name, pa.bool_() if kind is bool else pa.string()) for name, kind in rows.COLUMNS.items()]
ORDER = "_order"  # a row's position: the number of its file, then its number in the file


@dataclass(frozen=True)
class Part:
    """Rows of a file that are read at once: a row group of a Parquet file, or a whole JSONL file. ``first`` is the
    number of its first row. ``size`` is in bytes of text. ``rows`` is -1 if it is unknown before reading."""

    path: str
    file: int
    group: int
    first: int
    rows: int
    size: int


def files(source: str) -> list[str]:
    """The file, or its parts if several tasks wrote it."""
    return list(map(str, rows.parquet_files(source))) if source.endswith(".parquet") else [source]


def parts(paths: list[str]) -> list[Part]:
    """All parts of the files, in order. Raises FileNotFoundError for a missing file and ValueError for one that is
    neither Parquet nor JSONL. A truncated Parquet file becomes one part with group -1; if a run wrote it, ValueError is
    raised."""
    found = []
    for number, path in enumerate(paths):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file{advice(path)}")
        size = Path(path).stat().st_size
        if path.endswith((".jsonl", ".jsonl.gz")):
            found.append(Part(path, number, 0, 0, -1, size * (4 if path.endswith(".gz") else 1)))
        elif path.endswith(".parquet"):
            try:
                meta = pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:
                with open(path, "rb") as file:
                    is_parquet = file.read(len(MAGIC)) == MAGIC
                if not is_parquet or path.startswith(OUTPUTS):
                    raise ValueError(
                        f"{path}: not a readable Parquet file ({error}); write the path of one, or run its stage again"
                    ) from None
                found.append(Part(path, number, -1, 0, -1, size))
                continue
            first = 0
            for group in range(meta.num_row_groups):
                part = meta.row_group(group)
                found.append(Part(path, number, group, first, part.num_rows, part.total_byte_size))
                first += part.num_rows
        else:
            raise ValueError(
                f"{path}: neither Parquet nor JSONL; write the path of a .parquet, .jsonl or .jsonl.gz file"
            )
    return found


def described(found: list[Part]) -> str:
    """The amount of data, in words for a plan."""
    count = f"{sum(part.rows for part in found):,} rows" if all(part.rows >= 0 for part in found) else "rows uncounted"
    return f"{count}, {sum(part.size for part in found) / 2**20:,.0f} MB of text"


def schema(found: list[Part]) -> pa.Schema:
    """The contract's columns, ``completion`` and ``generator``, then all other text columns of the Parquet files among
    the parts. Rows that lack one of the latter have null there."""
    texts = {"completion": None, "generator": None}
    for path in dict.fromkeys(part.path for part in found if part.path.endswith(".parquet") and part.group >= 0):
        read = pq.read_schema(path)
        texts |= dict.fromkeys(
            column.name for column in read if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        )
    return pa.schema([*CONTRACT, *((name, pa.string()) for name in texts if name not in rows.COLUMNS)])


def share(found: list[Part], rank: int, tasks: int) -> list[Part]:
    """The parts of one task: consecutive ones, with about as many bytes as those of any other task."""
    ends = np.cumsum([part.size for part in found])
    middles = ends - np.array([part.size for part in found]) / 2
    owners = (middles * tasks / max(ends[-1], 1)).astype(int) if len(found) else []
    return [part for part, owner in zip(found, owners, strict=True) if owner == rank]


def drop(document: Document, step: str, why: str) -> None:
    document.metadata["_dropped"] = (step, why)


class Check(PipelineStep):
    """Drops each row for which ``check`` returns (name of the step, why) instead of None."""

    type, name = "filter", "check"

    def __init__(self, check: Callable[[rows.Row], tuple[str, str] | None]):
        super().__init__()
        self.check = check

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            found = None if "_dropped" in document.metadata else self.check(document.metadata)
            if found:
                drop(document, *found)
            yield document


class Read(PipelineStep):
    """Reads a task's rows as documents: ``text`` is the completion, ``metadata`` the row with its ``_order``.

    ``texts`` are further columns, whose values are text or null. Anything else (a corrupt file or row group, a
    truncated JSONL line, a missing column, a null, a wrong type) is dropped as "broken" and named by its place. In
    files of ``strict``, which runs wrote, it raises ValueError instead.
    """

    type, name = "reader", "rows"

    def __init__(self, found: list[Part], texts: list[str], strict: set[str]):
        super().__init__()
        self.parts, self.texts, self.strict = found, texts, strict
        self.folder = Path.cwd()  # other processes may have another working directory

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for part in share(self.parts, rank, world_size):
            for number, found in records(part, self.folder):
                broken = found if isinstance(found, str) else self._fault(found)
                if broken and part.path in self.strict:
                    raise ValueError(f"{part.path}, row {number}, {broken}; delete the file and run its stage again")
                metadata = {} if isinstance(found, str) else found
                metadata[ORDER] = part.file << 40 | number
                if not broken:
                    yield Document(text=metadata["completion"], id=metadata["id"], metadata=metadata)
                    continue
                document = Document(text="", id=str(metadata.get("id", "")), metadata=metadata)
                drop(document, "broken", broken)
                yield document

    def _fault(self, row: rows.Row) -> str | None:
        for name in self.texts:
            if not isinstance(row.get(name), str | None):
                return f"column '{name}': {row[name]!r} is {type(row[name]).__name__}, must be str"
        return rows.fault(row, sft=True)


def records(part: Part, folder: Path = Path()) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (number, record) for each row of a part; for an invalid row, the error in place of the record."""
    path = folder / part.path
    if path.suffix != ".parquet":
        yield from rows.json_lines(path)
        return
    number = part.first
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(BATCH, row_groups=[part.group]):
                for record in batch.to_pylist():
                    yield number, record
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        last = f" to {part.first + part.rows - 1}" if part.rows > 0 else " on"
        yield number, f"not readable{last} ({str(error).splitlines()[0]})"


class Keep(PipelineStep):
    """Stores a task's documents in ``folder``: kept rows in runs, dropped ones as JSON lines, and the counts of both.

    Rows have the columns of ``schema`` and of ``hashes``, which maps names to functions of the row that return unsigned
    64-bit integers. The first of these is the key. ``beside`` computes an array from a run's rows, which is stored as
    ``.extra.npy`` beside the run.
    """

    type, name = "writer", "runs"

    def __init__(
        self,
        folder: Path,
        sources: list[str],
        schema: pa.Schema,
        hashes: dict[str, Callable[[rows.Row], int]],
        buckets: int,
        beside: Callable[[list[rows.Row]], np.ndarray] | None = None,
    ):
        super().__init__()
        self.beside = beside
        self.folder, self.sources, self.hashes, self.buckets = folder, sources, hashes, buckets
        self.schema = pa.schema([*schema, (ORDER, pa.uint64()), *((name, pa.uint64()) for name in hashes)])

    def run(self, data, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        held: list[rows.Row] = []
        counts: Counter[str] = Counter()
        size = number = 0
        with whole_file(self.folder / f"{rank:05d}.jsonl") as dropped:
            for document in data:
                row = document.metadata
                counts["seen"] += 1
                if "_dropped" in row:
                    counts[row["_dropped"][0]] += 1
                    dropped.write(dropped_line(self.sources, row[ORDER], document.id, *row["_dropped"]))
                    continue
                for name, function in self.hashes.items():
                    row[name] = function(row)
                row.setdefault("generator", "")
                held.append(row)
                size += len(document.text) + len(row["prompt"])
                if size > RUN_BYTES:
                    self._store(held, rank, number)
                    held, size, number = [], 0, number + 1
            self._store(held, rank, number)
        write_json(self.folder / f"{rank:05d}.json", counts)
        yield from ()

    def _store(self, held: list[rows.Row], rank: int, number: int) -> None:
        """Write one run: rows sorted by key, with one row group per bucket."""
        key = next(iter(self.hashes))
        held.sort(key=lambda row: (row[key], row[ORDER]))
        if self.beside:
            with whole_file(self.folder / f"{rank:05d}-{number:03d}.extra.npy") as file:
                np.save(file, self.beside(held))
        ends = np.searchsorted([bucket(row[key], self.buckets) for row in held], range(self.buckets), side="right")
        with (
            whole_file(self.folder / f"{rank:05d}-{number:03d}.parquet") as file,
            pq.ParquetWriter(file, self.schema, compression="lz4", write_page_checksum=True) as writer,
        ):
            for start, end in zip([0, *ends], ends, strict=False):
                writer.write_table(pa.Table.from_pylist(held[start:end], self.schema))


def bucket(key: int, buckets: int) -> int:
    return key * buckets >> 64


def place(sources: list[str], order: int) -> tuple[str, int]:
    """Return (file, number of the row in it)."""
    return sources[order >> 40], order & (1 << 40) - 1


def dropped_line(sources: list[str], order: int, id: str, step: str, why: str) -> bytes:
    file, row = place(sources, order)
    record = {"file": file, "row": row, "id": id, "step": step, "why": why}
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


class Collect(PipelineStep):
    """Writes one file for each bucket, with its rows from all runs of ``folder`` in the order of the key. ``chosen`` is
    a ``.npy`` of booleans beside each run that selects the rows."""

    type, name = "writer", "files"

    def __init__(self, folder: Path, schema: pa.Schema, key: str, files: list[Path]):
        super().__init__()
        self.folder, self.schema, self.key, self.files = folder, schema, key, files

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tables = []
        for path in runs_in(self.folder):
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                first = sum(file.metadata.row_group(group).num_rows for group in range(rank))
                found = file.read_row_group(rank)
                mask = np.load(path.with_suffix(".npy"), mmap_mode="r")[first : first + len(found)]
                tables.append(found.filter(pa.array(mask)))
        table = pa.concat_tables(tables).sort_by([(self.key, "ascending"), (ORDER, "ascending")])
        with whole_file(self.files[rank]) as file:
            table = table.select(self.schema.names)
            pq.write_table(table, file, compression="zstd", row_group_size=1000, write_page_checksum=True)
        yield from ()


def runs_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*.parquet"))


def index(folder: Path, columns: list[str]) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return (the columns of all runs, concatenated; the number of rows of each run)."""
    tables = [pq.read_table(path, columns=columns) for path in runs_in(folder)]
    joined = pa.concat_tables(tables)
    return {name: joined[name].to_numpy() for name in columns}, [len(table) for table in tables]
