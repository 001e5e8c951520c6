"""Open data sets: their records in, rows of the contract out, and nothing dropped in silence.

`python -m data_prep.sources --config <yaml>` converts each data set of the Hub, or local file with the same schema,
into one Parquet file of rows. With ``traces: true``, a row's ``completion`` is a reasoning trace from its data set, so
that the 800k can be built without a teacher; otherwise, rows are prompts. Each gold answer is verified against itself,
and each test set is parsed. Each refused record is a line of ``<name>.quarantine.jsonl`` with its file, its number
(from 0) and the reason; run.json has the counts.

``SOURCES`` is the table of data sets. Their schemas are those that the named pages show, and no other columns are read.
What a page does not show (such as a column's values) is checked in each record, and unexpected records are refused.
"""

from __future__ import annotations

import functools
import json
import logging
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rewards
from data_prep import commands, engine, jobs, rows, shards
from data_prep.rows import Row
from data_prep.runs import advice, whole_file, write_json
from rewards.settings import Count

import pyarrow as pa

log = logging.getLogger(__name__)
KEPT = 5_000  # bytes of zstd Parquet for a trace of 10 kB; a prompt alone is a tenth
RATE = 2_500  # records of 10 kB a second on one core, measured with traces of mathematics
EXTRA = ("source_id", "revision")  # columns after the contract's
PROMPT_COLUMNS = (*rows.COLUMNS, *rows.RULES, *EXTRA)
TRACE_COLUMNS = (*rows.COLUMNS, "completion", "generator", "verified_by", *EXTRA)


def schema(columns: Iterable[str]) -> pa.Schema:
    types = {"thinking": pa.bool_(), "pass_rate": pa.float64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in columns])


class Refused(ValueError):
    """A record cannot be used. The message is `kind: why`; refusals are counted by their kind."""


