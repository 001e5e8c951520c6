"""Measures a model on AIME 2024 and 2025, MATH-500, GPQA Diamond and GSM8K, and on sets of your own.

    python -m recipes.tools.suites --config recipes/configs/suites.yaml [--checkpoint FOLDER or Hub id]

It uses the paper's protocol (D.1): at most 32,768 tokens, temperature 0.6, top-p 0.95, k answers a problem (64; 16 for
MATH-500 and others), pass@1 as their mean with its standard error, and cons@k as the majority's answer. `gsm8k_8_shot`
is the published protocol for base models: eight worked examples as plain text, one greedy answer, and its last number.

The table shows for each set the number of problems and answers, the lengths and the sampling. It compares with the
figures of the paper and open-r1 only if the set and the protocol are the paper's. Every generation is kept with its
scores in `generations.parquet`, and the figures are in `results.json`. `local` reads a set from a file instead of the
Hub.
"""

import logging
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import rewards
from data_prep import jobs, prompts, rows, runs
from data_prep.catalogue import Refused, worked
from data_prep.decontaminate import EvaluationSet, records
from data_prep.rows import Row, write_parquet
from data_prep.sampling import Decoding, Sample, Sampler, cost, open_model
from recipes.tools import evaluate
from recipes.tools.paper import PUBLISHED
from rewards.settings import FILLED, Count
from rewards.statements import statements

log = logging.getLogger("suites")
PROTOCOL = Decoding(32768, temperature=0.6, top_p=0.95)
# As in the task gsm8k_cot of lm-evaluation-harness: "Q: ...\nA: ... The answer is 6." eight times, greedy, at most 256
# tokens, up to the next "Q:", of which the last number counts.
SHOTS, STOP, GREEDY = 8, "Q:", Decoding(256, temperature=0.0)
NUMBER = re.compile(r"-?[$\d.,]{2,}|-?\d+")


@dataclass(frozen=True)
class Suite:
    """A benchmark on the Hub: its printed name, size, columns, and number of answers a problem. `paper`: the indices of
    its figures in a row of `PUBLISHED` and `STUDENTS`, pass@1 first."""

    title: str
    hub_id: str
    size: int
    k: int
    problem: Callable[[dict, random.Random], dict[str, str]]  # returns a record's question, answer and verifier
    columns: tuple[str, ...] = ("problem", "answer")
    split: str = "train"
    subset: str = ""
    id: str = "id"
    paper: tuple[int, ...] = ()
    gated: bool = False
    few_shot: bool = False


def _math(record: dict, draw: random.Random) -> dict[str, str]:
    return {"question": prompts.boxed(record["problem"]), "answer": str(record["answer"]), "verifier": "math"}


GPQA = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _gpqa(record: dict, draw: random.Random) -> dict[str, str]:
    question, *options = (str(record[column]).strip() for column in GPQA)
    right = options[0]
    draw.shuffle(options)  # the data set lists the correct one first
    return {"question": prompts.choice(question, options), "answer": "ABCD"[options.index(right)], "verifier": "choice"}


def _gsm8k(record: dict, draw: random.Random) -> dict[str, str]:
    return {"question": prompts.boxed(record["question"]), "answer": worked(record)[1], "verifier": "math"}


def _gsm8k_8_shot(record: dict, draw: random.Random) -> dict[str, str]:
    return _gsm8k(record, draw) | {"question": record["question"]}


KEPT = ("question", "prompt", "answer", "verifier", *rows.RULES, "language", "domain", "thinking")  # columns of a row
QUESTIONS, ANSWERS = ("problem", "question", "prompt"), ("answer", "final_answer", "solution")
OPTIONS = ("choices", "options")  # of MMLU, ARC and similar sets
STATED = 30  # words; a longer text is a solution instead of an answer, as in the doctor


