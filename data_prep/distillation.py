"""The students' training set: one key decides what they learn from.

``teacher``: R1 answers every prompt of the mixture again; wrong answers are dropped and counted. ``mixture``: the rows
that Dev3 was trained on, which is what the paper distils from (v2, B.4.3).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep import engine, jobs, rows
from data_prep.filters import Thresholds
from data_prep.rejection_sampling import select_in_tasks
from data_prep.sampling import Decoding, Sampler, ServerSettings


@dataclass(frozen=True)
class Distillation:
    """``checkpoint`` is the teacher. Each distinct prompt of ``mixture`` gets ``n`` answers, at most ``keep`` stay."""

    output_dir: str
    mode: Literal["teacher", "mixture"]
    mixture: str
    checkpoint: str
    judge: ServerSettings
    decoding: Decoding
    n: int = 1
    keep: int = 1
    filters: Thresholds = field(default_factory=Thresholds)
    sampler: Sampler = field(default_factory=Sampler)
    tasks: int = 1
    executor: engine.Executor = field(default_factory=engine.Executor)
    seed: int = 0
    limit: int = 0


def load(config: Distillation) -> dict[str, list[rows.Row]]:
    found = rows.load_rows(config.mixture, sft=True)
    if config.mode == "teacher":
        config.sampler.require(config.checkpoint)
        found = list({row["prompt"]: row for row in reversed(found)}.values())[::-1]
    return {"prompts" if config.mode == "teacher" else "rows": found[: config.limit or None]}


def build(config: Distillation, output_dir: Path, **loaded: list[rows.Row]) -> dict[str, object]:
    if config.mode == "mixture":
        rows.write_rows(output_dir / "train.parquet", loaded["rows"], sft=True)
        return {"rows": len(loaded["rows"])}
    return select_in_tasks(config, output_dir, loaded["prompts"], load)


if __name__ == "__main__":
    from data_prep import distillation as job  # under its own name, so that other processes find what is in it

    sys.exit(jobs.run(job.Distillation, job.load, job.build))
