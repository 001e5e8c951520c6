"""The toy world as files: base corpus, training prompts, and the held-out sets that only evaluation reads."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep import jobs, rows
from data_prep.runs import commands
from data_prep.world import corpus, general
from data_prep.world.problems import KINDS, SPLITS, problem_stream
from rewards.settings import Count, Positive


@dataclass(frozen=True)
class World:
    """Sizes: ``pages`` of the corpus, reasoning ``problems`` to train on, and ``held_out`` ones. All general prompts of
    the world are used. The held-out sets do not depend on the seed, so that all runs are compared on the same
    problems. They depend on ``split``: choose settings on "validation", and report results on "test"."""

    output_dir: str
    pages: Positive = 60_000
    problems: Positive = 4_000
    held_out: Positive = 500
    split: str = "test"
    seed: Count = 0
    limit: Count = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"`split` is {self.split!r}; write one of {', '.join(SPLITS)}")


def load(config: World) -> dict[str, list[rows.Row]]:
    return {}


def build(config: World, output_dir: Path) -> dict[str, object]:
    count = config.limit or config.pages
    pages = itertools.islice(corpus.pages(config.seed, config.split), count)
    written = [{"text": page} for page in commands.progress(pages, "writing", count, "page")]
    rows.write_parquet(output_dir / "corpus.parquet", written)
    stream = problem_stream(config.seed, KINDS, config.split)
    train = [p.row(f"reasoning-{i}") for i, p in enumerate(itertools.islice(stream, config.limit or config.problems))]
    stream = problem_stream("held-out", KINDS, config.split, held_out=True)
    test = [p.row(f"held-out-{i}") for i, p in enumerate(itertools.islice(stream, config.limit or config.held_out))]
    sets = {"reasoning": train, "eval_reasoning": test}
    for kind in ("helpful", "harmless"):
        sets[kind] = [r.row(f"{kind}-{i}") for i, r in enumerate(general.requests(kind, config.split))]
        held_out = general.requests(kind, config.split, held_out=True)
        sets[f"eval_{kind}"] = [r.row(f"held-out-{kind}-{i}") for i, r in enumerate(held_out)]
    sets["eval_lookalike"] = [row for row in sets["eval_helpful"] if row["topic"] == "lookalike"]
    for name, chosen in sets.items():
        rows.write_rows(output_dir / f"{name}.parquet", chosen)
    return {"rows": {name: len(chosen) for name, chosen in sets.items()}}


if __name__ == "__main__":
    sys.exit(jobs.run(World, load, build))
