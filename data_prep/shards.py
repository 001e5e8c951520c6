"""Rows in any number, in bounded memory: read in parts, kept in an order of one's own, written in files.

``Read`` turns its task's share of some Parquet and JSONL files into documents, one a row, the row as their metadata.
Further steps ``drop`` documents, with the name of the step and why; dropped ones go through to ``Keep``, which lists
them, and stores the others in runs that are sorted by a key and cut into buckets of it. ``Collect`` puts the chosen
rows of one bucket, from all runs, into one file. So the order of the result is the keys', whatever the tasks were.
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
TASK_BYTES = 128 * 2**20  # text of a task, and of a file of the result, where the config does not say
BATCH = 256  # rows
MAGIC = b"PAR1"  # at the beginning of every Parquet file
CONTRACT = [(name, pa.bool_() if kind is bool else pa.string()) for name, kind in rows.COLUMNS.items()]
ORDER = "_order"  # of a row among all: number of its file, then number of the row in it


@dataclass(frozen=True)
class Part:
    """Rows of a file that are read in one go: a row group of a Parquet file, or all of a JSONL file. ``first`` is the
    number of its first row. ``size`` is in bytes of text, ``rows`` -1 where only reading tells."""

    path: str
    file: int
    group: int
    first: int
    rows: int
    size: int


def files(source: str) -> list[str]:
    """The file, or the parts of one that several tasks wrote."""
    return list(map(str, rows.parquet_files(source))) if source.endswith(".parquet") else [source]


def parts(paths: list[str]) -> list[Part]:
    """All parts of the files, in order. Raises FileNotFoundError for a file that is not there and ValueError for one
    that is neither Parquet nor JSONL. A Parquet file that was cut off is one part with group -1; where a run of ours
    wrote it, it raises ValueError, too."""
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
    """How much it is, for a plan."""
    count = f"{sum(part.rows for part in found):,} rows" if all(part.rows >= 0 for part in found) else "rows uncounted"
    return f"{count}, {sum(part.size for part in found) / 2**20:,.0f} MB of text"


def schema(found: list[Part]) -> pa.Schema:
    """The contract's columns, ``completion`` and ``generator``, then every other column of text that a Parquet file
    among the parts has. Where a row lacks one of those, it is null there."""
    texts = {"completion": None, "generator": None}
    for path in dict.fromkeys(part.path for part in found if part.path.endswith(".parquet") and part.group >= 0):
        read = pq.read_schema(path)
        texts |= dict.fromkeys(
            column.name for column in read if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        )
    return pa.schema([*CONTRACT, *((name, pa.string()) for name in texts if name not in rows.COLUMNS)])


def share(found: list[Part], rank: int, tasks: int) -> list[Part]:
    """The parts of one task: neighbours, about as many bytes as any other task's."""
    ends = np.cumsum([part.size for part in found])
    middles = ends - np.array([part.size for part in found]) / 2
    owners = (middles * tasks / max(ends[-1], 1)).astype(int) if len(found) else []
    return [part for part, owner in zip(found, owners, strict=True) if owner == rank]


def drop(document: Document, step: str, why: str) -> None:
    document.metadata["_dropped"] = (step, why)


class Check(PipelineStep):
    """Drops each row that ``check`` finds something wrong with: it returns (name of the step, why), or None."""

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
    """Documents of a task's rows: ``text`` is the completion, ``metadata`` the row with its ``_order``.

    ``texts`` are the further columns that hold text or nothing. What is no row (a corrupt file or row group, half a
    JSONL line, a missing column, a null, a wrong type) is dropped as "broken", named by its place. In a file of
    ``strict`` it raises ValueError instead: a run of ours wrote it.
    """

    type, name = "reader", "rows"

    def __init__(self, found: list[Part], texts: list[str], strict: set[str]):
        super().__init__()
        self.parts, self.texts, self.strict = found, texts, strict
        self.folder = Path.cwd()  # another process may run in another

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
    """(number, record) of each row of a part; in place of a record, what is wrong with it."""
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
    """Stores a task's documents in ``folder``: kept rows in runs, dropped ones as JSON lines, and how many of each.

    Rows have the columns of ``schema`` and of ``hashes``, unsigned 64-bit ones: name -> function of the row. The first
    of these is the key. ``beside`` makes an array of a run's rows, which is stored as a ``.extra.npy`` beside it.
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
        """One run: rows by key, a row group for each bucket."""
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
    """(file, number of the row in it)."""
    return sources[order >> 40], order & (1 << 40) - 1


def dropped_line(sources: list[str], order: int, id: str, step: str, why: str) -> bytes:
    file, row = place(sources, order)
    record = {"file": file, "row": row, "id": id, "step": step, "why": why}
    return json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"


class Collect(PipelineStep):
    """Writes one file for each bucket: its rows of all runs of ``folder`` that ``chosen`` (a ``.npy`` of booleans
    beside each run) holds, in the order of the key."""

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
    """(the columns of all runs, one after the other; how many rows each run has)."""
    tables = [pq.read_table(path, columns=columns) for path in runs_in(folder)]
    joined = pa.concat_tables(tables)
    return {name: joined[name].to_numpy() for name in columns}, [len(table) for table in tables]