@dataclass(frozen=True)
class Rejection:
    """Record ``row`` (from 0) of ``file``, refused for ``reason``."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True)
class Source:
    """A data set of the Hub. ``prompt(record)`` returns the columns of a row that differ from `DEFAULTS`, possibly with
    ``source_id``, ``tests`` and ``license``. ``trace(record)`` returns the text that ``generator`` wrote."""

    hub_id: str
    page: str
    license: str
    rows: int
    prompt: Callable[[dict], dict[str, Any]]
    trace: Callable[[dict], str] | None = None
    generator: str = ""
    subset: str | None = None
    revision: str = ""


# --- mappings: one record in, columns out -----------------------------------------------------------------------------

DEFAULTS = {"answer": "", "kind": "reasoning", "domain": "math", "verifier": "none", "thinking": True}
DEFAULTS |= dict.fromkeys(rows.RULES, "")
DOMAINS = {"math": "math", "code": "code", "puzzle": "logic"} | dict.fromkeys(
    ("science", "biology", "chemistry", "physics"), "stem"
)


ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a turn, by vLLM, OpenRouter and gpt-oss


def _known(domain: Any) -> str:
    if domain not in DOMAINS:
        raise Refused(f"domain: {domain!r} is not one of {', '.join(DOMAINS)}")
    return DOMAINS[domain]


def _choice(question: str, options: list[str], right: str, domain: str) -> dict[str, Any]:
    """The columns of a multiple-choice question; its options are listed with letters."""
    options = [option.strip() for option in options]
    if len(set(options)) < len(options) or "" in options or right.strip() not in options or len(options) > 10:
        raise Refused(f"options: {options!r} are not up to ten different texts, the right one among them")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options, strict=False))
    text = f"{question.strip()}\n\n{listed}\n\nAnswer with the letter of the right option."
    letter = "ABCDEFGHIJ"[options.index(right.strip())]
    return {"question": text, "answer": letter, "verifier": "choice", "domain": domain}


def _said(turns: list[dict], *wanted: str) -> list[str]:
    """The texts of a conversation whose turns have exactly the ``wanted`` roles, in this order. Raises Refused for a
    conversation with a system prompt or other turns, because a row cannot hold them (see docs/rejection_sampling.md).
    """
    roles = [ROLES.get(role, role) for role in (turn.get("role") or turn.get("from") for turn in turns)]
    if "system" in roles:
        raise Refused(f"system: {rows.CHAT.partition(';')[0]}")
    if roles != list(wanted):
        raise Refused(f"turns: {roles} where a row has room for {' and '.join(wanted)} alone")
    return [_text(turn) for turn in turns]


def _text(turn: dict) -> str:
    """The text of a turn. If its reasoning has a separate key, it is put in tags before the content."""
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if isinstance(content, list) and not all(part.get("type") == "text" for part in content):
        raise Refused("turns: a part of one is no text")
    reasoning = next((turn[key] for key in REASONING if turn.get(key)), None)
    return rewards.text_of({"content": content, "reasoning_content": reasoning})


def _two(turns: list[dict]) -> list[str]:
    return _said(turns, "user", "assistant")


def _dapo(record: dict) -> dict[str, Any]:
    return {"question": _said(record["prompt"], "user")[0], "answer": record["reward_model"]["ground_truth"]} | _MATH


def worked(record: dict) -> tuple[str, str]:
    """Return (solution without calculator annotations, gold answer) of a GSM8K record."""
    solution, mark, gold = record["answer"].rpartition("####")
    if not mark:
        raise Refused("gold: `answer` has no ####, behind which it stands")
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), gold.strip().removesuffix(".")


def _gsm8k(record: dict) -> dict[str, Any]:
    return {"question": record["question"], "answer": worked(record)[1]} | _MATH


def _gsm8k_trace(record: dict) -> str:
    """The trace of a GSM8K record. Its summary is made from the gold answer, so the solution itself is checked: a
    calculator result or a number of the last line must be the gold answer."""
    solution, gold = worked(record)
    results = re.findall(r"=([^=<>]*)>>", record["answer"]) + re.findall(
        r"(?:(?<![\w)])-)?[\d.,]*\d", solution.rpartition("\n")[2]
    )
    if not any(rewards.is_correct(f"#### {one}", gold) for one in reversed(results)):
        raise Refused(f"trace: its steps do not come to {gold!r}")
    return f"<think>{solution}</think>\nThe answer is {gold}."


def _openr1(record: dict) -> dict[str, Any]:
    if record["question_type"] == "proof":
        raise Refused("proof: no answer that a rule can check")
    return {"question": record["problem"], "answer": record["answer"], "source_id": record["uuid"]} | _MATH


def _openr1_trace(record: dict) -> str:
    for text, complete, correct in zip(
        record["generations"], record["is_reasoning_complete"], record["correctness_math_verify"], strict=True
    ):
        if complete and correct:
            return text
    raise Refused("trace: no generation is complete and verified")


def _deepmath(record: dict) -> dict[str, Any]:
    return {"question": record["question"], "answer": record["final_answer"]} | _MATH


def _coding(record: dict) -> dict[str, Any]:
    if record["verification_info"]["language"] != "python":
        raise Refused(f"program: in {record['verification_info']['language']!r}, not in python")
    tests = json.dumps(record["verification_info"]["test_cases"], ensure_ascii=False)
    return {
        "question": record["problem_statement"], "tests": tests, "verifier": "code", "domain": "code",
        "source_id": record["problem_id"],
    }  # fmt: skip


def _sciq(record: dict) -> dict[str, Any]:
    options = [record[name] for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    random.Random(record["question"]).shuffle(options)
    return _choice(record["question"], options, record["correct_answer"], "stem")


def _medmcqa(record: dict) -> dict[str, Any]:
    options = [record[name] for name in ("opa", "opb", "opc", "opd")]
    if record["cop"] not in range(4):
        raise Refused(f"gold: `cop` is {record['cop']!r}, not 0 to 3")
    return _choice(record["question"], options, options[record["cop"]], "stem") | {"source_id": record["id"]}


def _logiqa(record: dict) -> dict[str, Any]:
    if record["answer"] not in range(len(record["options"])):
        raise Refused(f"gold: `answer` is {record['answer']!r}, not the place of an option")
    question = f"{record['text'].strip()}\n\n{record['question'].strip()}"
    return _choice(question, record["options"], record["options"][record["answer"]], "logic")


# Parts of tulu-3 that are refused, by a word in the column `source`: they are of other domains, or their prompts are
# requests to decline.
TULU_ELSEWHERE = ("math", "gsm", "algebra", "personahub_code", "wildguard", "wildjailbreak", "coconot")
TULU_LICENSES = {"no_robots": "cc-by-nc-4.0", "evol_codealpaca": "apache-2.0"}  # other parts have the mixture's licence


def _tulu(record: dict) -> dict[str, Any]:
    part = record["source"].lower()
    for name in TULU_ELSEWHERE:
        if name in part:
            raise Refused(f"part: {name} is no general data")
    license = next((license for name, license in TULU_LICENSES.items() if name in part), "odc-by")
    question = _two(record["messages"])[0]
    return {"question": question, "source_id": record["id"], "license": license} | _GENERAL


def _safety(record: dict) -> dict[str, Any]:
    return {"question": record["prompt"]} | _GENERAL | {"kind": "harmless"}


# Licences from the parts' own pages; the mixture's page states none.
MIXTURE_LICENSES = {
    "open-r1/OpenR1-Math-220k": "apache-2.0",
    "open-r1/codeforces-cots": "cc-by-4.0",
    "nvidia/Llama-Nemotron-Post-Training-Dataset": "cc-by-4.0",
}


def _mixture(domain: str) -> Callable[[dict], dict[str, Any]]:
    def prompt(record: dict) -> dict[str, Any]:
        license = MIXTURE_LICENSES.get(record["source"], "unknown")
        return {"question": _two(record["messages"])[0], "domain": domain, "license": license}

    return prompt


def _thoughts3(record: dict) -> dict[str, Any]:
    return {"question": _two(record["conversations"])[0], "domain": _known(record["domain"])}


def _thoughts(record: dict) -> dict[str, Any]:
    return {"question": record["problem"], "domain": _known(record["domain"])}


def _thoughts_trace(record: dict) -> str:
    return f"<think>{record['deepseek_reasoning']}</think>\n{record['deepseek_solution']}"


_MATH = {"verifier": "math"}
_GENERAL = {"kind": "helpful", "domain": "general", "thinking": False}
_HUB = "https://huggingface.co/datasets"
R1 = "deepseek-ai/DeepSeek-R1"

SOURCES = {
    # Table 4, RL prompts
    "dapo-math-17k": Source(
        "BytedTsinghua-SIA/DAPO-Math-17k", f"{_HUB}/open-r1/DAPO-Math-17k-Processed/blob/main/create_dataset.py",
        "apache-2.0", 1_791_700, _dapo,
    ),
    "verifiable-coding-problems-python": Source(
        "open-r1/verifiable-coding-problems-python",
        f"{_HUB}/open-r1/verifiable-coding-problems-python/blob/main/README.md", "unknown", 35_735, _coding,
    ),
    "sciq": Source(
        "allenai/sciq", f"{_HUB}/allenai/sciq/blob/c7ea11f06ac799e1206befb10da77d7a34c8ce46/README.md",
        "cc-by-nc-3.0", 11_679, _sciq, revision="c7ea11f06ac799e1206befb10da77d7a34c8ce46",
    ),
    "medmcqa": Source(
        "openlifescienceai/medmcqa", "https://tensorflow.org/datasets/community_catalog/huggingface/medmcqa",
        "apache-2.0", 182_822, _medmcqa,
    ),
    "logiqa2": Source(
        "baber/logiqa2", f"{_HUB}/baber/logiqa2/blame/9494864c996d52531e6e43d047e4cbec4b6546d3/README.md",
        "cc-by-sa-4.0", 12_567, _logiqa, subset="logiqa2", revision="9494864c996d52531e6e43d047e4cbec4b6546d3",
    ),
    "pku-saferlhf": Source(
        "PKU-Alignment/PKU-SafeRLHF", f"{_HUB}/PKU-Alignment/PKU-SafeRLHF", "cc-by-nc-4.0", 164_000, _safety,
    ),
    # Table 4 and Table 5: prompts with traces
    "deepmath-103k": Source(
        "zwhe99/DeepMath-103K", f"{_HUB}/zwhe99/DeepMath-103K/blob/0406dc9d807ab2bfe11423c84468a234c8be18c1/README.md",
        "mit", 103_110, _deepmath, lambda record: record["r1_solution_1"], R1,
        revision="0406dc9d807ab2bfe11423c84468a234c8be18c1",
    ),
    "openr1-math-220k": Source(
        "open-r1/OpenR1-Math-220k",
        f"{_HUB}/open-r1/OpenR1-Math-220k/blob/075afe03dbbc6e7b8bd35af1e4259957f0beb07d/README.md",
        "apache-2.0", 93_733, _openr1, _openr1_trace, R1, "default", "075afe03dbbc6e7b8bd35af1e4259957f0beb07d",
    ),
    "openr1-math-220k-extended": Source(
        "open-r1/OpenR1-Math-220k",
        f"{_HUB}/open-r1/OpenR1-Math-220k/blob/075afe03dbbc6e7b8bd35af1e4259957f0beb07d/README.md",
        "apache-2.0", 131_396, _openr1, _openr1_trace, R1, "extended", "075afe03dbbc6e7b8bd35af1e4259957f0beb07d",
    ),
    "tulu-3": Source(
        "allenai/tulu-3-sft-mixture",
        f"{_HUB}/allenai/tulu-3-sft-mixture/blob/b14afda60f1bbebe55d5d2fa1e4df5042f97f8be/README.md",
        "odc-by", 939_343, _tulu, lambda record: _two(record["messages"])[1], "tulu-3-sft-mixture",
        revision="b14afda60f1bbebe55d5d2fa1e4df5042f97f8be",
    ),
    # Solutions by people: they are short and lack the self-checks of a model's reasoning
    "gsm8k": Source(
        "openai/gsm8k", f"{_HUB}/openai/gsm8k", "mit", 7_473, _gsm8k, _gsm8k_trace, "people, for GSM8K", "main",
    ),
    # Table 5, traces
    "mixture-of-thoughts-code": Source(
        "open-r1/Mixture-of-Thoughts", f"{_HUB}/open-r1/Mixture-of-Thoughts", "unknown", 83_070, _mixture("code"),
        lambda record: _two(record["messages"])[1], R1, "code",
    ),
    "mixture-of-thoughts-science": Source(
        "open-r1/Mixture-of-Thoughts", f"{_HUB}/open-r1/Mixture-of-Thoughts", "unknown", 172_514, _mixture("stem"),
        lambda record: _two(record["messages"])[1], R1, "science",
    ),
    "openthoughts3": Source(
        "open-thoughts/OpenThoughts3-1.2M", f"{_HUB}/DedeProGames/OpenThoughts3-20k/blob/main/README.md",
        "apache-2.0", 1_200_000, _thoughts3, lambda record: _two(record["conversations"])[1], "Qwen/QwQ-32B",
    ),
    "openthoughts-114k": Source(
        "open-thoughts/OpenThoughts-114k",
        f"{_HUB}/open-thoughts/OpenThoughts-Unverified-173k/blob/67d3730f4fc40f80cf492c94d309007d19718c37/README.md",
        "apache-2.0", 113_957, _thoughts, _thoughts_trace, R1, "metadata",
    ),
}  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A source by its ``name`` in `SOURCES`, or "rows" for files that already follow the contract.

    ``local``: a .parquet, .jsonl or .jsonl.gz file, or a folder of them, in the source's schema, to read instead of the
    Hub. ``revision``: a commit of the Hub instead of the table's. ``limit``: the maximum number of records (0: all).
    """

    name: str
    local: str = ""
    revision: str = ""
    limit: Count = 0

    def __post_init__(self) -> None:
        if self.name != "rows" and self.name not in SOURCES:
            raise ValueError(f"source {self.name!r} is not known; write rows or one of {', '.join(SOURCES)}")
        if self.name == "rows" and not self.local:
            raise ValueError("source 'rows' has no `local`; write the file or folder that holds the rows")

    @property
    def label(self) -> str:
        """The name of the output files: the source's name and, for "rows", that of the local file or folder."""
        return self.name if self.name != "rows" else f"rows-{Path(self.local).stem}"


