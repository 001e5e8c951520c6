"""The SFT mixture: reasoning and general data in the proportions of the paper's Table 5, from any number of files.

Rows that break the contract, fail a filter, share an n-gram with an evaluation set or repeat each other are dropped,
counted, and listed in dropped.jsonl. At 804,745 rows the quotas are those of the table; at any other size they are in
proportion. If a domain has fewer rows than its quota, the shortfall is reported and not filled from other domains.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep import decontaminate, dedup, engine, filters, jobs, rows, runs, shards
from rewards.settings import Count, Positive, Share

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

log = logging.getLogger(__name__)
TABLE_5 = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}  # paper v2
DOMAINS = list(TABLE_5)
SPEED = 8 * 2**20  # bytes of text per second and worker, with all filters; see benchmarks/data_prep.py
KEY = "_key"  # the column with a row's place in the shuffled order
EXAMPLES = 10  # near duplicates that run.json shows


@dataclass(frozen=True, kw_only=True)
class Mixture(jobs.Job):
    """``sources``: Parquet or JSONL files of SFT rows. ``total``: the size of the mixture if no domain falls short.
    Invalid rows in a run's files (``outputs/...``) are an error; those in other files are dropped and listed. At most
    ``per_prompt`` different rows of each prompt are kept (0: all). A prompt is dropped with all its rows if its MinHash
    similarity to an earlier kept prompt is at least ``near_duplicates``, such as 0.8 (0: no search). ``tasks``: the
    number of tasks (0: one for every 128 MB of text)."""

    sources: list[str]
    total: Positive
    exclude_non_commercial: bool = False
    filters: filters.Thresholds = field(default_factory=lambda: filters.Thresholds(steps=[]))
    decontamination: decontaminate.Decontamination = field(default_factory=decontaminate.Decontamination)
    per_prompt: Count = 0
    near_duplicates: Share = 0.0
    tasks: Count = 0
    distributed = True

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("`sources` is empty; write the Parquet or JSONL files of rows to mix")

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        return jobs.Size({"": self.total})


def load(config: Mixture) -> dict[str, Any]:
    return {"parts": shards.parts(_sources(config)), "evaluation_items": decontaminate.load(config.decontamination)}


def _sources(config: Mixture) -> list[str]:
    """The files of ``sources``; a source that several tasks wrote has several files."""
    return [file for source in config.sources for file in shards.files(source)]


def quotas(total: int) -> dict[str, int]:
    """The number of rows of each domain: Table 5 scaled to ``total``."""
    return jobs.scaled(TABLE_5, total)


def plan(config: Mixture, parts: list[shards.Part], evaluation_items: decontaminate.Index) -> list[str]:
    """The lines of the plan: what the job reads, what it makes, and what it needs."""
    files_of = {source: set(shards.files(source)) for source in config.sources}
    lines = [
        f"{source}: {shards.described([part for part in parts if part.path in files_of[source]])}"
        for source in config.sources
    ]
    wanted = quotas(config.limit or config.total)
    lines.append("quotas: " + ", ".join(f"{count:,} {domain}" for domain, count in wanted.items()))
    size = sum(part.size for part in parts)
    tasks, files = _tasks(config, parts), _files(parts)
    disk = f"up to {1.2 * size / 2**30:.1f} GB of disk"  # chosen: lz4 and zstd halve text; both copies exist at the end
    at_a_time = config.executor.workers or (os.cpu_count() if config.executor.kind == "local" else tasks)
    minutes = size / SPEED / min(at_a_time or 1, tasks) / 60
    lines.append(f"{tasks} tasks ({config.executor.kind}), {files} files, {disk}, about {minutes:,.0f} minutes")
    return lines


def _tasks(config: Mixture, parts: list[shards.Part]) -> int:
    return config.tasks or _files(parts)


def _files(parts: list[shards.Part]) -> int:
    return max(1, -(-sum(part.size for part in parts) // shards.TASK_BYTES))


def build(
    config: Mixture, output_dir: Path, parts: list[shards.Part], evaluation_items: decontaminate.Index
) -> dict[str, object]:
    work = output_dir.resolve() / "work"
    files, sources = _files(parts), _sources(config)
    _begin(work, parts)
    strict = {source for source in sources if source.startswith(runs.OUTPUTS)}
    schema = shards.schema(parts)
    hashes = {
        KEY: functools.partial(order_key, config.seed),
        "_id": id_hash,
        "_prompt": dedup.prompt_hash,
        "_row": dedup.row_hash,
        "_domain": domain_number,
    }
    checks = [shards.Check(licence)] if config.exclude_non_commercial else []
    if config.filters.steps:
        checks.append(shards.Check(functools.partial(filters.row_failure, config.filters)))
    if evaluation_items:
        checks.append(shards.Check(evaluation_items))
    kept = work / "kept"
    signatures = prompt_signatures if config.near_duplicates else None
    read = shards.Read(parts, schema.names[len(shards.CONTRACT) :], strict)
    steps = [read, *checks, shards.Keep(kept, sources, schema, hashes, files, signatures)]
    engine.run(steps, _tasks(config, parts), work / "read", config.executor)

    figures = select(config, kept, output_dir / "dropped.jsonl", quotas(config.limit or config.total), strict)
    names = [output_dir.resolve() / name for name in rows.part_names(files)]
    engine.run([shards.Collect(kept, schema, KEY, names)], files, work / "write", config.executor)
    engine.discard(work)
    return figures


def _begin(work: Path, parts: list[shards.Part]) -> None:
    """Keep the work of an earlier attempt only if it read the same files."""
    seen = json.dumps([asdict(part) | {"changed": Path(part.path).stat().st_mtime_ns} for part in parts]).encode()
    path = work / "parts.json"
    if not path.is_file() or path.read_bytes() != seen:
        engine.discard(work)
        with runs.whole_file(path) as file:
            file.write(seen)


# --- columns that are computed before the choice ----------------------------------------------------------------------


def order_key(seed: int, row: rows.Row) -> int:
    """A row's place in the shuffled order. It depends only on the seed and the row, not on the other rows."""
    return dedup.hash64(f"{seed}\0{row['id']}")


