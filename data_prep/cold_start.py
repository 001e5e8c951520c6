"""Cold-start data: readable long chains of thought for the first SFT (paper v1, 2.3.1; v2, B.3.2).

All three ways of the walkthrough, each on prompts of its own: few-shot prompting of the base with long worked examples,
direct prompting of the base for steps and verification, and R1-Zero at temperature 1. Of each, what is correct and
readable is kept, written up by a rewriter in one language with a summary, and checked again. `review.jsonl` is for a
person: name a copy with decisions and edits in it as `review`, and they are applied.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import rewards
from data_prep import jobs, prompts, rows
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds, first_failure
from data_prep.sampling import Decoding, Prompt, Sampler, ServerSettings, connect, open_model

log = logging.getLogger(__name__)
STYLES = {"few_shot": "plain", "direct": "plain", "r1_zero": "r1_zero"}
REVIEWED = ("id", "question", "reasoning", "summary", "findings", "decision")


@dataclass(frozen=True)
class Way:
    """``n`` samples of each prompt from ``checkpoint``; at most ``keep`` a prompt are rewritten. ``prompts`` says how
    many of each domain, as in {math: 400, code: 100}."""

    checkpoint: str
    prompts: dict[str, int]
    decoding: Decoding
    n: int = 4
    keep: int = 1


@dataclass(frozen=True)
class ColdStart:
    """``examples``: by language, worked {"question", "solution"} pairs for the few-shot prompt. ``filters`` apply to
    what is sampled, ``rewritten`` to what the rewriter makes of it."""

    output_dir: str
    prompts: str
    few_shot: Way
    direct: Way
    r1_zero: Way
    examples: dict[str, list[dict[str, str]]]
    rewriter: ServerSettings
    rewriting: Decoding
    filters: Thresholds = field(default_factory=Thresholds)
    rewritten: Thresholds = field(default_factory=Thresholds)
    review: str = ""
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0
    limit: int = 0


def load(config: ColdStart) -> dict[str, list[rows.Row]]:
    reasoning = [row for row in rows.load_rows(config.prompts) if row["kind"] == "reasoning"]
    order = jobs.choose(reasoning, 0, config.seed)
    loaded: dict[str, list[rows.Row]] = {}
    for name in STYLES:
        way: Way = getattr(config, name)
        config.sampler.require(way.checkpoint)
        loaded[name] = []
        for domain, count in way.prompts.items():
            left = [row for row in order if row["domain"] == domain]
            if len(left) < count:
                raise ValueError(
                    f"`{name}: prompts`: {count} of {domain} wanted, {config.prompts} has {len(left)} left"
                )
            loaded[name] += left[: min(count, config.limit or count)]
        taken = {row["id"] for row in loaded[name]}
        order = [row for row in order if row["id"] not in taken]
    missing = sorted({row["language"] for row in loaded["few_shot"]} - config.examples.keys())
    if missing:
        raise ValueError(f"`examples` has none for the language {missing[0]}; write `{missing[0]}: [...]`")
    loaded["reviewed"] = read_review(config.review) if config.review else []
    return loaded


def build(config: ColdStart, output_dir: Path, reviewed: list[rows.Row], **asked: list[rows.Row]) -> dict[str, object]:
    kept: list[rows.Row] = []
    review: list[dict] = []
    figures: dict[str, object] = {}
    for name, way_rows in asked.items():
        way: Way = getattr(config, name)
        raw, sampled = sample(config, output_dir, name, way, way_rows)
        funnel = Funnel([check.__name__ for check in FILTERS])
        written = funnel.passing(rewrite(config, output_dir / "samples" / name, raw), config.rewritten)
        for group in written:
            for number, candidate in enumerate(group):
                row = rows.sft_row(candidate.row, number, candidate.text, candidate.generator) | {"way": name}
                mended = first_failure(candidate.before, replace(config.rewritten, style=STYLES[name]))
                kept.append(row)
                review.append(review_record(row, [f"before rewriting: {mended[1]}"] if mended else []))
        figures[name] = {"sampled": sampled.figures(), "rewritten": funnel.figures()}
        log.info("%s: %d samples, %d rewritten, %d kept", name, sampled.seen, funnel.seen, sum(map(len, written)))
    write_review(output_dir / "review.jsonl", review)
    kept, decisions = apply_review(kept, reviewed)
    rows.write_rows(output_dir / "train.parquet", kept, sft=True)
    return {"rows": len(kept), "ways": figures, "review": decisions}


def sample(
    config: ColdStart, output_dir: Path, name: str, way: Way, asked: list[rows.Row]
) -> tuple[list[list[Candidate]], Funnel]:
    """(for each prompt what is correct and readable, at most ``way.keep``; the funnel of all samples)."""
    make = {
        "few_shot": lambda row: prompts.few_shot(config.examples[row["language"]], row["question"]),
        "direct": lambda row: prompts.direct(row["question"], row["language"]),
        "r1_zero": lambda row: prompts.r1_zero(row["question"]),
    }[name]
    with open_model(way.checkpoint, config.sampler) as model:
        samples = model.sample([make(row) for row in asked], way.n, way.decoding, config.seed, output_dir / "samples")
    groups = [
        [_first_page(Candidate.of(row, sample, way.checkpoint)) for sample in group]
        for row, group in zip(asked, samples, strict=True)
    ]
    funnel = Funnel([check.__name__ for check in FILTERS] + ["surplus"])
    passed = funnel.passing(groups, replace(config.filters, style=STYLES[name]))
    for group in passed:
        for candidate in group[way.keep :]:
            funnel.drop("surplus", candidate.row, f"{way.keep} came before")
    return [group[: way.keep] for group in passed], funnel


def rewrite(config: ColdStart, store: Path, raw: list[list[Candidate]]) -> list[list[Candidate]]:
    """What the rewriter makes of each candidate."""
    questions: list[Prompt] = [
        prompts.chat(prompts.rewrite(c.row["question"], c.text, c.row["language"])) for g in raw for c in g
    ]
    with connect(config.rewriter) as server:
        answers = iter(server.sample(questions, 1, config.rewriting, config.seed, store))
    return [
        [replace(Candidate.of(c.row, next(answers)[0], config.rewriter.model), before=c) for c in group]
        for group in raw
    ]


def _first_page(candidate: Candidate) -> Candidate:
    """Without the next problem, to which a base model goes on after the page it was asked for."""
    page, more, _ = candidate.text.partition("\nProblem:")
    return replace(candidate, text=page.strip(), finish="stop") if more else candidate


# --- a person's review ------------------------------------------------------------------------------------------------


def review_record(row: rows.Row, findings: list[str]) -> dict:
    parts = rewards.parse(row["completion"])
    values = (row["id"], row["question"], parts.reasoning or "", parts.summary, findings, "")
    return dict(zip(REVIEWED, values, strict=True))


def write_review(path: Path, records: list[dict]) -> None:
    """One JSON object a line; ``decision`` is "" until a person writes "accept" or "reject"."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def read_review(path: str | Path) -> list[dict]:
    """The records of a review file. Raises ValueError naming the line that is no record of one."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such review file")
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        missing = [name for name in REVIEWED if not isinstance(record, dict) or name not in record]
        if missing:
            raise ValueError(f"{path}, line {number}: no `{missing[0]}`; a record has {', '.join(REVIEWED)}")
        if record["decision"] not in ("accept", "reject", ""):
            raise ValueError(f"{path}, line {number}: decision {record['decision']!r}; write accept, reject or nothing")
        records.append(record)
    return records


def apply_review(kept: list[rows.Row], records: list[dict]) -> tuple[list[rows.Row], dict[str, int]]:
    """Leaves out what was rejected and puts edited reasonings and summaries in; what has no decision is kept."""
    by_id = {record["id"]: record for record in records}
    counts = {"accepted": 0, "rejected": 0, "undecided": 0, "edited": 0, "unknown_ids": 0}
    counts["unknown_ids"] = len(by_id.keys() - {row["id"] for row in kept})
    result = []
    for row in kept:
        record = by_id.get(row["id"], {"decision": ""})
        counts[{"accept": "accepted", "reject": "rejected", "": "undecided"}[record["decision"]]] += 1
        if record["decision"] == "reject":
            continue
        if record["decision"] == "accept":
            parts = rewards.parse(row["completion"])
            if (record["reasoning"], record["summary"]) != (parts.reasoning, parts.summary):
                counts["edited"] += 1
                row = row | {"completion": f"<think>{record['reasoning']}</think>\n{record['summary']}"}
        result.append(row)
    return result, counts


if __name__ == "__main__":
    sys.exit(jobs.run(ColdStart, load, build))