def checked(wanted: list[Wanted], traces: bool, limit: int = 0) -> list[Wanted]:
    """Return the sources with at most ``limit`` records each (0: their own limits). Errors in the config or a missing
    file are raised here, before any records are read."""
    if not wanted:
        raise ValueError(f"`sources` is empty; write `- name: ...` with rows or one of {', '.join(SOURCES)}")
    labels = [one.label for one in wanted]
    for one in wanted:
        if labels.count(one.label) > 1:
            raise ValueError(f"`sources`: {one.label} is there twice")
        if traces and one.name != "rows" and SOURCES[one.name].trace is None:
            raise ValueError(f"`sources`: {one.name} has no traces; its prompts are for data_prep.rl_prompts")
        if one.local:
            _files(one.local)
    return [replace(one, limit=limit or one.limit) for one in wanted]


def read(wanted: Wanted, traces: bool) -> Iterator[Row | Rejection]:
    """Yield each record of a source, in order, as a row (with ``completion`` if ``traces``) or a rejection."""
    seen: dict[int, int] = {}
    source = SOURCES.get(wanted.name)
    for at, (file, number, record) in enumerate(_records(wanted, source)):
        if isinstance(record, str):
            yield Rejection(file, number, f"unreadable: {record}")
            continue
        try:
            row = _row(wanted, source, at, record, traces) if source else _own(record, traces)
            first = seen.setdefault(hash(row["id"]), at)
            if first != at:
                raise Refused(f"duplicate id: {row['id']!r} is also record {first}'s")
        except Refused as error:
            yield Rejection(file, number, str(error))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            yield Rejection(file, number, f"schema: {type(error).__name__}: {error}")
        else:
            yield row


