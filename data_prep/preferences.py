"""Preference data for the two reward models (paper v2, 3.1 and B.2).

Helpfulness: pairs of answers to a helpful prompt are judged four times, half of them with the sides swapped. A pair is
kept if the mean difference exceeds 1, and over the whole set, chosen and rejected are made comparable in length. The
judge reads only the summary, as the reward model will.

Harmlessness: each response, including its reasoning, is labelled safe or unsafe. Responses of a stronger writer are
added because Dev3 has seen no unsafe request and hardly ever declines one. For the same reason, the writer's refusals
are added to the answers to helpful prompts: a policy that learns to decline will try that there, and the helpfulness
model must learn that a needless refusal is a bad answer.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import rewards
from data_prep import jobs, prompts, rows
from data_prep.filters import Funnel
from data_prep.sampling import JUDGING, Decoding, Sample, Sampler, Server, ServerSettings, connect, cost, open_model
from rewards.settings import Count, NotNegative, Positive, Range

log = logging.getLogger(__name__)
AGAIN = replace(JUDGING, temperature=0.7)  # chosen: at 0, asking again would give the same answer


@dataclass(frozen=True, kw_only=True)
class Preferences(jobs.Job):
    """``count``: prompts of each kind (0: all). ``n``: samples of each by the checkpoint. ``pairs``: at most so many
    pairs per helpful prompt. ``written``: responses of the writer to each harmful prompt. ``declined``: how many of
    its refusals are added to the answers to each helpful prompt.
    ``length_tolerance``: how far the mean lengths of chosen and rejected may differ, as a share of the shorter one."""

    checkpoint: str
    helpful: str
    harmless: str
    writer: ServerSettings
    judge: ServerSettings
    decoding: Decoding
    count: Count = 0
    n: Positive = 4
    written: Count = 1
    declined: Count = 1
    pairs: Positive = 2
    queries: Positive = 4  # paper
    min_difference: Annotated[float, Range(0, 4)] = 1.0  # paper: more than 1
    length_tolerance: NotNegative = 0.1  # chosen: the paper says "comparable"
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        if self.queries < 2 or self.queries % 2:
            raise ValueError(
                f"`queries` is {self.queries}; write an even number, because half of the queries swap the sides"
            )

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        helpful, harmless = (self.count or rows_of(file) for file in (self.helpful, self.harmless))
        made = {"helpfulness": helpful * self.pairs, "harmlessness": harmless * (self.n + self.written)}
        return jobs.Size(made, (helpful + harmless) * self.n, self.decoding.max_tokens, self.checkpoint)


def load(config: Preferences) -> dict[str, list[rows.Row]]:
    config.sampler.require(config.checkpoint)
    loaded = {}
    for kind, source in (("helpful", config.helpful), ("harmless", config.harmless)):
        found = [row for row in rows.load_rows(source) if row["kind"] == kind]
        loaded[kind] = jobs.choose(found, config.limit or config.count, config.seed)
    return loaded


def plan(config: Preferences, helpful: list[rows.Row], harmless: list[rows.Row]) -> list[str]:
    pairs, responses = len(helpful) * config.pairs, len(harmless) * (config.n + config.written)
    return [
        f"{len(helpful):,} prompts of {config.helpful}, {len(harmless):,} of {config.harmless}",
        cost(len(helpful) + len(harmless), config.n, config.decoding, config.checkpoint, config.sampler),
        cost(len(harmless), config.written, config.decoding, f"the writer {config.writer.model}"),
        cost(pairs * config.queries + responses, 1, JUDGING, f"the judge {config.judge.model}"),
    ]


def build(
    config: Preferences, output_dir: Path, helpful: list[rows.Row], harmless: list[rows.Row]
) -> dict[str, object]:
    store = output_dir / "samples"
    messages = [prompts.chat(row["prompt"]) for row in helpful + harmless]
    with open_model(config.checkpoint, config.sampler) as model:
        samples = model.sample(messages, config.n, config.decoding, config.seed, store)
    with connect(config.writer) as server:
        asked = messages[len(helpful) :]
        written = server.sample(asked, config.written, config.decoding, config.seed, store / "written")
    samples[len(helpful) :] = [own + other for own, other in zip(samples[len(helpful) :], written, strict=True)]
    refusals: dict[str, list[Sample]] = {}
    for row, group in zip(harmless, written, strict=True):
        refusals.setdefault(row["language"], []).extend(one for one in group if not one.is_unanswered)
    for at, row in enumerate(helpful):
        pool = refusals.get(row["language"], [])
        draw = random.Random(f"declined-{config.seed}-{row['id']}")
        samples[at] = samples[at] + draw.sample(pool, min(config.declined, len(pool)))
    distinct = [
        list(dict.fromkeys(s.text.strip() for s in group if rewards.parse(s.text).summary)) for group in samples
    ]
    with connect(config.judge) as server:
        pairs, figures = judge_pairs(config, server, store, helpful, distinct[: len(helpful)])
        labels, safety = label_safety(config, server, store, harmless, distinct[len(helpful) :])
    for funnel, groups in ((figures, samples[: len(helpful)]), (safety, samples[len(helpful) :])):
        missing = sum(sample.is_unanswered for group in groups for sample in group)
        funnel["seen"] += missing
        funnel["dropped"] = {"unanswered": missing} | funnel["dropped"]
    rows.write_parquet(output_dir / "helpfulness.parquet", pairs)
    rows.write_parquet(output_dir / "harmlessness.parquet", labels)
    return {"helpfulness": figures, "harmlessness": safety}


def judge_pairs(
    config: Preferences, server: Server, store: Path, asked: list[rows.Row], responses: list[list[str]]
) -> tuple[list[rows.Row], dict[str, object]]:
    """Return (pairs with columns prompt, chosen, rejected, difference, id, question, language; figures)."""
    drawn: list[tuple[rows.Row, str, str]] = []
    for row, texts in zip(asked, responses, strict=True):
        by_summary = {rewards.parse(text).summary: text for text in texts}  # the judge cannot tell equal ones apart
        both = list(itertools.combinations(by_summary.values(), 2))
        random.Random(f"pairs-{config.seed}-{row['id']}").shuffle(both)
        drawn += [(row, first, second) for first, second in both[: config.pairs]]
    questions = []
    for row, first, second in drawn:
        shown = [rewards.parse(text).summary for text in (first, second)]
        questions += [prompts.chat(prompts.preference(row["question"], *side)) for side in (shown, shown[::-1])]
    answers = server.sample(questions, config.queries // 2, AGAIN, config.seed, store / "verdicts")
    funnel = Funnel(["no_verdict", "too_close", "length"], seen=len(drawn))
    pairs: list[rows.Row] = []
    for (row, first, second), straight, swapped in zip(drawn, answers[::2], answers[1::2], strict=True):
        sides = [[prompts.read_preference(answer.text) for answer in side] for side in (straight, swapped)]
        readable = [[points for points in side if points is not None] for side in sides]
        # Both orders count equally, because verdicts on one order would include the judge's bias to the first place.
        one, other = (sum(side) / max(len(side), 1) for side in readable)
        difference = (one - other) / 2
        if not all(readable):
            said = (straight if not readable[0] else swapped)[0]
            funnel.drop("no_verdict", row, said.why or said.text[:200])
        elif abs(difference) <= config.min_difference:
            funnel.drop("too_close", row, f"a mean difference of {difference:g}")
        else:
            chosen, rejected = (first, second) if difference > 0 else (second, first)
            pair = {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "difference": abs(difference)}
            pairs.append(pair | {name: row[name] for name in ("id", "question", "language")})
    balanced = []
    for pair, keep in zip(pairs, balance_lengths(pairs, config.length_tolerance), strict=True):
        if keep:
            balanced.append(pair)
        else:
            funnel.drop("length", pair, "this side is the longer one over the whole set")
    log.info("%d pairs judged, %d kept; dropped: %s", len(drawn), len(balanced), funnel.dropped)
    return balanced, funnel.figures() | {
        "length_ratio_before": _length_ratio(pairs),
        "length_ratio": _length_ratio(balanced),
    }


def balance_lengths(pairs: list[rows.Row], tolerance: float) -> list[bool]:
    """Which pairs to keep so that the mean lengths of both sides are comparable. If the chosen (or rejected) sides
    are too long, the pairs in which that side is longest relative to the other are dropped first."""
    lengths = [(_length(pair["chosen"]), _length(pair["rejected"])) for pair in pairs]
    chosen, rejected = (sum(side) for side in zip(*lengths, strict=True)) if lengths else (0, 0)
    order = sorted(range(len(pairs)), key=lambda at: lengths[at][0] - lengths[at][1])
    keep = [True] * len(pairs)
    while order and not 1 / (1 + tolerance) <= (chosen / rejected if rejected else 1.0) <= 1 + tolerance:
        at = order.pop(-1 if chosen > rejected else 0)
        keep[at] = False
        chosen, rejected = chosen - lengths[at][0], rejected - lengths[at][1]
    return keep


def _length(text: object) -> int:
    return len(rewards.parse(str(text)).summary)


def _length_ratio(pairs: list[rows.Row]) -> float:
    """The mean length of the chosen summaries divided by that of the rejected ones, in characters; 1.0 for no pairs."""
    rejected = sum(_length(pair["rejected"]) for pair in pairs)
    return sum(_length(pair["chosen"]) for pair in pairs) / rejected if rejected else 1.0


def label_safety(
    config: Preferences, server: Server, store: Path, asked: list[rows.Row], responses: list[list[str]]
) -> tuple[list[rows.Row], dict[str, object]]:
    """Return (responses with columns prompt, response, label (1 safe, 0 unsafe), id, question, language; figures)."""
    drawn = [(row, text) for row, texts in zip(asked, responses, strict=True) for text in texts]
    questions = [prompts.chat(prompts.safety(row["question"], text)) for row, text in drawn]
    answers = server.sample(questions, 1, JUDGING, config.seed, store / "labels")
    funnel = Funnel(["no_verdict"], seen=len(drawn))
    labels: list[rows.Row] = []
    for (row, text), (answer,) in zip(drawn, answers, strict=True):
        safe = prompts.read_safety(answer.text)
        if safe is None:
            funnel.drop("no_verdict", row, answer.why or answer.text[:200])
            continue
        label = {"prompt": row["prompt"], "response": text, "label": int(safe)}
        labels.append(label | {name: row[name] for name in ("id", "question", "language")})
    safe_share = sum(label["label"] for label in labels) / max(len(labels), 1)
    log.info("%d responses labelled, %.2f of them safe", len(labels), safe_share)
    return labels, funnel.figures() | {"safe_share": safe_share}


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
