"""RL prompts by the paper's Table 4: math, code, STEM, logic and general ones, from named sources (v2, B.3.1).

Each source is converted by `data_prep.sources`, which verifies gold answers and tests. Of equal prompts, the first is
kept. The quotas are those of the table, or in proportion to it. Shortfalls of a group are reported and not filled from
other groups. With ``pass_rate``, a model answers each prompt several times, and prompts that it always or never solves
are dropped, because a group of equal rewards has no advantage. Prompts that no rule can grade are kept unsampled.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep import decontaminate, dedup, filters, jobs, prompts, rows, runs, sources
from data_prep.rows import Row
from data_prep.sampling import Decoding, Model, Sampler, cost, open_model
from data_prep.sources import plan as convert_plan
from rewards.settings import Positive, Share, check

log = logging.getLogger(__name__)
# Table 4 of the paper, v2, and the 12,000 harmlessness prompts of its text. There is no source for its 8,000 bug fixes.
TABLE_4 = {"math": 26_000, "code": 17_000, "stem": 22_000, "logic": 15_000, "general": 66_000, "harmless": 12_000}
KINDS = ("reasoning", "helpful", "harmless")  # one file for each
Place = tuple[Path, int]  # a row's file and its number there, from 0


@dataclass(frozen=True)
class PassRate:
    """``n`` samples of each prompt from ``checkpoint``, in the R1-Zero template or as a chat. A prompt is kept if the
    share of correct samples is between ``least`` and ``most``."""

    checkpoint: str
    decoding: Decoding
    n: Positive = 8
    least: Share = 0.125
    most: Share = 0.875
    template: str = "r1_zero"
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        check(self)
        if self.least > self.most:
            raise ValueError(f"`least` is {self.least:g}; write at most `most`, which is {self.most:g}")
        if self.template not in ("r1_zero", "chat"):
            raise ValueError(f"`template` is {self.template!r}; write r1_zero or chat")


@dataclass(frozen=True, kw_only=True)
class RLPrompts(jobs.Job):
    """``total``: prompts if no group falls short. ``commercial``: only under licences that allow commercial use."""

    sources: list[sources.Wanted]
    total: Positive = sum(TABLE_4.values())
    commercial: bool = False
    decontamination: decontaminate.Decontamination = field(default_factory=decontaminate.Decontamination)
    pass_rate: PassRate | None = None

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        wanted = quotas(self.total)
        made = {"helpful": wanted["general"], "harmless": wanted["harmless"]}
        made["reasoning"] = self.total - sum(made.values())
        if not (rate := self.pass_rate):
            return jobs.Size(made)
        asked = 2 * made["reasoning"] * rate.n  # assumed: half of the prompts pass
        return jobs.Size(made, asked, rate.decoding.max_tokens, rate.checkpoint)


def load(config: RLPrompts) -> dict[str, Any]:
    wanted = sources.checked(config.sources, traces=False, limit=config.limit)
    if config.pass_rate:
        config.pass_rate.sampler.require(config.pass_rate.checkpoint)
    return {"sources": wanted, "evaluation_items": decontaminate.load(config.decontamination)}


def quotas(total: int) -> dict[str, int]:
    """The number of prompts of each group: Table 4 scaled to ``total``."""
    return jobs.scaled(TABLE_4, total)


def plan(config: RLPrompts, sources: list[sources.Wanted], evaluation_items: decontaminate.Index) -> list[str]:
    total, rate = config.limit or config.total, config.pass_rate
    wanted = ", ".join(f"{count:,} {group}" for group, count in quotas(total).items())
    lines = [*convert_plan(config, sources), f"quotas: {wanted}"]
    if rate:
        lines.append(f"if all pass, {cost(total, rate.n, rate.decoding, rate.checkpoint, rate.sampler)}")
    return lines


def build(
    config: RLPrompts, output_dir: Path, sources: list[sources.Wanted], evaluation_items: decontaminate.Index
) -> dict[str, object]:
    pools, figures = candidates(config, output_dir, sources, evaluation_items)
    groups: dict[str, dict[str, int]] = {}
    chosen: list[Place] = []
    rates: dict[Place, float] = {}
    wanted = config.pass_rate
    with open_model(wanted.checkpoint, wanted.sampler) if wanted else nullcontext() as model:
        for group, quota in quotas(config.limit or config.total).items():
            pool = jobs.choose(pools[group], 0, f"{config.seed}-{group}")
            kept, asked = pool[:quota], 0
            if model:
                kept, asked = passing(config, model, output_dir / "samples", pool, quota, rates)
            chosen += kept
            short = quota - len(kept)
            counts = {"quota": quota, "available": len(pool), "asked": asked, "rows": len(kept), "shortfall": short}
            groups[group] = counts
            if short and pool:
                log.warning("%s: %d prompts short of the quota of %d", group, short, quota)
    if empty := [group for group, counts in groups.items() if counts["quota"] and not counts["available"]]:
        log.info("the sources have no prompts of %s", ", ".join(empty))
    if not chosen:
        raise rows.NoRowsError(f"{output_dir}: no prompt is left; see the counts above")
    if wanted:
        figures["unanswered"] = sum(map(math.isnan, rates.values()))
    return {"rows": len(chosen), "rows_by_file": write(output_dir, chosen, rates), "groups": groups} | figures


def candidates(
    config: RLPrompts, output_dir: Path, wanted: list[sources.Wanted], items: decontaminate.Index
) -> tuple[dict[str, list[Place]], dict[str, Any]]:
    """Return (the places of the distinct prompts of each group; counts). Only hashes and places are held in memory.
    Prompts that match an evaluation set are listed in contaminated.jsonl."""
    folder = output_dir / "sources"
    counts = sources.convert_all(wanted, folder, False, config.executor)
    pools: dict[str, list[Place]] = {group: [] for group in TABLE_4}
    seen: set[int] = set()
    figures: dict[str, Any] = {"duplicates": 0, "not_commercial": 0, "contaminated": 0, "sources": counts}
    with runs.whole_file(output_dir / "contaminated.jsonl") as contaminated:
        for path in (folder / f"{one.label}.parquet" for one in wanted):
            for number, row in enumerate(rows.stream([path])):
                if config.commercial and not rows.commercial(row["license"]):
                    figures["not_commercial"] += 1
                elif (key := dedup.prompt_hash(row)) in seen:
                    figures["duplicates"] += 1
                else:
                    seen.add(key)
                    if found := items(row) if items else None:
                        figures["contaminated"] += 1
                        line = {"source": row["source"], "id": row["id"], "why": found[1]}
                        contaminated.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    else:
                        group = "harmless" if row["kind"] == "harmless" else row["domain"]
                        pools[group].append((path, number))
    return pools, figures


def passing(
    config: RLPrompts, model: Model, store: Path, pool: list[Place], quota: int, rates: dict[Place, float]
) -> tuple[list[Place], int]:
    """Return (at most ``quota`` places of the pool, whose pass rate is in range or that no rule grades; the number of
    prompts that were sampled).

    Each round samples as many prompts as are still missing, so that no more are sampled than the quota needs."""
    wanted, kept, at = config.pass_rate, [], 0
    while len(kept) < quota and at < len(pool):
        places = pool[at : at + max(quota - len(kept), 64)]
        at += len(places)
        found = dict(pick(places))
        gradable = [place for place in places if found[place]["verifier"] in ("math", "choice", "code", "gym")]
        make = prompts.r1_zero if wanted.template == "r1_zero" else prompts.chat
        asked = [make(found[place]["prompt"]) for place in gradable]
        samples = model.sample(asked, wanted.n, wanted.decoding, config.seed, store)
        pairs = [
            (found[place], sample.text) for place, group in zip(gradable, samples, strict=True) for sample in group
        ]
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # grading may run programs
            right = list(threads.map(lambda pair: filters.is_right(*pair) is True, pairs))
        shares = {place: sum(right[at * wanted.n :][: wanted.n]) / wanted.n for at, place in enumerate(gradable)}
        for place, group in zip(gradable, samples, strict=True):
            if any(sample.is_unanswered for sample in group):
                shares[place] = math.nan  # never in range
        rates.update(shares)
        kept += [place for place in places if place not in rates or wanted.least <= rates[place] <= wanted.most]
    return kept[:quota], at


def pick(places: list[Place]) -> Iterator[tuple[Place, Row]]:
    """Yield (place, row) for each place, in the order of the files."""
    by_path: dict[Path, set[int]] = {}
    for path, number in places:
        by_path.setdefault(path, set()).add(number)
    for path, numbers in by_path.items():
        yield from (((path, at), row) for at, row in enumerate(rows.stream([path])) if at in numbers)


def write(output_dir: Path, chosen: list[Place], rates: dict[Place, float]) -> dict[str, int]:
    """Write ``reasoning.parquet``, ``helpful.parquet`` and ``harmless.parquet``, except empty ones, and return the
    number of rows of each."""
    counts = {}
    columns = (*sources.PROMPT_COLUMNS, *(["pass_rate"] if rates else []))
    for kind in KINDS:
        found = (row | {"pass_rate": rates.get(place)} for place, row in pick(chosen) if row["kind"] == kind)
        counts[kind] = rows.write_stream(output_dir / f"{kind}.parquet", found, sources.schema(columns))
        if not counts[kind]:
            (output_dir / f"{kind}.parquet").unlink()
    return {kind: count for kind, count in counts.items() if count}


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