def _records(wanted: Wanted, source: Source | None) -> Iterator[tuple[str, int, dict | str]]:
    """Yield (file, number from 0, record or the reason why there is none)."""
    if wanted.local:
        parts = shards.parts(_files(wanted.local))
        found = ((part.path, number, record) for part in parts for number, record in shards.records(part))
    else:
        found = _hub(source, wanted.revision or source.revision)
    for at, one in enumerate(found):
        if wanted.limit and at >= wanted.limit:
            return
        yield one


def _files(local: str) -> list[str]:
    path = Path(local)
    found = map(str, sorted(path.iterdir())) if path.is_dir() else shards.files(local)
    found = [file for file in found if file.endswith((".parquet", ".jsonl", ".jsonl.gz")) and Path(file).is_file()]
    if not found:
        there = path.is_dir() or path.is_file()
        fault = "no .parquet, .jsonl or .jsonl.gz file there" if there else f"no such file or folder{advice(path)}"
        raise FileNotFoundError(f"{local}: {fault}")
    return found


def _hub(source: Source, revision: str) -> Iterator[tuple[str, int, dict]]:
    from data_prep import hub

    from datasets import load_dataset  # slow to import

    if not revision:
        log.warning("%s: no revision is pinned; write `revision: <commit>` beside its name", source.hub_id)
    place, number = f"{source.hub_id}@{revision or 'main'}", 0
    try:
        where = {"split": "train", "revision": revision or None, "streaming": True}
        stream = hub.find(source.hub_id, lambda: load_dataset(source.hub_id, source.subset, **where), "dataset")
        for number, record in enumerate(stream):
            yield place, number, record
    except pa.ArrowException as error:  # a file is corrupt on the Hub, or was truncated in transit
        raise OSError(f"{place}: not readable after record {number}: {str(error).splitlines()[0]}") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(wanted: Wanted, source: Source, at: int, record: dict, traces: bool) -> Row:
    found = source.prompt(record)
    row = DEFAULTS | {"source": source.hub_id, "license": source.license, "source_id": str(at)} | found
    row["id"] = f"{wanted.name}-{row['source_id']}"
    row["revision"] = "local" if wanted.local else wanted.revision or source.revision or "main"
    row["prompt"] = row["question"]
    if not isinstance(row["question"], str):
        raise Refused(f"contract: the question is {type(row['question']).__name__}, must be str")
    row["language"] = rewards.detect_language(row["question"])
    if traces:
        row |= {"completion": _completion(source.trace(record), row["thinking"]), "generator": source.generator}
    return _verified(row, traces)