def _own(record: dict, draw: random.Random) -> dict[str, str]:
    """A record of a custom set: an unchanged row of the contract, or else converted by its columns."""
    fault = rows.fault(record)
    if fault is None:
        if record["verifier"] not in ("math", "choice", "code", "gym"):
            raise Refused(f"verifier {record['verifier']!r} is no rule that could grade it")
        return {name: record.get(name) for name in KEPT}
    if all(_is_given(record.get(column)) for column in GPQA):
        return _gpqa(record, draw)
    if record.get("verifier", "math") != "math":
        raise Refused(fault)
    if options := [name for name in OPTIONS if record.get(name)]:
        raise Refused(f"`{options[0]}` would not be asked; write rows whose `prompt` has them, with verifier: choice")
    question = next((record[name] for name in QUESTIONS if _is_given(record.get(name))), None)
    column = next((name for name in ANSWERS if _is_given(record.get(name))), None)
    if not isinstance(question, str) or not column:
        raise Refused(f"no {' or '.join(QUESTIONS)} of text with {' or '.join(ANSWERS)}; it has {', '.join(record)}")
    value = record[column]
    if isinstance(value, list) and len(value) == 1:  # as in OlympiadBench
        value = value[0]
    if isinstance(value, list | dict | bool | None):
        raise Refused(f"`{column}` is {value!r:.60}, which is no single number or text")
    gold = str(value)
    if "####" in gold:
        gold = worked({"answer": gold})[1]
    elif column == "solution":
        gold = next(iter(statements(gold)), gold)
        if len(gold.split()) > STATED:
            raise Refused("`solution` states no answer, in a box or otherwise; write it into a column `answer`")
    return {"question": prompts.boxed(question), "answer": gold, "verifier": "math"}


def _is_given(value: Any) -> bool:
    return value is not None and value != "" and value == value  # 0 is an answer, but NaN is not


SUITES = {
    # https://huggingface.co/datasets/HuggingFaceH4/aime_2024: id, problem, solution, answer, url, year
    "aime_2024": Suite("AIME 2024", "HuggingFaceH4/aime_2024", 30, 64, _math, paper=(0, 1)),
    # https://huggingface.co/datasets/yentinglin/aime_2025: id, problem, answer, solution, url, year
    "aime_2025": Suite("AIME 2025", "yentinglin/aime_2025", 30, 64, _math),
    # https://huggingface.co/datasets/HuggingFaceH4/MATH-500: problem, solution, answer, subject, level, unique_id
    "math_500": Suite("MATH-500", "HuggingFaceH4/MATH-500", 500, 16, _math, split="test", id="unique_id", paper=(2,)),
    # https://huggingface.co/datasets/Idavidrein/gpqa, gated: Question, Correct Answer, Incorrect Answer 1 to 3
    "gpqa_diamond": Suite(
        "GPQA Diamond", "Idavidrein/gpqa", 198, 64, _gpqa, GPQA, subset="gpqa_diamond", id="Record ID", paper=(3,),
        gated=True,
    ),
    # https://huggingface.co/datasets/openai/gsm8k: question, answer
    "gsm8k": Suite("GSM8K", "openai/gsm8k", 1319, 16, _gsm8k, ("question", "answer"), "test", "main"),
    "gsm8k_8_shot": Suite(
        "GSM8K, 8-shot", "openai/gsm8k", 1319, 1, _gsm8k_8_shot, ("question", "answer"), "test", "main", few_shot=True
    ),
}  # fmt: skip
USUAL = ("aime_2024", "aime_2025", "math_500", "gpqa_diamond")
OWN = Suite("", "", 0, 16, _own, columns=())  # chosen: as many answers as for MATH-500
# AIME 2024 pass@1, cons@64, MATH-500 and GPQA Diamond: the paper's students (v1, Table 5), and open-r1's results for
# them (its README: https://github.com/huggingface/open-r1).
STUDENTS = {
    "Qwen-1.5B": ((28.9, 52.7, 83.9, 33.8), (30.7, None, 83.1, 35.8)),
    "Qwen-7B": ((55.5, 83.3, 92.8, 49.1), (50.8, None, 94.5, 50.5)),
    "Qwen-14B": ((69.7, 80.0, 93.9, 59.1), (65.9, None, 94.1, 61.5)),
    "Qwen-32B": ((72.6, 83.3, 94.3, 62.1), (69.7, None, 95.6, 63.1)),
    "Llama-8B": ((50.4, 80.0, 89.1, 49.0), (43.9, None, 88.6, 46.7)),
    "Llama-70B": ((70.0, 86.7, 94.5, 65.2), (63.0, None, 95.1, 67.4)),
}