def id_hash(row: rows.Row) -> int:
    return dedup.hash64(row["id"])


def domain_number(row: rows.Row) -> int:
    return DOMAINS.index(row["domain"])


def prompt_signatures(held: list[rows.Row]) -> np.ndarray:
    return dedup.signatures([row["prompt"] for row in held])


def licence(row: rows.Row) -> tuple[str, str] | None:
    return None if rows.commercial(row["license"]) else ("non_commercial", row["license"])


# --- the choice -------------------------------------------------------------------------------------------------------


def select(config: Mixture, kept: Path, dropped: Path, wanted: dict[str, int], strict: set[str]) -> dict[str, object]:
    """Mark the rows of the mixture in a ``.npy`` beside each sorted file of ``kept`` (a "run" in `data_prep.shards`),
    list all dropped rows in ``dropped``, and return the figures. Of rows with the same id or content, the first in the
    order of the sources is kept, and of rows with the same prompt the first ``per_prompt``."""
    columns, lengths = shards.index(kept, [shards.ORDER, KEY, "_id", "_prompt", "_row", "_domain"])
    order = np.argsort(columns[shards.ORDER])
    left = np.ones(len(order), bool)
    causes: dict[str, np.ndarray] = {}

    def leave_out(cause: str, where: np.ndarray) -> None:
        """Drop the rows at ``where``, which are positions among the remaining rows in the order of the sources."""
        causes[cause] = order[left[order]][where]
        left[causes[cause]] = False

    def of_left(name: str) -> np.ndarray:
        return columns[name][order[left[order]]]

    leave_out("duplicate_id", dedup.occurrence(of_left("_id")) > 0)
    for at in causes["duplicate_id"]:
        source, number = shards.place(_sources(config), int(columns[shards.ORDER][at]))
        if source in strict:
            raise engine.EngineError(
                f"{source}, row {number}, column 'id': an earlier row of `sources` has the same id"
            )
    leave_out("duplicate", dedup.occurrence(of_left("_row")) > 0)
    if config.per_prompt:
        leave_out("per_prompt", dedup.occurrence(of_left("_prompt")) >= config.per_prompt)
    if config.near_duplicates:
        prompts = of_left("_prompt")
        firsts = np.flatnonzero(dedup.occurrence(prompts) == 0)
        files = [path.with_suffix(".extra.npy") for path in shards.runs_in(kept)]
        numbers = order[left[order]][firsts]
        nearest = dedup.near_repeats(files, numbers, config.near_duplicates)
        near = np.flatnonzero(nearest >= 0)
        pairs = np.stack([numbers[near], numbers[nearest[near]]], axis=1)
        leave_out("near_duplicate", np.isin(prompts, prompts[firsts[near]]))

    available = np.bincount(of_left("_domain").astype(int), minlength=len(DOMAINS))
    by_key = np.lexsort((columns[shards.ORDER], columns[KEY]))
    for number, domain in enumerate(DOMAINS):
        own = by_key[left[by_key] & (columns["_domain"][by_key] == number)]
        left[own[wanted[domain] :]] = False
    for path, mask in zip(shards.runs_in(kept), np.split(left, np.cumsum(lengths)[:-1]), strict=True):
        with runs.whole_file(path.with_suffix(".npy")) as file:
            np.save(file, mask)
    figures = _figures(kept, dropped, config, wanted, available, left, columns, causes, lengths)
    if config.near_duplicates:
        figures["funnel"]["near_duplicates"] = _near(kept, lengths, pairs)
    if not left.any():
        raise rows.NoRowsError(f"no rows to write; {dropped} says why")
    return figures