def _own(record: dict, traces: bool) -> Row:
    """The row of a record that should already follow the contract. A test set may be JSON or a JSON string. Messages
    are converted to text if they are one question and its answer."""
    row = dict.fromkeys(rows.RULES, "") | {"generator": "", "source_id": record.get("id"), "revision": "local"} | record
    for column in ("messages", "conversations"):
        if isinstance(record.get(column), list):
            row["prompt"], row["completion"] = _two(record[column])
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(column), list):
            row[column] = _said(record[column], role)[0]
    if record.get("system"):
        raise Refused(f"system: {rows.CHAT.partition(';')[0]}")
    row.setdefault("question", row.get("prompt"))
    if not isinstance(row["tests"], str):
        row["tests"] = json.dumps(row["tests"], ensure_ascii=False) if row["tests"] else ""
    return _verified(row, traces)


def _completion(text: str, thinking: bool) -> str:
    """A trace as `<think>reasoning</think>` and the summary, or only the text if ``thinking`` is false. Raises Refused
    for any other form."""
    text = text.strip()
    whole = f"<think>{text}" if thinking and "<think>" not in text else text  # a template may have opened the tag
    if not rewards.is_well_formed(whole, "think", thinking):
        raise Refused("trace: not one reasoning in think tags with a summary after it")
    parts = rewards.parse(whole)
    return f"<think>{parts.reasoning}</think>\n{parts.summary}" if thinking else whole