# Other people's pass@1 in percent of our start models: set, checkpoint, figure, protocol. None says that it was trained
# on the set's train split.
OTHERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        ("gsm8k", "SmolLM2-135M-Instruct, by its makers", 1.4, "5-shot"),
        ("gsm8k", "trlm-135m, by its makers", 2.59, "protocol not known"),
        ("gsm8k", "best of another project's 200 runs", 2.43, "protocol not known"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Suites(jobs.Job):
    """The keys of suites.yaml. ``suites``: the sets to measure; by default those of ``local``, or without any the
    paper's and AIME 2025. ``local``: .parquet, .jsonl or .jsonl.gz files of a suite in the Hub's columns, or of custom
    sets under custom names. ``limit``: number of problems of each."""

    checkpoint: str
    style: Literal["think", "r1_zero"] | None = None  # None: the style that our stage taught, else think
    prefilled: bool | None = None  # whether the chat template opens the reasoning; None: detected, but not on a server
    suites: Annotated[list[str], FILLED] = field(default_factory=list)
    local: dict[str, str] = field(default_factory=dict)
    exemplars: str = ""  # a file in GSM8K's columns, whose first eight rows are shown; "": GSM8K's train split
    k: Count = 0  # answers a problem; 0: the paper's
    decoding: Decoding = PROTOCOL
    sampler: Sampler = field(default_factory=Sampler)

    def __post_init__(self) -> None:
        for name in self.suites:
            if name not in SUITES and name not in self.local:
                raise ValueError(f"there is no suite {name!r}; write {', '.join(SUITES)}, or a file of it in `local`")

    @property
    def names(self) -> list[str]:
        return self.suites or [*self.local] or [*USUAL]

    def answers(self, name: str) -> int:
        suite = SUITES.get(name, OWN)
        return suite.k if suite.few_shot else self.k or suite.k

    def sampled(self, name: str) -> Decoding:
        """The decoding of a suite. A few-shot suite is greedy, and never longer than the setting for all."""
        if SUITES.get(name, OWN).few_shot:
            return replace(GREEDY, max_tokens=min(GREEDY.max_tokens, self.decoding.max_tokens))
        return self.decoding


def load(config: Suites) -> dict[str, list[Row]]:
    """Raises FileNotFoundError for a missing set or checkpoint, ValueError for a set with other columns."""
    config.sampler.require(config.checkpoint)
    found = {name: read(name, config.local.get(name, ""), config.seed, config.limit) for name in config.names}
    for name in found:
        if SUITES.get(name, OWN).few_shot:
            pages = examples(config.exemplars)
            found[name] = [row | {"prompt": f"{pages}Q: {row['question']}\nA:"} for row in found[name]]
    return found


def read(name: str, local: str, seed: int, limit: int = 0) -> list[Row]:
    """The problems of a suite as rows. The order of options depends only on the seed and the problem. Their `source` is
    the suite's Hub id if they are the whole set, else the file."""
    suite, found, seen = SUITES.get(name, OWN), [], set()
    place = EvaluationSet(local or suite.hub_id, split=suite.split, subset=suite.subset)
    try:
        for number, record in enumerate(records(place)):
            if missing := [column for column in suite.columns if not _is_given(record.get(column))]:
                raise Refused(f"no {', '.join(missing)}; it has {', '.join(record)}")
            id = str(record[suite.id] if _is_given(record.get(suite.id)) else number)
            problem = suite.problem(record, random.Random(f"{seed}-{id}"))
            gold = problem["answer"], problem["verifier"], problem.get("entry")
            if problem["verifier"] != "code" and (wrong := rewards.gold_error(*gold)):
                raise Refused(wrong)
            row = {"id": id, "kind": "reasoning", "domain": "math", "language": "en", "thinking": True}
            if suite is OWN and id in seen:
                raise Refused(f"an earlier record has the same {suite.id} {id!r}")
            seen.add(id)
            found.append(row | {"prompt": problem["question"]} | problem)
    except Refused as error:
        raise ValueError(f"{name}: {place.path}, record {len(found)}: {error}") from error
    except FileNotFoundError as error:
        gated = "accept its terms on its page, set HF_TOKEN, " if suite.gated else ""
        raise FileNotFoundError(f"{name}: {error}; {gated}or write `local: {{{name}: FILE}}`") from error
    if not found:
        raise ValueError(f"{name}: {place.path}: holds nothing")
    source = suite.hub_id if suite.hub_id and (not local or len(found) == suite.size) else local
    return [row | {"source": source} for row in found[: limit or None]]


def examples(exemplars: str) -> str:
    """Eight worked examples as pages of plain text."""
    place = EvaluationSet(exemplars or "openai/gsm8k", split="train", subset="main")
    try:
        first = [record for record, _ in zip(records(place), range(SHOTS), strict=False)]
        texts = [(record["question"], *worked(record)) for record in first]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"gsm8k_8_shot: {error}; or write `exemplars: FILE` of GSM8K's train split") from error
    except (KeyError, Refused) as error:
        raise ValueError(f"`exemplars`: {place.path}: not in GSM8K's columns ({error})") from error
    if len(texts) < SHOTS:
        raise ValueError(f"`exemplars`: {place.path}: holds {len(texts)} of {SHOTS} examples")
    return "".join(
        f"Q: {question}\nA: {' '.join(solution.split())} The answer is {gold}.\n\n"
        for question, solution, gold in texts
    )


