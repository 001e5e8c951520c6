"""Cold-start data: readable long chains of thought for the first SFT (paper v1, 2.3.1; v2, B.3.2).

The paper samples R1-Zero at temperature 1 and keeps the correct and readable completions. A rewriter puts them into one
language and adds a summary, the result is checked again, and a person reviews it. The walkthrough's two other ways
follow the same steps on prompts of their own: few-shot prompting of the base with long worked examples, and direct
prompting of the base for steps and verification. Ways that are not wanted can be left out. Without a rewriter, the
sampled text itself is the reasoning, and the summary states the answer.

`review.csv` and `review.jsonl` hold the same list for the reviewer. Open one with `python -m data_prep.review`, or edit
one by hand: write accept or reject as the decision, and correct reasoning and summary where needed. Then set `review`
to the file of decisions that the page wrote, or to the edited file, and run the same command again.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import rewards
from data_prep import jobs, prompts, rows, runs
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds, first_failure, is_right
from data_prep.sampling import Decoding, Prompt, Sampler, ServerSettings, connect, cost, open_model
from rewards.settings import FILLED, Positive

log = logging.getLogger(__name__)
STYLES = {"few_shot": "plain", "direct": "plain", "r1_zero": "r1_zero"}
ANSWERED = ("math", "choice", "gym")  # verifiers whose answers fit into a sentence
SUMMARY = {"en": "The answer is {}.", "zh": "答案是 {}。"}
REVIEWED = ("id", "question", "reasoning", "summary", "findings", "decision")
LOGGED = ("reviewer", "reason", "time")  # further fields of decisions made on the page of data_prep.review


@dataclass(frozen=True)
class Way:
    """``n`` samples of each prompt from ``checkpoint``; at most ``keep`` per prompt are rewritten. ``prompts`` is the
    number of prompts in each domain, as in {math: 400, code: 100}."""

    checkpoint: str
    prompts: Annotated[dict[str, Positive], FILLED]
    decoding: Decoding
    n: Positive = 4
    keep: Positive = 1


@dataclass(frozen=True, kw_only=True)
class ColdStart(jobs.Job):
    """``examples``: worked {"question", "solution"} pairs for the few-shot prompt, by language. ``filters`` apply to
    the samples, ``rewritten`` to the rewriter's output."""

    prompts: str
    rewriter: ServerSettings | None = None
    rewriting: Decoding | None = None
    r1_zero: Way | None = None
    few_shot: Way | None = None
    direct: Way | None = None
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    filters: Thresholds = field(default_factory=Thresholds)
    rewritten: Thresholds = field(default_factory=Thresholds)
    review: str = ""
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        if not self.ways:
            raise ValueError("no source of cold-start data is set; write `r1_zero:`, `few_shot:` or `direct:`")
        if (self.rewriter is None) != (self.rewriting is None):
            raise ValueError("`rewriter` and `rewriting` go together; write both or neither")

    @property
    def ways(self) -> dict[str, Way]:
        return {name: way for name in STYLES if (way := getattr(self, name))}

    def size(self, rows_of: Callable[[str], int]) -> jobs.Size:
        asked = {name: sum(way.prompts.values()) for name, way in self.ways.items()}
        first = next(iter(self.ways.values()))
        return jobs.Size(
            {"": sum(asked[name] * way.keep for name, way in self.ways.items())},
            sum(asked[name] * way.n for name, way in self.ways.items()),
            first.decoding.max_tokens,
            first.checkpoint,
        )