def _verified(row: Row, traces: bool) -> Row:
    """The row with its final columns. Raises Refused if it is invalid or its gold answer cannot be verified."""
    fault = rows.fault(row, traces)
    if fault:
        raise Refused(f"contract: {fault}")
    if row["verifier"] in ("math", "choice", "gym"):
        wrong = rewards.gold_error(row["answer"], row["verifier"], row["entry"])
        if wrong:
            raise Refused(f"gold: {wrong}")
    elif row["verifier"] == "code" and (row["tests"] or not row["answer"]):
        try:
            rewards.parse_tests(row["tests"])
        except (ValueError, TypeError) as error:
            raise Refused(f"tests: {error}") from error
    if traces:
        graded = row["verifier"] in ("math", "choice", "gym")
        rule = row["answer"], row["verifier"], row["entry"]
        if graded and not rewards.is_correct(row["completion"], *rule):
            raise Refused(f"trace: it does not answer {row['answer']!r}")
        row["verified_by"] = "rule" if graded else ""
    return {name: row[name] for name in (TRACE_COLUMNS if traces else PROMPT_COLUMNS)}


# --- writing ----------------------------------------------------------------------------------------------------------


def convert(wanted: Wanted, folder: Path, traces: bool) -> tuple[Path, dict[str, Any]]:
    """Write ``<label>.parquet`` and ``<label>.quarantine.jsonl`` to a folder and return (the Parquet file, its counts).

    A source whose files exist is not read again. Raises NoRowsError if no record gives a row.
    """
    path, done = folder / f"{wanted.label}.parquet", folder / f"{wanted.label}.json"
    if done.is_file():
        return path, json.loads(done.read_text(encoding="utf-8"))
    reasons: Counter[str] = Counter()
    first = ""
    with whole_file(folder / f"{wanted.label}.quarantine.jsonl") as quarantine:

        def kept() -> Iterator[Row]:
            nonlocal first
            for found in commands.progress(read(wanted, traces), wanted.label, wanted.limit or None):
                if isinstance(found, Rejection):
                    reasons[found.reason.partition(":")[0]] += 1
                    first = first or f"{found.file}, record {found.row}: {found.reason}"
                    line = {"file": found.file, "row": found.row, "reason": found.reason}
                    quarantine.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                else:
                    yield found

        count = rows.write_stream(path, kept(), schema(TRACE_COLUMNS if traces else PROMPT_COLUMNS))
    counts = {"rows": count, "refused": reasons.total(), "reasons": dict(sorted(reasons.items()))}
    log.info("%s: %d rows, %d records refused %s", wanted.label, count, reasons.total(), counts["reasons"] or "")
    if not count:
        raise rows.NoRowsError(f"{wanted.label}: no record gives a row. {first}")
    write_json(done, counts)
    return path, counts


