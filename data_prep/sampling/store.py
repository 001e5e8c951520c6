"""Samples on disk, so that none is drawn twice."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from data_prep.rows import read_parquet
from data_prep.sampling.samples import Sample

log = logging.getLogger(__name__)


class Store:
    """The samples in ``folder``/requests.sqlite by their keys, for one process at a time. Without a folder, they are in
    memory.

    A kill loses nothing that was put; a power cut may lose the last samples. A damaged file is put aside as
    requests.broken, and its samples are drawn again. Raises OSError if the disk is full or another process has the
    store open.
    """

    def __init__(self, folder: Path | None):
        self.path = folder / "requests.sqlite" if folder else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._recover(error)

    def get(self, keys: Iterable[str]) -> dict[str, Sample]:
        """The samples that are stored, by key."""
        try:
            rows = ((key, self.file.execute("select sample from answers where request = ?", (key,))) for key in keys)
            return {key: Sample(**json.loads(row[0])) for key, found in rows if (row := found.fetchone())}
        except sqlite3.DatabaseError as error:
            self._recover(error)
            return {}

    def put(self, samples: Mapping[str, Sample]) -> None:
        """Store samples by key, either all or none of them."""
        rows = [(key, json.dumps(asdict(sample), ensure_ascii=False)) for key, sample in samples.items()]
        self._write("insert or replace into answers values (?, ?)", rows)

    def forget_refused(self) -> None:
        """Delete the samples that a server refused."""
        self._write("delete from answers where json_extract(sample, '$.finish') = ?", [("refused",)])

    def began_empty(self, asked: str, found: Collection[str]) -> bool:
        """Whether none of a list's samples was stored when the list was first asked for. ``asked`` is the key of the
        list, and ``found`` has those of its samples that are stored now."""
        if not found:
            self._write("insert or ignore into fresh values (?)", [(asked,)])
        return self.file.execute("select 1 from fresh where asked = ?", (asked,)).fetchone() is not None

    def close(self) -> None:
        self.file.close()

    def _open(self) -> None:
        self.file = sqlite3.connect(self.path or ":memory:")
        for statement in (
            "pragma locking_mode = exclusive",  # for one process only; so it also works on shared file systems
            "pragma journal_mode = wal",
            "pragma synchronous = normal",
            "create table if not exists answers (request text primary key, sample text)",
            "create table if not exists fresh (asked text primary key)",
        ):
            self.file.execute(statement)
        if self.path and self.file.execute("pragma user_version").fetchone() == (0,):
            self._copy_older(self.path.parent)
            self.file.execute("pragma user_version = 1")

    def _copy_older(self, folder: Path) -> None:
        """Copy what earlier versions of this project stored: a Parquet file for each batch, and a JSON file for each
        plan of batches. The files stay. (Answers of servers have always been in the database.)"""
        for path in sorted(folder.glob("*.parquet")):
            try:
                self.put({record.pop("key"): Sample(**record) for record in read_parquet(path)})
            except (ValueError, LookupError, TypeError) as error:
                log.warning("The batch in %s is sampled again, because the file cannot be read: %s", path, error)
        for path in folder.glob("*.plan.json"):
            if json.loads(path.read_bytes())["fresh"]:
                self._write("insert or ignore into fresh values (?)", [(path.name.removesuffix(".plan.json"),)])

    def _write(self, statement: str, rows: list[tuple[str, ...]]) -> None:
        try:
            with self.file:
                self.file.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path}: {error}") from None

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Put a damaged file aside and open a new one. Raises OSError for another fault, such as a full disk."""
        if isinstance(error, sqlite3.OperationalError):
            raise OSError(f"{self.path}: {error}") from None
        self.file.close()
        self.path.replace(self.path.with_suffix(".broken"))
        log.warning("%s is put aside as requests.broken, and its samples are drawn again: %s", self.path, error)
        self._open()
