"""Measures a model on AIME 2024 and 2025, MATH-500 and GPQA Diamond, by the paper's protocol (D.1).

    python -m recipes.tools.suites --config recipes/configs/suites.yaml

At most 32,768 tokens, temperature 0.6, top-p 0.95, k answers a problem (64, MATH-500 16): pass@1 as their mean with its
standard error, cons@k as the majority's answer. The table puts the paper's and open-r1's figures beside ours. Every
generation is kept with its scores in `generations.parquet`, the figures are in `results.json`. `local` reads a set from
a file instead of the Hub, in the same columns.
"""

import logging
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from data_prep import jobs, prompts, runs
from data_prep.decontaminate import EvaluationSet, records
from data_prep.rows import Row, write_parquet
from data_prep.sampling import Decoding, Sampler, cost, open_model
from recipes.tools import evaluate
from recipes.tools.page import PAPER
from rewards.settings import FILLED, Count

log = logging.getLogger("suites")


@dataclass(frozen=True)
class Suite:
    """A benchmark on the Hub: which columns hold what, and the paper's answers a problem."""

    hub_id: str
    k: int
    problem: Callable[[dict, random.Random], dict[str, str]]  # question, answer and verifier of a record
    columns: tuple[str, ...] = ("problem", "answer")
    split: str = "train"
    subset: str = ""
    id: str = "id"


def _math(record: dict, draw: random.Random) -> dict[str, str]:
    return {"question": prompts.boxed(record["problem"]), "answer": str(record["answer"]), "verifier": "math"}


GPQA = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _gpqa(record: dict, draw: random.Random) -> dict[str, str]:
    question, *options = (record[column].strip() for column in GPQA)
    right = options[0]
    draw.shuffle(options)  # they come with the right one first
    return {"question": prompts.choice(question, options), "answer": "ABCD"[options.index(right)], "verifier": "choice"}


SUITES = {
    # https://huggingface.co/datasets/HuggingFaceH4/aime_2024: id, problem, solution, answer, url, year
    "aime_2024": Suite("HuggingFaceH4/aime_2024", 64, _math),
    # https://huggingface.co/datasets/yentinglin/aime_2025: id, problem, answer, solution, url, year
    "aime_2025": Suite("yentinglin/aime_2025", 64, _math),
    # https://huggingface.co/datasets/HuggingFaceH4/MATH-500: problem, solution, answer, subject, level, unique_id
    "math_500": Suite("HuggingFaceH4/MATH-500", 16, _math, split="test", id="unique_id"),
    # https://huggingface.co/datasets/Idavidrein/gpqa, gated: Question, Correct Answer, Incorrect Answer 1 to 3
    "gpqa_diamond": Suite("Idavidrein/gpqa", 64, _gpqa, GPQA, subset="gpqa_diamond", id="Record ID"),
}
# AIME 2024 pass@1, cons@64, MATH-500 and GPQA Diamond: the paper's students (v1, Table 5), and what open-r1 measured of
# them (its README: https://github.com/huggingface/open-r1).
STUDENTS = {
    "Qwen-1.5B": ((28.9, 52.7, 83.9, 33.8), (30.7, None, 83.1, 35.8)),
    "Qwen-7B": ((55.5, 83.3, 92.8, 49.1), (50.8, None, 94.5, 50.5)),
    "Qwen-14B": ((69.7, 80.0, 93.9, 59.1), (65.9, None, 94.1, 61.5)),
    "Qwen-32B": ((72.6, 83.3, 94.3, 62.1), (69.7, None, 95.6, 63.1)),
    "Llama-8B": ((50.4, 80.0, 89.1, 49.0), (43.9, None, 88.6, 46.7)),
    "Llama-70B": ((70.0, 86.7, 94.5, 65.2), (63.0, None, 95.1, 67.4)),
}


@dataclass(frozen=True, kw_only=True)
class Suites(jobs.Job):
    """Keys of suites.yaml. ``limit``: problems of each suite."""

    checkpoint: str
    style: Literal["think", "r1_zero"] = "think"
    prefilled: bool = False  # does the chat template open the reasoning, as that of the paper's students does?
    suites: Annotated[list[str], FILLED] = field(default_factory=lambda: list(SUITES))
    local: dict[str, str] = field(default_factory=dict)
    k: Count = 0  # answers a problem; 0: the paper's
    decoding: Decoding = field(default_factory=lambda: Decoding(32768, temperature=0.6, top_p=0.95))
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        for name in (*self.suites, *self.local):
            if name not in SUITES:
                raise ValueError(f"there is no suite {name!r}; write {', '.join(SUITES)}")

    def answers(self, name: str) -> int:
        return self.k or SUITES[name].k


