"""A data set card for the Hub, and the statistics in it, computed from the rows and from the records of their runs.

`python -m data_prep.cards --config <yaml>` reads the Parquet files of a finished data job and writes ``README.md``
(the card) and ``stats.json``. What nothing tells (who curates it, whom to write to) comes from the YAML, or the card
says that it is not stated. Lengths, languages and e-mail addresses are measured on every k-th row.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rewards
from data_prep import jobs, rows, runs
from data_prep.mixture import TABLE_5
from data_prep.run_cards import table

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

log = logging.getLogger(__name__)
COUNTED = ("domain", "kind", "language", "license", "source", "verifier", "verified_by", "generator", "thinking")
SIZES = [(10**power, name) for power, name in ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K"), (6, "100K<n<1M"))]
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b", re.IGNORECASE)
CONSISTENCY = (0.5, 0.8, 0.9, 0.95, 0.99)  # edges of the histogram
NOT_STATED = "Not stated."


@dataclass(frozen=True)
class Card:
    """``data``: the run whose rows are described. ``license``: of the whole; "" takes that of the rows, or "other"
    where they have several. ``tokenizer``: a path or Hub id; "" counts characters. ``gaps``: what is known to be
    missing, or what stands in for what, a sentence each. ``read_rows``: about as many are measured."""

    output_dir: str
    data: str
    title: str
    summary: str = ""
    curators: str = ""
    contact: str = ""
    citation: str = ""
    personal_information: str = ""
    license: str = ""
    tokenizer: str = ""
    gaps: list[str] = field(default_factory=list)
    read_rows: int = 20_000
    seed: int = 0
    limit: int = 0


def load(config: Card) -> dict[str, list]:
    runs.read(Path(config.data))
    files = sorted(Path(config.data).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{config.data}: no .parquet file in this run")
    return {"files": files}


def build(config: Card, output_dir: Path, files: list[Path]) -> dict[str, object]:
    stats = statistics(files, config) | {"runs": lineage(Path(config.data))}
    stats["gaps"] = [*config.gaps, *shortfalls(stats["runs"])]
    (output_dir / "stats.json").write_text(json.dumps(stats, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    header = DatasetCardData(**metadata(config, stats))
    DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{body(config, stats)}").save(output_dir / "README.md")
    return {"rows": stats["rows"]}


# --- what the rows say ------------------------------------------------------------------------------------------------


def statistics(files: list[Path], config: Card) -> dict[str, Any]:
    found = {path.name: pq.ParquetFile(path) for path in files}
    total = sum(file.metadata.num_rows for file in found.values())
    step = max(1, total // (config.limit or config.read_rows))
    counts: dict[str, Counter] = {name: Counter() for name in COUNTED}
    revisions: dict[str, set[str]] = {}
    lengths: dict[str, list[int]] = {"prompt": [], "reasoning": [], "summary": []}
    shares: list[float] = []
    incomplete = emails = read = 0
    measure = _measure(config.tokenizer)
    for number, row in enumerate(_every(found.values())):
        for name, values in counts.items():
            if row.get(name) is not None:
                values[str(row[name])] += 1
        if row.get("revision"):
            revisions.setdefault(row["source"], set()).add(row["revision"])
        if number % step:
            continue
        read += 1
        completion = row.get("completion") or ""
        parts = rewards.parse(completion)
        lengths["prompt"].append(measure(row["prompt"]))
        if completion:
            lengths["reasoning"].append(measure(parts.reasoning or ""))
            lengths["summary"].append(measure(parts.summary))
            incomplete += not parts.complete
        if parts.reasoning and row.get("language"):
            shares.append(rewards.language_consistency(parts.reasoning, row["language"]))
        emails += bool(EMAIL.search(row["prompt"] + "\n" + completion))
    domains = {
        name: {"rows": counts["domain"][name], "table_5": paper, "difference": counts["domain"][name] - paper}
        for name, paper in TABLE_5.items()
    }
    schema = next(iter(found.values())).schema_arrow
    return {
        "rows": total,
        "files": {name: {"rows": file.metadata.num_rows, "bytes": path.stat().st_size}
                  for (name, file), path in zip(found.items(), files, strict=True)},
        "text_bytes": sum(
            file.metadata.row_group(group).total_byte_size
            for file in found.values() for group in range(file.num_row_groups)
        ),
        "columns": {column.name: str(column.type).replace("double", "float64") for column in schema},
        "counts": {name: dict(values.most_common()) for name, values in counts.items() if values},
        "domains": domains if lengths["summary"] else {},
        "revisions": {source: sorted(values) for source, values in sorted(revisions.items())},
        "commercial_rows": sum(n for name, n in counts["license"].items() if rows.commercial(name)),
        "checked": {
            "rule": sum(counts["verifier"][name] for name in ("math", "choice", "code")),
            "judge": counts["verifier"]["judge"], "none": counts["verifier"]["none"],
        },
        "rows_read": read,
        "rounds": 1.0,  # the contract's rows are one question and one answer
        "unit": f"tokens of {config.tokenizer}" if config.tokenizer else "characters",
        "lengths": {name: _summary(values) for name, values in lengths.items() if values},
        "incomplete": incomplete,
        "language_consistency": _histogram(shares),
        "emails": emails,
    }  # fmt: skip


def _every(files: Any) -> Iterator[rows.Row]:
    for file in files:
        for batch in file.iter_batches(1_000):
            yield from batch.to_pylist()


def _measure(tokenizer: str):
    if not tokenizer:
        return len
    from transformers import AutoTokenizer  # slow to import

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return lambda text: len(loaded(text, add_special_tokens=False)["input_ids"])


def _summary(values: list[int]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": round(float(np.mean(values)), 1), "p5": low, "p50": middle, "p95": high, "max": max(values)}


def _histogram(shares: list[float]) -> dict[str, int]:
    edges = [0.0, *CONSISTENCY]
    names = [f"{low:g} to {high:g}" for low, high in zip(edges, [*CONSISTENCY, 1.0], strict=True)]
    places = np.searchsorted(CONSISTENCY, shares, side="right").tolist()
    counts = Counter(names[place] for place in places)
    return {name: counts[name] for name in names} if shares else {}


# --- what the runs say ------------------------------------------------------------------------------------------------

BOOKKEEPING = ("stage", "fingerprint", "versions", "seconds", "tries", "peak_rss_gb", "config", "seed", "inputs")


def lineage(run: Path) -> list[dict[str, Any]]:
    """The record of a run, then of each run that it came from; an input that is no run of ours any more is left out."""
    waiting, found = [str(run)], {}
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        try:
            record = runs.read(Path(path))
        except runs.MissingRunError:
            log.warning("%s has no run.json: the card cannot tell how it was made", path)
            continue
        figures = {name: value for name, value in record.items() if name not in BOOKKEEPING}
        found[path] = {"run": path} | {name: record.get(name) for name in BOOKKEEPING} | {"figures": figures}
        waiting += record.get("inputs", [])
    return list(found.values())


def shortfalls(records: list[dict[str, Any]]) -> list[str]:
    return [
        f"{record['stage']}: {name} is {count['shortfall']:,} rows short of its quota of {count['quota']:,}."
        for record in records
        for name, count in _dicts(record["figures"])
        if count.get("shortfall")
    ]


def _dicts(value: Any, name: str = "") -> Iterator[tuple[str, dict]]:
    """Every mapping inside of a value, with its key."""
    if isinstance(value, dict):
        yield name, value
        for key, part in value.items():
            yield from _dicts(part, key)


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=runs.ROOT, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown (no git repository)"
    return done.stdout.strip()


# --- the card ---------------------------------------------------------------------------------------------------------


def metadata(config: Card, stats: dict[str, Any]) -> dict[str, Any]:
    """The YAML at the head of the card."""
    licenses = list(stats["counts"].get("license", {}))
    sources = [name for name in stats["counts"].get("source", {}) if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    groups = rows.configurations(stats["files"])
    splits = [
        {"name": group, "num_bytes": sum(stats["files"][name]["bytes"] for name in names),
         "num_examples": sum(stats["files"][name]["rows"] for name in names)}
        for group, names in groups.items()
    ]  # fmt: skip
    single = licenses[0] if len(licenses) == 1 else "other"
    return {
        "pretty_name": config.title,
        "license": config.license or single,
        **({"license_name": "per-row"} if (config.license or single) == "other" else {}),
        "language": list(stats["counts"].get("language", {})),
        "annotations_creators": "machine-generated",
        "size_categories": next((name for size, name in SIZES if stats["rows"] < size), "n>1M"),
        "source_datasets": sources or ["original"],
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "deepseek-r1", "synthetic"],
        "configs": [
            {"config_name": group, "data_files": [{"split": "train", "path": names}]} for group, names in groups.items()
        ],
        "dataset_info": {
            "features": [{"name": name, "dtype": kind} for name, kind in stats["columns"].items()],
            "splits": splits,
            "download_size": sum(split["num_bytes"] for split in splits),
            "dataset_size": stats["text_bytes"],
        },
    }


def body(config: Card, stats: dict[str, Any]) -> str:
    """The card's sections, in the order of the Hub's template."""
    counts = stats["counts"]
    head = stats["runs"][0]
    licenses = [[name, n, "yes" if rows.commercial(name) else "no"] for name, n in counts.get("license", {}).items()]
    sources = [
        [_link(name), n, ", ".join(stats["revisions"].get(name, []))] for name, n in counts.get("source", {}).items()
    ]
    domains = [[name, *values.values()] for name, values in stats["domains"].items()]
    lengths = [[name, *values.values()] for name, values in stats["lengths"].items()]
    read = f"{stats['rows_read']:,} of {stats['rows']:,} rows"
    completions = "reasoning" in stats["lengths"]
    intended = "supervised fine-tuning of a reasoning model" if completions else "reinforcement learning from rewards"
    sections = [
        f"# {config.title}",
        config.summary or f"{stats['rows']:,} rows made by `{head['stage']}` for {intended}, after DeepSeek-R1.",
        "## Uses",
        f"Direct use: {intended}, with the columns below. Out of scope: evaluation (its prompts may be close to public "
        "benchmarks' training sets), and any use that the licence of a row excludes.",
        "## Structure",
        _table(["column", "type"], [[name, kind] for name, kind in stats["columns"].items()]),
        "Of a row, `prompt` is what the user sends, `completion` the full assistant text with its reasoning in think "
        "tags, `answer` the gold answer and `verifier` what can check it.",
        "## Licences and sources",
        _table(["licence", "rows", "commercial use"], licenses),
        f"{stats['commercial_rows']:,} rows allow commercial use. The licence of each row is its own.",
        _table(["source", "rows", "revision"], sources),
        "## Statistics",
        *(_table([name, "rows"], list(counts[name].items())) for name in ("kind", "language") if name in counts),
        *([_table(["domain", "rows", "Table 5", "difference"], domains)] if domains else []),
        _table([f"length in {stats['unit']}", "mean", "p5", "p50", "p95", "max"], lengths),
        f"Measured on {read}. Rounds a row: {stats['rounds']:g}. Completions cut off: {stats['incomplete']:,}. "
        f"Rows with reasoning: {counts.get('thinking', {}).get('True', 0):,}.",
    ]
    if stats["language_consistency"]:
        sections += [
            "Share of the reasoning's words that are in the prompt's language:",
            _table(["share", "rows"], list(stats["language_consistency"].items())),
        ]
    sections += [
        "## Curation",
        "### Rationale",
        "The data of DeepSeek-R1 are not published; these rows stand in for a part of them, made as its paper says.",
        "### Collection and processing",
        _table(
            ["run", "seed", "rows", "seconds", "tries", "peak GB", "config and code"],
            [
                [
                    r["run"],
                    r["seed"],
                    r["figures"].get("rows", ""),
                    r["seconds"],
                    r["tries"],
                    r["peak_rss_gb"],
                    (r["fingerprint"] or "")[:12],
                ]
                for r in stats["runs"]
            ],
        ),  # fmt: skip
        *(_figures(record) for record in stats["runs"] if "rows" in record["figures"]),
        "### Producers",
        _table(["generator", "rows"], list(counts.get("generator", {}).items()))
        if "generator" in counts
        else NOT_STATED,
        *_sampling(stats["runs"]),
        "Prompts of every step are in `data_prep/prompts.py`; rows' prompts are sent by the model's chat template, "
        "without a system prompt. No speculative decoding is set by us.",
        "### Annotations",
        "By machine. " + ", ".join(f"{name}: {n:,} rows" for name, n in stats["checked"].items()) + " can be checked; "
        f"the rule is that of `rewards` with math-verify {importlib.metadata.version('math-verify')}. "
        + (f"Verified here: {counts['verified_by'].get('rule', 0):,} rows." if "verified_by" in counts else ""),
        "### Versions",
        f"git {_commit()}; "
        + ", ".join(f"{name} {version}" for name, version in (head["versions"] or {}).items())
        + ".",
        "### Personal and sensitive information",
        (config.personal_information or "Not reviewed by a person.")
        + f" E-mail addresses stand in {stats['emails']:,} of the {stats['rows_read']:,} rows read.",
        "## Bias, risks and limits",
        "Made by models: wrong reasoning can end in a right answer, and what its sources lean to, it leans to. "
        "Decontamination by n-grams misses paraphrases.",
        *([f"- {gap}" for gap in stats["gaps"]] or ["No gap is known."]),
        "## Curators, citation, contact",
        f"Curators: {config.curators or NOT_STATED}",
        f"Citation: {config.citation or NOT_STATED}",
        f"Contact: {config.contact or NOT_STATED}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _link(source: str) -> str:
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    return f"[{source}](https://huggingface.co/datasets/{source})" if known else source


def _table(head: list[str], lines: list[list]) -> str:
    return table(head, [[f"{cell:,}" if isinstance(cell, int | float) else cell for cell in line] for line in lines])


def _figures(record: dict[str, Any]) -> str:
    """What a run counted and the thresholds that it had, each number under its dotted name."""
    flat = dict(_flat(record["figures"])) | {f"config.{name}": value for name, value in _flat(record["config"] or {})}
    lines = [[name, value] for name, value in flat.items() if isinstance(value, int | float) and value is not False]
    return f"What `{record['run']}` counted, and its settings:\n\n" + _table(["figure", "value"], lines)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _sampling(records: list[dict[str, Any]]) -> list[str]:
    """A line for each way of sampling that a run's settings name: model, revision, decoding, attempts a prompt."""
    lines = []
    for record in records:
        for name, part in _dicts(record["config"] or {}, record["stage"]):
            if isinstance(part.get("decoding"), dict):
                asked = {key: part[key] for key in ("n", "keep", "written") if key in part}
                model = part.get("checkpoint", "")
                revision = (part.get("sampler") or {}).get("revision") or "as it was in this run"
                values = ", ".join(f"{key} {value}" for key, value in {**part["decoding"], **asked}.items())
                lines.append(f"- `{name}`: {model}, revision {revision}; {values}")
    return lines


if __name__ == "__main__":
    sys.exit(jobs.run(Card, load, build))