def _figures(kept, dropped, config, wanted, available, left, columns, causes, lengths) -> dict[str, object]:
    seen: Counter[str] = Counter()
    for path in sorted(kept.glob("*.json")):
        seen.update(json.loads(path.read_bytes()))
    total = seen.pop("seen", 0)
    if total - seen.total() != len(left):
        lost = total - seen.total() - len(left)
        raise engine.EngineError(f"{kept} lacks {lost} of the rows that were kept; delete {kept.parent}, run again")
    examples: dict[str, str] = {}
    with runs.whole_file(dropped) as file:
        for line in _dropped_lines(kept, _sources(config), columns, causes, lengths):
            record = json.loads(line)
            examples.setdefault(record["step"], f"{record['file']}, row {record['row']}: {record['why']}")
            file.write(line)
    counts = seen | {cause: len(where) for cause, where in causes.items()}
    chosen = np.bincount(columns["_domain"][left].astype(int), minlength=len(DOMAINS))
    domains = {}
    for domain, found, taken in zip(DOMAINS, available.tolist(), chosen.tolist(), strict=True):
        short = wanted[domain] - taken
        domains[domain] = {"quota": wanted[domain], "available": found, "rows": taken, "shortfall": short}
        if short:
            log.warning("%s: %d rows short of the quota of %d", domain, short, wanted[domain])
    funnel = {"seen": total, "dropped": counts, "kept": int(sum(available)), "first_dropped": examples}
    return {"rows": int(left.sum()), "domains": domains, "funnel": funnel}


def _near(kept: Path, lengths: list[int], pairs: np.ndarray) -> dict[str, Any]:
    """Figures and examples by which a person can judge the threshold. Each of ``pairs`` has the number of a dropped
    prompt's row and that of the kept prompt which it nearly repeats."""
    found = _cells(kept, lengths, pairs[:EXAMPLES].reshape(-1), "id", "prompt")
    shown = {at: {"id": id, "prompt": prompt[:300]} for at, (id, prompt) in found.items()}
    largest = 1 + int(np.bincount(pairs[:, 1]).max()) if len(pairs) else 0
    examples = [{"dropped": shown[one], "kept": shown[other]} for one, other in pairs[:EXAMPLES].tolist()]
    return {"largest_cluster": largest, "examples": examples}


def _cells(kept: Path, lengths: list[int], wanted: np.ndarray, *names: str) -> dict[int, tuple]:
    """The cells of the ``wanted`` rows, by the rows' numbers over all sorted files of ``kept``."""
    found: dict[int, tuple] = {}
    starts = np.cumsum([0, *lengths])
    for path, start, end in zip(shards.runs_in(kept), starts, starts[1:], strict=False):
        own = wanted[(wanted >= start) & (wanted < end)]
        if len(own):
            table = pq.read_table(path, columns=list(names)).take(pa.array(own - start))
            found |= zip(own.tolist(), zip(*(table[name].to_pylist() for name in names), strict=True), strict=True)
    return found


def _dropped_lines(kept, sources, columns, causes, lengths) -> Iterator[bytes]:
    """Yield a line for each dropped row: first the rows that the tasks dropped, then those that `select` dropped. Both
    are in the order of the sources."""
    for path in sorted(kept.glob("*.jsonl")):
        with path.open("rb") as file:
            yield from file
    for cause, where in causes.items():
        ids = _cells(kept, lengths, where, "id")
        for at in where.tolist():
            yield shards.dropped_line(sources, int(columns[shards.ORDER][at]), ids[at][0], cause, "came before")


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