def convert_all(wanted: list[Wanted], folder: Path, traces: bool, where: engine.Executor) -> dict[str, dict[str, Any]]:
    """Run ``convert`` for each source as a separate task, and return the counts by label."""
    task = engine.Task(functools.partial(_convert_one, wanted, folder, traces))
    engine.run([task], len(wanted), folder / "work", where)
    engine.discard(folder / "work")
    return {one.label: convert(one, folder, traces)[1] for one in wanted}


def _convert_one(wanted: list[Wanted], folder: Path, traces: bool, rank: int, tasks: int) -> None:
    convert(wanted[rank], folder, traces)


# --- the job ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sources(jobs.Job):
    """``traces``: rows with a completion, for an SFT mixture; else prompts. ``limit``: most records of each source."""

    sources: list[Wanted]
    traces: bool = True
    distributed = True


def load(config: Sources) -> dict[str, list]:
    return {"sources": checked(config.sources, config.traces, config.limit)}


def plan(config: Any, sources: list[Wanted]) -> list[str]:
    """One line for each source (name, origin, size, licence), then one for the total work."""
    lines, total = [], 0
    for one in sources:
        if one.local:
            found = shards.parts(_files(one.local))
            total += sum(max(part.rows, 0) for part in found)
            lines.append(f"{one.label}: from {one.local}, {shards.described(found)}")
            continue
        source = SOURCES[one.name]
        count = min(one.limit or source.rows, source.rows)
        total += count
        place = f"{source.hub_id} {source.subset or ''}@{one.revision or source.revision or 'main'}"
        lines.append(f"{one.label}: {count:,} records of {place}, {source.license}")
    disk = total * (KEPT if getattr(config, "traces", False) else KEPT / 10) / 2**30
    work = f"about {total / RATE / 60:,.0f} minutes of one core beside the download, up to {disk:,.1f} GB of disk"
    return [*lines, f"{total:,} records, {work}"]


def build(config: Sources, output_dir: Path, sources: list[Wanted]) -> dict[str, object]:
    figures = convert_all(sources, output_dir, config.traces, config.executor)
    return {"rows": sum(counts["rows"] for counts in figures.values()), "sources": figures}


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