def plan(config: Suites, **suites: list[Row]) -> list[str]:
    by = config.checkpoint
    return [
        f"{name}: {cost(len(rows), config.answers(name), config.sampled(name), by, config.sampler)}"
        for name, rows in suites.items()
    ]


def build(config: Suites, output_dir: Path, **suites: list[Row]) -> dict[str, Any]:
    results, generations = {}, []
    style = config.style or evaluate.taught(Path(config.checkpoint)) or "think"
    with open_model(config.checkpoint, config.sampler) as model:
        opening = "<think>" * (opens(model) if config.prefilled is None else config.prefilled)
        for name, rows in suites.items():
            suite, k = SUITES.get(name, OWN), config.answers(name)
            asked = [row["prompt"] if suite.few_shot else evaluate.asked(style, row) for row in rows]
            drawn = model.sample(asked, k, config.sampled(name), config.seed, output_dir / "samples")
            grade, before = (last_number, "") if suite.few_shot else (evaluate.score, opening)
            scored = [
                grade(style, name, row, index, replace(sample, text=before + sample.text))
                for row, samples in zip(rows, drawn, strict=True)
                for index, sample in enumerate(samples)
            ]
            figures = evaluate.reasoning_figures(scored, style) | evaluate.many_figures(scored, k)
            results[name] = figures | described(config, name, rows)
            results[name]["unanswered"] = sum(sample.is_unanswered for samples in drawn for sample in samples)
            unshown = {"question": ""} if suite.gated else {}  # the questions of a gated set must not be shown
            generations += [one | unshown for one in scored]
    write_parquet(output_dir / "generations.parquet", generations)
    runs.write_json(output_dir / "results.json", {"checkpoint": config.checkpoint, "suites": results})
    text = table(config.checkpoint, style, results)
    (output_dir / "results.md").write_text(text + "\n", encoding="utf-8")
    log.info("%s", text)
    return {"parent": config.checkpoint, "pass@1": {name: found["pass@1"] for name, found in results.items()}}


def opens(model: Any) -> bool:
    """Whether the chat template of a model in this process opens the reasoning."""
    tokenizer = getattr(model, "tokenizer", None)
    if not getattr(tokenizer, "chat_template", None):
        return False
    text = tokenizer.apply_chat_template(prompts.chat("?"), add_generation_prompt=True, tokenize=False)
    return text.rstrip().endswith("<think>")


