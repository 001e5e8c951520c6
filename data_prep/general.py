"""General data: the part of the 800k that is no reasoning task (paper v2, B.3.3; v1, 2.3.3).

The model itself and a stronger writer answer helpful prompts. They reason only where the row or the judge says that
reasoning helps (not for "hello"), and answers are kept if a judge scores them high enough. The paper names writing,
factual QA, self-cognition, translation and software engineering, without shares. The prompts contain no unsafe
requests, as the paper's SFT mixture has none.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import rewards
from data_prep import jobs, prompts, rows
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds
from data_prep.sampling import JUDGING, Decoding, Sampler, ServerSettings, connect, cost, open_model
from rewards.settings import Count, Positive, Range

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class General(jobs.Job):
    """The checkpoint writes ``n`` answers per prompt, and the writer ``written`` more. The first ``keep`` that pass the
    filters and score at least ``min_score`` (0 to 3) are kept. The row says whether a prompt is answered with
    reasoning; with ``judge_thinking``, the judge does, for sources that do not state it. The judge also names the kind
    of task. With ``tasks``, shares such as ``{writing: 3, translation: 1}``, the judge is asked about all prompts, and
    ``count`` prompts are taken in these proportions, or fewer if there are too few."""

    checkpoint: str
    prompts: str
    writer: ServerSettings
    judge: ServerSettings
    decoding: Decoding
    count: Count = 0
    n: Count = 2
    written: Count = 1
    keep: Positive = 2
    min_score: Annotated[int, Range(0, 3)] = 2
    judge_thinking: bool = False
    tasks: dict[str, int] = field(default_factory=dict)
    filters: Thresholds = field(default_factory=Thresholds)
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        if not self.n + self.written:
            raise ValueError(
                "`n` and `written` are both 0, so there would be no answers; write at least 1 for one of them"
            )
        if unknown := ", ".join(set(self.tasks) - set(prompts.TASKS)):
            raise ValueError(f"`tasks`: {unknown} is not known; write shares of {', '.join(prompts.TASKS)}")
        if self.tasks and not (
            min(self.tasks.values()) >= 0 < sum(self.tasks.values()) and self.judge_thinking and self.count
        ):
            raise ValueError(
                "`tasks`: the judge decides the task of each prompt; write `judge_thinking: true`, `count`, and their "
                "shares"
            )

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        asked = self.count or rows_of(self.prompts)
        return jobs.Size({"": asked * self.keep}, asked * self.n, self.decoding.max_tokens, self.checkpoint)


def load(config: General) -> dict[str, list[rows.Row]]:
    config.sampler.require(config.checkpoint)
    helpful = [row for row in rows.load_rows(config.prompts) if row["kind"] == "helpful"]
    return {"prompts": jobs.choose(helpful, config.limit or (0 if config.tasks else config.count), config.seed)}


def plan(config: General, prompts: list[rows.Row]) -> list[str]:
    chosen = min(len(prompts), config.count or len(prompts))
    judgements = len(prompts) * config.judge_thinking + chosen * (config.n + config.written)
    shares = ", ".join(f"{count:,} {task}" for task, count in quotas(config, chosen).items())
    return [
        f"{len(prompts):,} prompts of {config.prompts}" + (f", of which {shares}" if shares else ""),
        f"{chosen:,} of them answered, at most {config.keep} rows of each",
        cost(chosen, config.n, config.decoding, config.checkpoint, config.sampler),
        cost(chosen, config.written, config.decoding, f"the writer {config.writer.model}"),
        cost(judgements, 1, JUDGING, f"the judge {config.judge.model}"),
    ]


def quotas(config: General, total: int) -> dict[str, int]:
    """The number of prompts of each kind of task; empty if the config has no ``tasks``."""
    return jobs.scaled(config.tasks, total) if config.tasks else {}


def build(config: General, output_dir: Path, prompts: list[rows.Row]) -> dict[str, object]:
    funnel = Funnel([check.__name__ for check in FILTERS] + ["low_score", "no_verdict", "duplicate", "surplus"])
    figures: dict[str, object] = {}
    task_of: dict[str, str] = {}
    if config.judge_thinking:
        prompts, task_of, figures["thinking_undecided"] = judged(config, output_dir, prompts)
    if config.tasks:
        prompts, figures["tasks_short"] = divided(config, prompts, task_of)
    groups = funnel.passing(answer(config, output_dir, prompts), config.filters)
    scores = score(config, output_dir, groups)
    kept: list[rows.Row] = []
    by_writer: dict[str, int] = {}
    for group, group_scores in zip(groups, scores, strict=True):
        texts: set[str] = set()
        for candidate, points in zip(group, group_scores, strict=True):
            if points is None:
                funnel.drop("no_verdict", candidate.row, candidate.text[:200])
            elif points < config.min_score:
                funnel.drop("low_score", candidate.row, f"{points}: {candidate.text[:200]}")
            elif candidate.text in texts:
                funnel.drop("duplicate", candidate.row, candidate.text[:200])
            elif len(texts) == config.keep:
                funnel.drop("surplus", candidate.row, f"{config.keep} came before")
            else:
                kept.append(rows.sft_row(candidate.row, len(texts), candidate.text, candidate.generator))
                by_writer[candidate.generator] = by_writer.get(candidate.generator, 0) + 1
                texts.add(candidate.text)
    log.info("%d answers, %d kept, by writer %s; dropped: %s", funnel.seen, len(kept), by_writer, funnel.dropped)
    rows.write_rows(output_dir / "train.parquet", kept, sft=True)
    if task_of:
        figures["by_task"] = dict(Counter(task_of[row["question"]] for row in kept))
    figures["thinking_rows"] = sum(bool(row["thinking"]) for row in kept)
    return {"rows": len(kept), **figures, "by_writer": by_writer, "funnel": funnel.figures()}


def judged(config: General, output_dir: Path, asked: list[rows.Row]) -> tuple[list[rows.Row], dict[str, str], int]:
    """Return the rows with the judge's verdict on whether reasoning helps, the kind of each question's task ("other" if
    the judge names none), and the number of rows without a verdict, which keep their own ``thinking``."""
    with connect(config.judge) as server:
        questions = [prompts.chat(prompts.task(row["question"])) for row in asked]
        said = server.sample(questions, 1, JUDGING, config.seed, output_dir / "samples" / "tasks")
    verdicts = [prompts.read_thinking(samples[0].text) for samples in said]
    kinds = [prompts.read_task(samples[0].text) or "other" for samples in said]
    wanted, undecided = verdicts.count(True), verdicts.count(None)
    log.info(
        "the judge wants reasoning for %d of %d prompts, and gives no verdict on %d", wanted, len(asked), undecided
    )
    found = [row if said is None else row | {"thinking": said} for row, said in zip(asked, verdicts, strict=True)]
    return found, dict(zip((row["question"] for row in asked), kinds, strict=True)), undecided


def divided(config: General, asked: list[rows.Row], task_of: dict[str, str]) -> tuple[list[rows.Row], dict[str, int]]:
    """Return ``count`` rows by the shares of ``tasks``, in their order, and how many rows of each kind were missing."""
    left = quotas(config, min(config.count, len(asked)))
    taken = []
    for row in asked:
        if left.get(task_of[row["question"]], 0):
            left[task_of[row["question"]]] -= 1
            taken.append(row)
    short = {task: count for task, count in left.items() if count}
    if short:
        log.warning("too few prompts of %s", ", ".join(f"{task} ({count} missing)" for task, count in short.items()))
    return taken, short


def answer(config: General, output_dir: Path, asked: list[rows.Row]) -> list[list[Candidate]]:
    """The model's, then the writer's answers to each prompt. Reasoning is cut off for rows without thinking."""
    store = output_dir / "samples"
    messages = [prompts.chat(row["prompt"]) for row in asked]
    with open_model(config.checkpoint, config.sampler) as model:
        own = model.sample(messages, config.n, config.decoding, config.seed, store)
    tasks = [
        prompts.short_reasoning(row["prompt"], row["language"]) if row["thinking"] else row["prompt"] for row in asked
    ]
    with connect(config.writer) as server:
        others = server.sample(
            [prompts.chat(task) for task in tasks], config.written, config.decoding, config.seed, store / "written"
        )
    groups = []
    for row, mine, theirs in zip(asked, own, others, strict=True):
        group = [Candidate.of(row, sample, config.checkpoint) for sample in mine]
        group += [Candidate.of(row, sample, config.writer.model) for sample in theirs]
        groups.append(group if row["thinking"] else [replace(c, text=rewards.parse(c.text).summary) for c in group])
    return groups


def score(config: General, output_dir: Path, groups: list[list[Candidate]]) -> list[list[int | None]]:
    """The judge's score of each candidate's summary, or None if the judge's answer contains no score."""
    questions = [
        prompts.chat(prompts.score(c.row["question"], rewards.parse(c.text).summary)) for group in groups for c in group
    ]
    with connect(config.judge) as server:
        answers = iter(server.sample(questions, 1, JUDGING, config.seed, output_dir / "samples" / "verdicts"))
    return [[prompts.read_score(next(answers)[0].text) for _ in group] for group in groups]


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
