"""The command line of all data jobs: `python -m data_prep.<job> --config <yaml> [--override FILE] [--seed N]
[--dry-run] [--limit N] [--redo] [--engine local|ray|slurm]`, and `--checkpoint` for a job that samples one.

A job consists of a dataclass of settings, a function that loads and checks all inputs, and a function that does the
work and returns the figures for run.json. Errors in settings and inputs are found before any work starts; they are
reported in one line on stderr, with exit code 2.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import logging
import random
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from data_prep import engine, runs
from data_prep.rows import Row
from data_prep.runs import commands, publishing
from rewards.sandbox import SandboxRefused, SandboxUnavailable
from rewards.settings import Count, Positive

log = logging.getLogger("data_prep")


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a job for a plan: the ``rows`` that it writes, by a part of the file's name ("": all files), and the
    number of ``samples`` of up to ``max_tokens`` tokens that it draws from ``checkpoint``."""

    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    samples: int = 0
    max_tokens: int = 0
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The keys that every job's YAML may have. On a cluster, a job that is not ``distributed`` runs as a single task.
    ``threads``: OMP_NUM_THREADS in a pipeline on CPUs. ``script``: the module that a pipeline runs with this YAML ("":
    the module with the YAML's name)."""

    output_dir: str
    executor: engine.Executor = dataclasses.field(default_factory=engine.Executor)
    seed: Count = 0
    limit: Count = 0
    threads: Positive = 1
    script: str = ""
    distributed: ClassVar[bool] = False

    def size(self, rows_of: Callable[[str], int]) -> Size:
        """The job's size; ``rows_of`` returns how many rows the file at a path will have."""
        return Size()

    def require(self) -> None:
        """Raises an error for what the job needs and this machine lacks. A pipeline asks before its first step."""


def main(name: str) -> int:
    """Run the job of a module. The module is imported under its own name so that other processes can import from it."""
    module = importlib.import_module(name)
    settings = typing.get_type_hints(module.load)["config"]
    return run(settings, module.load, module.build, plan=getattr(module, "plan", None))


def run(
    settings: type,
    load: Callable[[Any], dict[str, list[Row]]],
    build: Callable[..., dict[str, Any]],
    argv: list[str] | None = None,
    plan: Callable[..., list[str]] | None = None,
) -> int:
    """Run one job and return the exit code.

    ``settings`` has at least ``output_dir: str``, ``seed: int`` and ``limit: int``. ``load(config)`` returns named
    lists of rows. ``build(config, output_dir, **loaded)`` writes into output_dir and returns figures.
    ``plan(config, **loaded)`` returns lines on what will be read, made and needed. A run with ``--limit N`` takes at
    most N rows. It writes to ``<output_dir>_limit_N``, so that a trial never replaces the full run, and is not pushed.
    """
    script = Path(inspect.getfile(build))
    module = (
        ".".join(script.relative_to(runs.ROOT).with_suffix("").parts) if script.is_relative_to(runs.ROOT) else "job"
    )
    parser = commands.parser(
        module.removesuffix(".__main__"),
        inspect.getmodule(build).__doc__,
        "keys of the YAML:\n" + "\n".join(commands.keys(settings)),
    )
    parser.add_argument("--config", required=True, type=Path, help="the job's YAML")
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    parser.add_argument("--redo", action="store_true", help=commands.REDO)
    parser.add_argument("--seed", type=int, help="instead of the YAML's")
    parser.add_argument("--dry-run", action="store_true", help="only check and say what would be done")
    parser.add_argument("--limit", type=int, help="take at most so many prompts; writes to <output_dir>_limit_<N>")
    if "checkpoint" in settings.__dataclass_fields__:
        parser.add_argument("--checkpoint", help="instead of the YAML's; writes to <output_dir>_<its name>")
    if issubclass(settings, Job):
        parser.add_argument("--engine", choices=["local", "ray", "slurm"], help="where to run, instead of the YAML's")

    def main(argv: list[str]) -> int:
        args = parser.parse_args(argv)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        named = getattr(args, "checkpoint", None)
        overrides = {"seed": args.seed, "limit": args.limit, "checkpoint": named}
        try:
            raw = runs.load_config(args.config, args.override)
            config = runs.settings(settings, raw, str(args.config), **overrides)
            if getattr(args, "engine", None):
                config = dataclasses.replace(config, executor=dataclasses.replace(config.executor, kind=args.engine))
            identity = runs.identify(script, raw, overrides, commands.defaults(settings))
            hub = publishing.read({} if args.limit or named else raw, str(args.config))
            if not args.dry_run:
                hub.check("dataset")
            loaded = load(config)
            trial = f"_limit_{args.limit}" if args.limit else ""
            output_dir = Path(config.output_dir + (f"_{runs.slug(named)}" if named else "") + trial)
            work = f"{output_dir}: " + ", ".join(f"{len(rows):,} {name}" for name, rows in loaded.items() if len(rows))
            work += "".join(f"\n  {line}" for line in (plan(config, **loaded) if plan else []))
            if args.dry_run:
                log.info("would build %s", work)
                return 0
        except ValueError as error:
            raise runs.ConfigError(str(error)) from error

        def make() -> dict[str, Any]:
            log.info("building %s", work)
            try:
                if isinstance(config, Job) and config.executor.kind != "local" and not config.distributed:
                    figures = _on_cluster(config, output_dir, load, build)
                else:
                    figures = build(config, output_dir, **loaded)
            # a full disk, a dead server, no rows left, a machine without a sandbox
            except (OSError, runs.Stopped, SandboxRefused, SandboxUnavailable) as error:
                raise runs.Stopped(f"{error}; what is done is kept, and the same command resumes from it") from error
            count = figures.get("rows")  # a mapping if there are several files
            log.info("built %s%s", output_dir, f", {count:,} rows" if isinstance(count, int) else "")
            return {"config": dataclasses.asdict(config), "seed": config.seed, **figures}

        return runs.carry_out(output_dir, identity, hub, args.redo, make)

    return commands.run(main, argv)


def _on_cluster(config: Job, output_dir: Path, load: Callable, build: Callable) -> dict[str, Any]:
    """Run the whole job as one task; what the job itself distributes runs within that node."""
    work, there = output_dir / "work", dataclasses.replace(config, executor=engine.Executor())
    task = engine.Task(functools.partial(_alone, there, output_dir, load, build))
    engine.run([task], 1, work, config.executor)
    figures = json.loads((work / "figures.json").read_bytes())
    engine.discard(work)
    return figures


def _alone(config: Job, output_dir: Path, load: Callable, build: Callable, rank: int, tasks: int) -> None:
    runs.write_json(output_dir / "work" / "figures.json", build(config, output_dir, **load(config)))


def choose(rows: list[Row], count: int, seed: int | str) -> list[Row]:
    """Choose ``count`` rows (0, or more than there are: all) in an order that depends only on the seed."""
    order = list(rows)
    random.Random(f"choose-{seed}").shuffle(order)
    return order[:count] if count else order


def scaled(table: dict[str, int], total: int) -> dict[str, int]:
    """Scale the table's counts by largest remainder, so that they sum to exactly ``total``."""
    size = sum(table.values())
    shares = {name: divmod(count * total, size) for name, count in table.items()}
    left = total - sum(whole for whole, _ in shares.values())
    largest = sorted(shares, key=lambda name: -shares[name][1])[:left]
    return {name: whole + (name in largest) for name, (whole, _) in shares.items()}