def load(config: Suites) -> dict[str, list[Row]]:
    """Raises FileNotFoundError for a set or checkpoint that is not there, ValueError for one of other columns."""
    config.sampler.require(config.checkpoint)
    return {name: read(name, config.local.get(name, ""), config.seed, config.limit) for name in config.suites}


def read(name: str, local: str, seed: int, limit: int = 0) -> list[Row]:
    """The problems of a suite as rows; options are in an order that depends on the seed and the problem only."""
    suite, found = SUITES[name], []
    place = EvaluationSet(local or suite.hub_id, split=suite.split, subset=suite.subset)
    try:
        for number, record in enumerate(records(place)):
            if missing := [column for column in suite.columns if not record.get(column)]:
                raise ValueError(f"{name}: {place.path}, record {number}: no {', '.join(missing)}; it has {[*record]}")
            id = str(record.get(suite.id, number))
            problem = suite.problem(record, random.Random(f"{seed}-{id}"))
            row = {"id": id, "kind": "reasoning", "domain": "math", "language": "en", "thinking": True}
            found.append(row | problem | {"prompt": problem["question"], "source": suite.hub_id})
    except FileNotFoundError as error:
        gated = "accept its terms on its page, set HF_TOKEN, " if suite.subset else ""
        raise FileNotFoundError(f"{name}: {error}; {gated}or write `local: {{{name}: FILE}}`") from error
    return found[:limit] if limit else found


def plan(config: Suites, **suites: list[Row]) -> list[str]:
    by = config.checkpoint
    return [
        f"{name}: {cost(len(rows), config.answers(name), config.decoding, by, config.sampler)}"
        for name, rows in suites.items()
    ]


def build(config: Suites, output_dir: Path, **suites: list[Row]) -> dict[str, Any]:
    results, generations, opening = {}, [], "<think>" * config.prefilled
    with open_model(config.checkpoint, config.sampler) as model:
        for name, rows in suites.items():
            asked = [evaluate.asked(config.style, row) for row in rows]
            k = config.answers(name)
            drawn = model.sample(asked, k, config.decoding, config.seed, output_dir / "samples")
            scored = [
                evaluate.score(config.style, name, row, index, replace(sample, text=opening + sample.text))
                for row, samples in zip(rows, drawn, strict=True)
                for index, sample in enumerate(samples)
            ]
            results[name] = evaluate.reasoning_figures(scored, config.style) | evaluate.many_figures(scored, k)
            results[name]["unanswered"] = sum(sample.is_unanswered for samples in drawn for sample in samples)
            unshown = {"question": ""} if SUITES[name].subset else {}  # a gated set's questions are not to be shown
            generations += [one | unshown for one in scored]
    write_parquet(output_dir / "generations.parquet", generations)
    runs.write_json(output_dir / "results.json", {"checkpoint": config.checkpoint, "suites": results})
    shown = table(config.checkpoint, results)
    (output_dir / "results.md").write_text(shown + "\n", encoding="utf-8")
    log.info("%s", shown)
    return {"parent": config.checkpoint, "pass@1": {name: found["pass@1"] for name, found in results.items()}}


def table(checkpoint: str, results: dict[str, dict[str, Any]]) -> str:
    """Ours above what is published, in Markdown; percent."""
    columns = {
        "AIME 2024": ("aime_2024", "pass@1"),
        "cons@k": ("aime_2024", "cons@{k}"),
        "MATH-500": ("math_500", "pass@1"),
        "GPQA Diamond": ("gpqa_diamond", "pass@1"),
        "AIME 2025": ("aime_2025", "pass@1"),
    }
    rows = [["model", *columns], ["---"] * (1 + len(columns))]
    rows.append([checkpoint, *(_cell(results.get(suite, {}), key) for suite, key in columns.values())])
    published = {f"{title}, paper": figures for title, *figures in PAPER.values()}
    del published["Qwen2.5-32B distilled, paper"]  # one of the students
    for name, (paper, open_r1) in STUDENTS.items():
        published |= {f"R1-Distill-{name}, paper": paper, f"R1-Distill-{name}, open-r1": open_r1}
    for name, figures in published.items():
        rows.append([name, *("" if one is None else f"{one:.1f}" for one in (*figures[:4], None))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: dict[str, Any], key: str) -> str:
    key = key.format(k=found.get("k"))
    if found.get(key) is None:
        return ""
    error = found[f"{key}_stderr"]
    return f"{100 * found[key]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
