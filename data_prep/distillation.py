"""The students' training set: one key decides what they learn from.

With ``mixture``, it is the rows that Dev3 was trained on, as in the paper (v2, B.4.3). With ``teacher``, R1 answers
every prompt of the mixture again; wrong answers are dropped and counted.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep import jobs, rejection_sampling, rows, runs
from data_prep.sampling import Decoding
from rewards.settings import Positive

import pyarrow.parquet as pq


@dataclass(frozen=True, kw_only=True)
class Distillation(rejection_sampling.Selection):
    """``checkpoint`` is the teacher. It answers each distinct prompt of ``mixture`` ``n`` times, and at most ``keep``
    answers are kept. Without a teacher, only ``mixture`` is read."""

    mode: Literal["teacher", "mixture"]
    mixture: str
    checkpoint: str = ""
    decoding: Decoding | None = None
    n: Positive = 1
    keep: Positive = 1

    def __post_init__(self) -> None:
        taught = self.mode == "teacher"
        wrong = [f"`{key}`" for key in ("checkpoint", "judge", "decoding") if bool(getattr(self, key)) != taught]
        if wrong and taught:
            raise ValueError(f"`mode: teacher` needs {', '.join(wrong)}; write it")
        if wrong:
            raise ValueError(f"`mode: mixture` has no teacher; remove {', '.join(wrong)}")

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        made = rows_of(self.mixture)
        asked = made * self.n if self.mode == "teacher" else 0
        return jobs.Size({"": made}, asked, self.decoding.max_tokens if asked else 0, self.checkpoint)


def load(config: Distillation) -> dict[str, list]:
    if config.mode == "mixture":
        return {"files": rows.parquet_files(config.mixture)}
    config.sampler.require(config.checkpoint)
    found = rows.load_rows(config.mixture, without=("completion",))  # it holds most of the bytes of 800,000 rows
    distinct = {row["prompt"]: row for row in reversed(found)}
    return {"prompts": list(distinct.values())[::-1][: config.limit or None]}


def plan(config: Distillation, files: Sequence[Path] = (), prompts: Sequence[rows.Row] = ()) -> list[str]:
    if config.mode == "teacher":
        return rejection_sampling.selection_plan(config, config.mixture, prompts)
    size = sum(path.stat().st_size for path in files) / 2**30
    return [f"the rows of {', '.join(map(str, files))} as they are, {size:,.1f} GB of disk"]


def build(config: Distillation, output_dir: Path, **loaded: list) -> dict[str, object]:
    if config.mode == "teacher":
        return rejection_sampling.select_in_tasks(config, output_dir, loaded["prompts"], load)
    files = loaded["files"]
    found = itertools.islice(_sound(files), config.limit or None)
    return {"rows": rows.write_stream(output_dir / "train.parquet", found, pq.read_schema(files[0]))}


def _sound(files: list[Path]) -> Iterator[rows.Row]:
    for number, row in enumerate(rows.stream(files)):
        if fault := rows.fault(row, sft=True):
            raise runs.EngineError(f"{files[0]}, row {number}, {fault}; delete it and run its stage again")
        yield row


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
