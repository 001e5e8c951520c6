"""Rejection sampling: the reasoning part of the 800k (paper v2, B.3.3; v1, 2.3.3).

Several samples a prompt from the checkpoint of the first reasoning RL; rules decide what is correct, a generative judge
where rules cannot; what mixes languages, rambles, repeats itself or puts code blocks into its reasoning is dropped; the
best k a prompt are kept. run.json holds the funnel.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import rewards
from data_prep import jobs, prompts, rows
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds
from data_prep.sampling import Decoding, Sampler, ServerSettings, connect, open_model

log = logging.getLogger(__name__)
JUDGING = Decoding(max_tokens=1024, temperature=0.0)


@dataclass(frozen=True)
class RejectionSampling:
    """``count`` prompts (0: all), ``n`` samples of each, at most ``keep`` of them kept. The paper prints none of these
    numbers, nor the temperature."""

    output_dir: str
    checkpoint: str
    prompts: str
    judge: ServerSettings
    decoding: Decoding
    count: int = 0
    n: int = 4
    keep: int = 2
    filters: Thresholds = field(default_factory=Thresholds)
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0
    limit: int = 0


def load(config: RejectionSampling) -> dict[str, list[rows.Row]]:
    config.sampler.require(config.checkpoint)
    reasoning = [row for row in rows.load_rows(config.prompts) if row["kind"] == "reasoning"]
    return {"prompts": jobs.choose(reasoning, config.limit or config.count, config.seed)}


def build(config: RejectionSampling, output_dir: Path, prompts: list[rows.Row]) -> dict[str, object]:
    kept, figures = sample_and_select(config, output_dir, prompts)
    rows.write_rows(output_dir / "train.parquet", kept, sft=True)
    return figures


def sample_and_select(config, output_dir: Path, asked: list[rows.Row]) -> tuple[list[rows.Row], dict[str, object]]:
    """(SFT rows in the order of the prompts, figures). ``config`` has the fields of RejectionSampling from
    ``checkpoint`` to ``seed``."""
    store = output_dir / "samples"
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
    groups: list[list[Candidate]], settings: ServerSettings, seed: int, store: Path, funnel: Funnel
) -> list[list[Candidate]]:
    """Leaves out what the judge holds incorrect against the reference; only rows with verifier "judge" are asked."""
    asked = [c for group in groups for c in group if c.row["verifier"] == "judge"]
    if not asked:
        return groups
    questions = [prompts.chat(prompts.correctness(c.row["question"], c.row["answer"], c.text)) for c in asked]
    with connect(settings) as server:
        answers = server.sample(questions, 1, JUDGING, seed, store)
    dropped = set()
    for candidate, (answer,) in zip(asked, answers, strict=True):
        verdict = prompts.read_correctness(answer.text)
        if verdict is not True:
            dropped.add(id(candidate))
            step = "no_verdict" if verdict is None else "judged_incorrect"
            funnel.drop(step, candidate.row, answer.text[:200])
    return [[c for c in group if id(c) not in dropped] for group in groups]


def best(group: list[Candidate], keep: int, funnel: Funnel) -> list[Candidate]:
    """The ``keep`` best distinct ones. chosen: purest language first, then the shorter, then the earlier."""
    distinct = {candidate.text: candidate for candidate in reversed(group)}
    for candidate in group:
        if distinct[candidate.text] is not candidate:
            funnel.drop("duplicate", candidate.row, "the same text as another sample of the prompt")

    def merit(candidate: Candidate) -> tuple[float, int]:
        reasoning = rewards.parse(candidate.text).reasoning or ""
        return -rewards.language_consistency(reasoning, candidate.row["language"]), candidate.completion_tokens

    ranked = sorted((c for c in group if distinct[c.text] is c), key=merit)
    for candidate in ranked[keep:]:
        funnel.drop("surplus", candidate.row, f"{keep} better samples of the prompt")
    return ranked[:keep]


if __name__ == "__main__":
    sys.exit(jobs.run(RejectionSampling, load, build))