def load(config: ColdStart) -> dict[str, list[rows.Row]]:
    if config.review and Path(config.review).resolve().is_relative_to(Path(config.output_dir).resolve()):
        raise ValueError(
            f"`review`: {config.review} lies in this job's folder, which --redo moves aside; copy it out of there first"
        )
    reasoning = [row for row in rows.load_rows(config.prompts) if row["kind"] == "reasoning"]
    order = jobs.choose(reasoning, 0, config.seed)
    loaded: dict[str, list[rows.Row]] = {}
    for name, way in config.ways.items():
        config.sampler.require(way.checkpoint)
        loaded[name] = []
        for domain, count in way.prompts.items():
            left = [row for row in order if row["domain"] == domain]
            if len(left) < count:
                raise ValueError(
                    f"`{name}: prompts`: {count} prompts of {domain} are wanted, "
                    f"but {config.prompts} has {len(left)} left"
                )
            loaded[name] += left[: min(count, config.limit or count)]
        taken = {row["id"] for row in loaded[name]}
        order = [row for row in order if row["id"] not in taken]
    ungraded = [row for way_rows in loaded.values() for row in way_rows if row["verifier"] not in ANSWERED]
    if ungraded and not config.rewriter:
        row = ungraded[0]
        raise ValueError(
            f"{config.prompts}: the prompt {row['id']} has the verifier `{row['verifier']}`, so there is no answer "
            "to state in a summary; write `rewriter:` and `rewriting:`, or leave such prompts out"
        )
    missing = sorted({row["language"] for row in loaded.get("few_shot", [])} - config.examples.keys())
    if missing:
        raise ValueError(f"`examples` has none for the language {missing[0]}; write `{missing[0]}: [...]`")
    loaded["reviewed"] = read_review(config.review, reasoning) if config.review else []
    return loaded


def plan(config: ColdStart, reviewed: list[rows.Row], **asked: list[rows.Row]) -> list[str]:
    lines = [f"prompts of {config.prompts}" + (f"; the review {config.review}" if config.review else "")]
    for name, way_rows in asked.items():
        way: Way = getattr(config, name)
        lines.append(f"{name}: {cost(len(way_rows), way.n, way.decoding, way.checkpoint, config.sampler)}")
        if config.rewriter:
            by = f"the rewriter {config.rewriter.model}"
            lines.append(f"{name}: {cost(len(way_rows), way.keep, config.rewriting, by)}")
    return lines


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
    write_review(output_dir, review)
    kept, decisions = apply_review(kept, reviewed)
    rows.write_rows(output_dir / "train.parquet", kept, sft=True)
    return {"rows": len(kept), "ways": figures, "review": decisions}


def sample(
    config: ColdStart, output_dir: Path, name: str, way: Way, asked: list[rows.Row]
) -> tuple[list[list[Candidate]], Funnel]:
    """Return (at most ``way.keep`` correct and readable candidates for each prompt, the funnel of all samples)."""
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
    """Rewrite each candidate. Without a rewriter, it becomes the reasoning, and the summary states the answer."""
    if not config.rewriter:
        return [[replace(c, text=_stated(c), before=c) for c in group] for group in raw]
    questions: list[Prompt] = [
        prompts.chat(prompts.rewrite(c.row["question"], c.text, c.row["language"])) for g in raw for c in g
    ]
    with connect(config.rewriter) as server:
        answers = iter(server.sample(questions, 1, config.rewriting, config.seed, store))
    return [
        [replace(Candidate.of(c.row, next(answers)[0], config.rewriter.model), before=c) for c in group]
        for group in raw
    ]


def _stated(candidate: Candidate) -> str:
    reasoning = candidate.text if candidate.reasoning is None else candidate.reasoning
    return f"<think>{reasoning}</think>\n{SUMMARY[candidate.row['language']].format(candidate.row['answer'])}"


def _first_page(candidate: Candidate) -> Candidate:
    """Cut off the next problem, which a base model writes after the page that it was asked for."""
    page, more, _ = candidate.text.partition("\nProblem:")
    return replace(candidate, text=page.strip(), finish="stop") if more else candidate


# --- a person's review ------------------------------------------------------------------------------------------------


def review_record(row: rows.Row, findings: list[str]) -> dict[str, str]:
    parts = rewards.parse(row["completion"])
    values = (row["id"], row["question"], parts.reasoning or "", parts.summary, "; ".join(findings), "")
    return dict(zip(REVIEWED, values, strict=True))


def write_review(folder: Path, records: list[dict[str, str]]) -> None:
    """Write ``review.jsonl`` and ``review.csv``; ``decision`` is "" until a person writes "accept" or "reject"."""
    with runs.whole_file(folder / "review.jsonl") as file:
        file.writelines(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, REVIEWED)
    writer.writeheader()
    writer.writerows(records)
    with runs.whole_file(folder / "review.csv") as file:
        file.write(text.getvalue().encode("utf-8-sig"))  # spreadsheets need the byte order mark


def read_review(path: str | Path, asked: list[rows.Row]) -> list[dict[str, str]]:
    """The last record of each id that ``read_decisions`` returns."""
    return list({record["id"]: record for record in read_decisions(path, asked)}.values())


