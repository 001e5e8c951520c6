"""The toy world as files: base corpus, training prompts, and the held-out sets that only evaluation reads."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep import jobs, rows
from data_prep.world import corpus, general
from data_prep.world.problems import KINDS, problem_stream


@dataclass(frozen=True)
class World:
    """Sizes: ``pages`` of the corpus, reasoning ``problems`` to train on, and ``held_out`` ones. General prompts are
    all that the world has. The held-out sets do not depend on the seed, so that all runs are compared on the same."""

    output_dir: str
    pages: int = 60_000
    problems: int = 4_000
    held_out: int = 500
    seed: int = 0
    limit: int = 0


def load(config: World) -> dict[str, list[rows.Row]]:
    return {}


def build(config: World, output_dir: Path) -> dict[str, object]:
    pages = itertools.islice(corpus.pages(config.seed), config.limit or config.pages)
    rows.write_parquet(output_dir / "corpus.parquet", [{"text": page} for page in pages])
    stream = problem_stream(config.seed, False, KINDS)
    train = [p.row(f"reasoning-{i}") for i, p in enumerate(itertools.islice(stream, config.limit or config.problems))]
    stream = problem_stream("held-out", True, KINDS)
    test = [p.row(f"held-out-{i}") for i, p in enumerate(itertools.islice(stream, config.limit or config.held_out))]
    sets = {"reasoning": train, "eval_reasoning": test}
    for kind in ("helpful", "harmless"):
        sets[kind] = [r.row(f"{kind}-{i}") for i, r in enumerate(general.requests(False, kind))]
        sets[f"eval_{kind}"] = [r.row(f"held-out-{kind}-{i}") for i, r in enumerate(general.requests(True, kind))]
    sets["eval_lookalike"] = [row for row in sets["eval_helpful"] if row["topic"] == "lookalike"]
    for name, chosen in sets.items():
        rows.write_rows(output_dir / f"{name}.parquet", chosen)
    return {"rows": {name: len(chosen) for name, chosen in sets.items()}}


if __name__ == "__main__":
    sys.exit(jobs.run(World, load, build))
