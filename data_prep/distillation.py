"""The students' training set: one key decides what they learn from.

``teacher``: R1 answers every prompt of the mixture again; wrong answers are dropped and counted. ``mixture``: the rows
that Dev3 was trained on, which is what the paper distils from (v2, B.4.3).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep import jobs, rows
from data_prep.filters import Thresholds
from data_prep.rejection_sampling import sample_and_select
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
    kept, figures = sample_and_select(config, output_dir, loaded["prompts"])
    rows.write_rows(output_dir / "train.parquet", kept, sft=True)
    return figures


if __name__ == "__main__":
    sys.exit(jobs.run(Distillation, load, build))
