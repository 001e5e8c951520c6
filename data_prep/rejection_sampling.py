"""Rejection sampling: the reasoning part of the 800k (paper v2, B.3.3; v1, 2.3.3).

The checkpoint of reasoning RL (Dev2) answers each prompt several times. Rules decide which answers are correct, and a
generative judge decides where rules cannot. Answers that mix languages, ramble, repeat themselves or put code blocks
into their reasoning are dropped, and the best k per prompt are kept. run.json holds the funnel. With ``tasks``, the
prompts are divided among processes or nodes (``executor``), and each task writes its rows to a file of its own.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rewards
from data_prep import engine, jobs, prompts, rows, runs, shards
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds
from data_prep.sampling import JUDGING, Decoding, Sampler, ServerSettings, connect, cost, open_model
from rewards import judge as correctness
from rewards.settings import Count, Positive

import pyarrow as pa

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection(jobs.Job):
    """``n`` samples of each prompt, of which at most ``keep`` are kept. Each task holds its share of the prompts and
    samples in memory, and its own copy of the model. ``judge`` may be left out if rules grade all prompts."""

    checkpoint: str
    decoding: Decoding
    n: Positive
    keep: Positive
    judge: ServerSettings | None = None
    filters: Thresholds = field(default_factory=Thresholds)
    sampler: Sampler = field(default_factory=Sampler)
    tasks: Positive = 1
    distributed = True


@dataclass(frozen=True, kw_only=True)
class RejectionSampling(Selection):
    """``count`` prompts (0: all). The paper states none of these numbers, nor the temperature."""

    prompts: str
    count: Count = 0
    n: Positive = 4
    keep: Positive = 2

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        asked = self.count or rows_of(self.prompts)
        return jobs.Size({"": asked * self.keep}, asked * self.n, self.decoding.max_tokens, self.checkpoint)


def load(config: RejectionSampling) -> dict[str, list[rows.Row]]:
    config.sampler.require(config.checkpoint)
    reasoning = [row for row in rows.load_rows(config.prompts) if row["kind"] == "reasoning"]
    chosen = jobs.choose(reasoning, config.limit or config.count, config.seed)
    if not chosen:
        raise ValueError(f"{config.prompts}: no row has the kind `reasoning`, and only these are sampled")
    if not config.judge and (judged := sum(row["verifier"] == "judge" for row in chosen)):
        raise ValueError(f"{judged} prompts of {config.prompts} have the verifier `judge`; write `judge: ...`")
    return {"prompts": chosen}


def plan(config: RejectionSampling, prompts: list[rows.Row]) -> list[str]:
    return selection_plan(config, config.prompts, prompts)


def selection_plan(config: Selection, source: str, prompts: list[rows.Row]) -> list[str]:
    judged = sum(row["verifier"] == "judge" for row in prompts) * config.n
    asked = [cost(judged, 1, JUDGING, f"the judge {config.judge.model}")] if config.judge else []
    return [
        f"{len(prompts):,} prompts of {source}, at most {config.keep} rows of each",
        cost(len(prompts), config.n, config.decoding, config.checkpoint, config.sampler),
        *asked,
        f"{config.tasks} tasks ({config.executor.kind})",
    ]


def build(config: RejectionSampling, output_dir: Path, prompts: list[rows.Row]) -> dict[str, object]:
    return select_in_tasks(config, output_dir, prompts, load)


def select_in_tasks(config: Selection, output_dir: Path, asked: list[rows.Row], load: Callable) -> dict[str, object]:
    """Sample and select for all prompts of ``load(config)`` in ``config.tasks`` tasks, and return the figures."""
    if config.tasks == 1 and config.executor.kind == "local":
        kept, figures = sample_and_select(config, output_dir / "samples", asked)
        if not kept:
            raise _nothing(output_dir, figures["funnel"])
        rows.write_rows(output_dir / "train.parquet", kept, sft=True)
        return figures
    task = engine.Task(functools.partial(_share, config, output_dir, load))
    engine.run([task], config.tasks, output_dir / "work", config.executor)
    found = [json.loads(path.read_bytes()) for path in sorted((output_dir / "work").glob("figures-*.json"))]
    total = {name: sum(one[name] for one in found) for name in ("rows", "prompts", "prompts_with_rows")}
    funnels = [one["funnel"] for one in found]
    funnel = {
        "seen": sum(one["seen"] for one in funnels),
        "dropped": {step: sum(one["dropped"][step] for one in funnels) for step in funnels[0]["dropped"]},
        "kept": sum(one["kept"] for one in funnels),
        "first_dropped": {step: why for one in reversed(funnels) for step, why in one["first_dropped"].items()},
    }
    if not total["rows"]:
        raise _nothing(output_dir, funnel)
    tokens = sum(one["mean_completion_tokens"] * one["rows"] for one in found)
    return total | {"funnel": funnel, "mean_completion_tokens": tokens / total["rows"]}


def _nothing(output_dir: Path, funnel: dict[str, Any]) -> rows.NoRowsError:
    step, number = max(funnel["dropped"].items(), key=lambda one: one[1])
    first = funnel["first_dropped"][step]
    return rows.NoRowsError(
        f"{output_dir}: all {funnel['seen']} samples were dropped, {number} of them as `{step}`, such as {first}"
    )


def _share(config: Selection, output_dir: Path, load: Callable, rank: int, tasks: int) -> None:
    """Process a task's share of the prompts: every ``tasks``th prompt, from number ``rank`` on. A file without rows has
    the same columns as the others."""
    asked = load(config)["prompts"]
    more = ["completion", "generator"] + ["tests"] * any(row.get("tests") for row in asked)
    schema = pa.schema([*shards.CONTRACT, *((name, pa.string()) for name in more)])
    store = output_dir / "samples" / f"{rank:05d}-of-{tasks:05d}"
    kept, figures = sample_and_select(config, store, asked[rank::tasks])
    path = output_dir / rows.part_names(tasks)[rank]
    rows.validate(kept, str(path), sft=True)
    rows.write_stream(path, kept, schema)
    runs.write_json(output_dir / "work" / f"figures-{rank:05d}.json", figures)


def sample_and_select(
    config: Selection, store: Path, asked: list[rows.Row]
) -> tuple[list[rows.Row], dict[str, object]]:
    """Return (SFT rows in the order of the prompts, figures)."""
    messages = [prompts.chat(row["prompt"]) for row in asked]
    with open_model(config.checkpoint, config.sampler) as model:
        samples = model.sample(messages, config.n, config.decoding, config.seed, store)
    groups = [
        [Candidate.of(row, sample, config.checkpoint) for sample in group]
        for row, group in zip(asked, samples, strict=True)
    ]
    funnel = Funnel([check.__name__ for check in FILTERS] + ["judged_incorrect", "no_verdict", "duplicate", "surplus"])
    passed = judge(funnel.passing(groups, config.filters), config.judge, config.seed, store / "verdicts", funnel)
    kept = [best(group, config.keep, funnel) for group in passed]
    result = [
        rows.sft_row(candidate.row, number, candidate.text, candidate.generator)
        for group in kept
        for number, candidate in enumerate(group)
    ]
    log.info("%d prompts, %d samples, %d kept; dropped: %s", len(asked), funnel.seen, len(result), funnel.dropped)
    return result, {
        "rows": len(result),
        "prompts": len(asked),
        "prompts_with_rows": sum(map(bool, kept)),
        "funnel": funnel.figures(),
        "mean_completion_tokens": sum(c.completion_tokens for g in kept for c in g) / max(len(result), 1),
    }


def judge(
    groups: list[list[Candidate]], settings: ServerSettings | None, seed: int, store: Path, funnel: Funnel
) -> list[list[Candidate]]:
    """Ask the judge about the completions of the rows with verifier "judge", and keep those that it finds correct.

    A completion is dropped if the judge finds that it does not match the reference, or gives no verdict. It is also
    dropped, without asking, if `rewards.judge` refuses to show its text to a judge.
    """
    asked, questions, dropped = [], [], set()
    for candidate in (c for group in groups for c in group if c.row["verifier"] == "judge"):
        shown = correctness.shown(candidate.text)
        if why := correctness.refusal(shown):
            dropped.add(id(candidate))
            funnel.drop("judged_incorrect", candidate.row, f"not shown to the judge: {why}")
        else:
            asked.append(candidate)
            question = correctness.judge_prompt(candidate.row["question"], candidate.row["answer"], shown)
            questions.append(prompts.chat(question))
    answers = []
    if asked:
        with connect(settings) as server:
            answers = server.sample(questions, 1, JUDGING, seed, store)
    for candidate, (answer,) in zip(asked, answers, strict=True):
        verdict = correctness.read_verdict(answer.text)
        if verdict is not True:
            dropped.add(id(candidate))
            step = "no_verdict" if verdict is None else "judged_incorrect"
            funnel.drop(step, candidate.row, answer.why or answer.text[:200])
    return [[c for c in group if id(c) not in dropped] for group in groups]


def best(group: list[Candidate], keep: int, funnel: Funnel) -> list[Candidate]:
    """The ``keep`` best distinct candidates. The order is our choice: the purest language first, then the shorter, then
    the earlier one."""
    distinct = {candidate.text: candidate for candidate in reversed(group)}
    for candidate in group:
        if distinct[candidate.text] is not candidate:
            funnel.drop("duplicate", candidate.row, "the same text as another sample of the prompt")

    def merit(candidate: Candidate) -> tuple[float, int]:
        purity = rewards.language_consistency(candidate.reasoning or "", candidate.row["language"])
        return -purity, candidate.completion_tokens

    ranked = sorted((c for c in group if distinct[c.text] is c), key=merit)
    for candidate in ranked[keep:]:
        funnel.drop("surplus", candidate.row, f"{keep} better samples of the prompt")
    return ranked[:keep]


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
