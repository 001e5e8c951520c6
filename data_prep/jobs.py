"""What the data jobs share: `python -m data_prep.<job> --config <yaml> [--seed N] [--dry-run] [--limit N]`, and
`--engine local|ray|slurm` where the job runs on data_prep.engine.

A job is a dataclass of settings, a function that loads and checks everything it reads, and one that does the work and
returns its figures for run.json. All that can be wrong with settings and inputs is found before any work: one line on
stderr, exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import publishing, runs
from data_prep.rows import NoRowsError, Row
from data_prep.sampling import ServerError
from rewards.sandbox import SandboxRefused, SandboxUnavailable

log = logging.getLogger("data_prep")


def run(
    settings: type,
    load: Callable[[Any], dict[str, list[Row]]],
    build: Callable[..., dict[str, Any]],
    argv: list[str] | None = None,
    plan: Callable[..., list[str]] | None = None,
) -> int:
    """Runs one job to its end and returns the exit code.

    ``settings`` has at least ``output_dir: str``, ``seed: int`` and ``limit: int``; ``load(config)`` returns named
    lists of rows; ``build(config, output_dir, **loaded)`` writes into output_dir and returns figures;
    ``plan(config, **loaded)`` says more, in lines, of what will be done. A run with
    ``--limit N`` takes N rows where the full one takes more, and writes to ``<output_dir>_limit_N`` so that a trial
    never stands in for the full run; it is not pushed either.
    """
    parser = argparse.ArgumentParser(description=inspect.getmodule(build).__doc__)
    parser.add_argument("--config", required=True, type=Path, help="the job's YAML")
    parser.add_argument("--seed", type=int, help="instead of the YAML's")
    parser.add_argument("--dry-run", action="store_true", help="only check and say what would be done")
    parser.add_argument("--limit", type=int, help="take at most so many prompts; writes to <output_dir>_limit_<N>")
    has_executor = "executor" in {field.name for field in dataclasses.fields(settings)}
    if has_executor:
        parser.add_argument("--engine", choices=["local", "ray", "slurm"], help="where to run, instead of the YAML's")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    overrides = {"seed": args.seed, "limit": args.limit}
    try:
        config = runs.settings(settings, args.config, **overrides)
        if has_executor and args.engine:
            config = dataclasses.replace(config, executor=dataclasses.replace(config.executor, kind=args.engine))
        fingerprint = runs.fingerprint(Path(inspect.getfile(build)), args.config, overrides)
        hub = publishing.read({} if args.limit else runs.load_config(args.config), str(args.config))
        if not args.dry_run:
            hub.check("dataset")
        loaded = load(config)
        output_dir = Path(config.output_dir + (f"_limit_{args.limit}" if args.limit else ""))
        work = f"{output_dir}: " + ", ".join(f"{len(rows):,} {name}" for name, rows in loaded.items())
        work += "".join(f"\n  {line}" for line in (plan(config, **loaded) if plan else []))
        if args.dry_run:
            log.info("would build %s", work)
            return 0
        if runs.begin(output_dir, fingerprint) == "done":
            log.info("%s is done already", output_dir)
            return hub.publish(output_dir)
    except (ValueError, FileNotFoundError) as error:  # ConfigError and MissingRunError among them
        parser.exit(2, f"error: {error}\n")
    log.info("building %s", work)
    try:
        figures = build(config, output_dir, **loaded)
    # a full disk, a dead server, nothing left, a machine that can shut no program in
    except (OSError, ServerError, NoRowsError, runs.EngineError, SandboxRefused, SandboxUnavailable) as error:
        log.error("error: %s; what is done is kept, the same command goes on", error)
        return 1
    values = dataclasses.asdict(config)
    parents = [str(path) for path in runs.inputs(values)]
    runs.finish(output_dir, fingerprint, config=values, seed=config.seed, inputs=parents, **figures)
    log.info("built %s", output_dir)
    return hub.publish(output_dir)


def choose(rows: list[Row], count: int, seed: int | str) -> list[Row]:
    """``count`` of the rows (all, where there are fewer) in an order that depends on the seed only. 0: all of them."""
    order = list(rows)
    random.Random(f"choose-{seed}").shuffle(order)
    return order[:count] if count else order


def scaled(table: dict[str, int], total: int) -> dict[str, int]:
    """The table's counts in proportion, rounded by largest remainder, so that they sum to ``total`` exactly."""
    size = sum(table.values())
    shares = {name: divmod(count * total, size) for name, count in table.items()}
    left = total - sum(whole for whole, _ in shares.values())
    largest = sorted(shares, key=lambda name: -shares[name][1])[:left]
    return {name: whole + (name in largest) for name, (whole, _) in shares.items()}