def last_number(style: str, name: str, row: Row, index: int, sample: Sample) -> dict[str, Any]:
    """Like `evaluate.score`, for a base model's page. The page ends where the next question begins. Its last number is
    the answer and is compared as text, as in the published figures."""
    text, ended, _ = sample.text.partition(STOP)
    page = replace(sample, text=text, finish="stop" if ended else sample.finish)
    answer = next((_bare(number) for number in reversed(NUMBER.findall(text))), None)
    said = {"answer": answer, "correct": answer == _bare(row["answer"])}
    return evaluate.score(style, name, row, index, page) | said


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def described(config: Suites, name: str, rows: list[Row]) -> dict[str, Any]:
    """The conditions of a figure: the problems, the sampling, and the differences from the paper."""
    suite, decoding, k = SUITES.get(name, OWN), config.sampled(name), config.answers(name)
    whole, train = rows[0]["source"] == suite.hub_id, Path(config.exemplars or "the train split").name
    length, papers = decoding.max_tokens, PROTOCOL.max_tokens
    differs = {
        f"{len(rows)} of {suite.size} problems": len(rows) != suite.size,
        f"{k} answers each, not {suite.k}": k != suite.k,
        f"at most {length:,} tokens, not {papers:,}": length != papers,
        f"not {how(PROTOCOL)}": how(decoding) != how(PROTOCOL),
    }
    reasons = [reason for reason, is_so in differs.items() if is_so]
    return {
        "title": suite.title if whole else name if suite is OWN else Path(rows[0]["source"]).name,
        "of": suite.size if whole else len(rows),
        "max_tokens": length,
        "sampled": how(decoding) + (f", the first {SHOTS} of {train}" if suite.few_shot else ""),
        "not_the_papers": reasons if whole and suite.paper else ["no figure of this set"],
    }


def how(decoding: Decoding) -> str:
    if decoding.temperature == 0:
        return "greedy"
    top_k = f", top-k {decoding.top_k}" if decoding.top_k else ""
    return f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}{top_k}"


def table(checkpoint: str, style: str, results: dict[str, dict[str, Any]]) -> str:
    """Two Markdown tables, in percent. The first has our figures with their conditions and the length of answers. The
    second compares our figures with published ones, for sets measured as in the paper."""
    columns = ("set", "problems", "answers each", "tokens at most", "sampled", "pass@1", "cons@k", "as in the paper")
    lines = [columns, ("---",) * len(columns)]
    for found in results.values():
        other = "; ".join(found["not_the_papers"])
        figures = (_cell(found, "pass@1"), _cell(found, "cons@{k}") if found["k"] > 1 else "")
        problems = f"{found['n_problems']:,}" + ("" if found["n_problems"] == found["of"] else f" of {found['of']:,}")
        size = (problems, f"{found['k']}", f"{found['max_tokens']:,}", found["sampled"])
        lines.append((found["title"], *size, *figures, f"no: {other}" if other else "yes"))
    lengths = "; ".join(
        f"{found['title']} {found['mean_completion_tokens']:,.0f} tokens, {found['truncated']:.1%} cut off"
        for found in results.values()
    )
    text = f"{checkpoint}, asked in the style `{style}`, percent:\n\n{_rows(lines)}"
    text += f"\n\nMean length of an answer: {lengths}."
    same = {name: one for name, one in results.items() if not one["not_the_papers"]}
    if not same:
        return f"{text}\n\nNo published figure stands beside these: none has the paper's set and protocol."
    ours = {
        at: (SUITES[name].title + end, _cell(one, key))
        for name, one in same.items()
        for at, end, key in zip(SUITES[name].paper, ("", ", cons@k"), ("pass@1", "cons@{k}"), strict=False)
    }
    lines = [("model", *(title for title, _ in ours.values())), ("---",) * (1 + len(ours))]
    lines.append((checkpoint, *(figure for _, figure in ours.values())))
    published = {f"{title}, paper": figures for title, *figures in PUBLISHED.values()}
    del published["Qwen2.5-32B distilled, paper"]  # one of the students
    for name, (paper, open_r1) in STUDENTS.items():
        published |= {f"R1-Distill-{name}, paper": paper, f"R1-Distill-{name}, open-r1": open_r1}
    for name, figures in published.items():
        lines.append((name, *("" if figures[at] is None else f"{figures[at]:.1f}" for at in ours)))
    return f"{text}\n\n{_rows(lines)}"


def _rows(lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(found: dict[str, Any], key: str) -> str:
    key = key.format(k=found["k"])
    error = found[f"{key}_stderr"]
    return f"{100 * found[key]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