def read_decisions(path: str | Path, asked: list[rows.Row]) -> list[dict[str, str]]:
    """The records of an edited review file (CSV or JSONL), or of a decisions file of data_prep.review, in which an id
    may occur again. ``asked`` are the rows whose prompts were sampled.

    Raises ValueError, with the file, the record (from 1) and the reason, for a broken line, a missing column, an
    unknown or repeated id, a changed question, and an accepted completion that is not in our form or does not give the
    right answer. Only reasoning, summary and decision may be changed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such review file")
    by_id = {row["id"]: row for row in asked}
    records: list[dict[str, str]] = []
    before: set[str] = set()
    try:
        for number, record in enumerate(_csv(path) if str(path).endswith(".csv") else _jsonl(path), 1):
            fault = record if isinstance(record, str) else review_fault(record, by_id, before)
            if fault:
                raise ValueError(f"{path}, record {number}: {fault}")
            records.append({name: value.replace("\r\n", "\n") for name, value in record.items()})
            before.add(record["id"])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as `CSV UTF-8`") from error
    except csv.Error as error:
        raise ValueError(f"{path}, record {len(records) + 1}: not valid CSV ({error})") from error
    return records


def _jsonl(path: str | Path) -> Iterator[dict | str]:
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield f"not JSON ({error})"
            else:
                yield record if isinstance(record, dict) else f"a {type(record).__name__}, no object"


def _csv(path: str | Path) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # a reasoning is longer than csv's 131,072 characters
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, strict=True)


def review_fault(record: dict, by_id: dict[str, rows.Row], before: Container[str] = ()) -> str | None:
    """Why a record is invalid, or None if it is valid; ``before`` are the ids of earlier records."""
    missing = [name for name in REVIEWED if name not in record]
    if missing or record.keys() - {*REVIEWED, *LOGGED}:
        return f"no `{missing[0]}`" if missing else f"more cells than {', '.join(REVIEWED)}"
    for name, value in record.items():
        if not isinstance(value, str):
            return f"`{name}` is {value!r}; write text"
    row = by_id.get(record["id"].rpartition("-")[0])
    if row is None or (record["id"] in before and "reviewer" not in record):
        return f"the id {record['id']!r} " + ("was there before" if row else "is none of the prompts'")
    if record["question"].replace("\r\n", "\n") != row["question"]:
        return "the question is another; only reasoning, summary and decision may be edited"
    if record["decision"] not in ("accept", "reject", ""):
        return f"decision {record['decision']!r}; write accept, reject or nothing"
    if record["decision"] == "accept":
        completion = written(record)
        if not rewards.is_well_formed(completion, "think"):
            return "accepted, but reasoning or summary is empty or holds a tag"
        if is_right(row, completion) is False:
            return f"accepted, but it does not answer {row['answer']!r}"
    return None


def written(record: dict[str, str]) -> str:
    """The completion of a record."""
    return f"<think>{record['reasoning']}</think>\n{record['summary']}"


def apply_review(kept: list[rows.Row], records: list[dict[str, str]]) -> tuple[list[rows.Row], dict[str, int]]:
    """Drop rejected rows and apply the edits of accepted ones. Rows without a decision stay unchanged; edits to such
    rows are counted."""
    by_id = {record["id"]: record for record in records}
    counts = {"accepted": 0, "rejected": 0, "undecided": 0, "edited": 0, "edited_undecided": 0, "unknown_ids": 0}
    counts["unknown_ids"] = len(by_id.keys() - {row["id"] for row in kept})
    result = []
    for row in kept:
        record = by_id.get(row["id"], {"decision": ""})
        decision = record["decision"]
        counts[{"accept": "accepted", "reject": "rejected", "": "undecided"}[decision]] += 1
        parts = rewards.parse(row["completion"])
        edited = (record.get("reasoning", parts.reasoning), record.get("summary", parts.summary)) != (
            parts.reasoning,
            parts.summary,
        )
        if edited and decision == "accept":
            counts["edited"] += 1
            row = row | {"completion": written(record)}
        elif edited and decision == "":
            counts["edited_undecided"] += 1
            log.warning("%s was edited and has no decision: it stays as it was", row["id"])
        if decision != "reject":
            result.append(row)
    return result, counts


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
