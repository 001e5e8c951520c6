"""Cards for the Hub of rows of the contract, computed from the rows and the records of runs.

Facts that no file records (curator, contact) come from the config; otherwise the card says that they are not stated.

`python -m data_prep.hub.cards --config <yaml>` reads the Parquet files of a finished data job and writes ``README.md``
(the card) and ``stats.json``. Lengths, languages and e-mail addresses are measured on every k-th row. Cards of models
and of other records are made by `data_prep.hub.run_cards`.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import rewards
from data_prep import jobs, rows, runs
from data_prep.mixture import TABLE_5
from rewards.settings import Positive

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

log = logging.getLogger(__name__)
COUNTED = ("domain", "kind", "language", "license", "source", "verifier", "verified_by", "generator", "thinking")
SIZES = [(10**power, name) for power, name in ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K"), (6, "100K<n<1M"))]
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b", re.IGNORECASE)
CONSISTENCY = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)  # edges of the histogram
HUB = "https://huggingface.co"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class Card(jobs.Job):
    """``data``: the run whose rows are described. ``license``: the licence of the whole data set; "" takes that of the
    rows, or "other" where they have several. ``tokenizer``: a path or Hub id; "" counts characters. ``gaps``: one
    sentence for each known gap or substitute. ``read_rows``: about how many rows are measured."""

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
    read_rows: Positive = 20_000


def load(config: Card) -> dict[str, list]:
    runs.read(Path(config.data))
    files = sorted(Path(config.data).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{config.data}: no .parquet file in this run")
    return {"files": files}


def build(config: Card, output_dir: Path, files: list[Path]) -> dict[str, object]:
    stats = statistics(files, config) | {"runs": lineage(Path(config.data))}
    stats["gaps"] = [*config.gaps, *shortfalls(stats["runs"])]
    runs.write_json(output_dir / "stats.json", stats)
    (output_dir / "README.md").write_text(rows_card(config, stats), encoding="utf-8")
    return {"rows": stats["rows"]}


# --- what all cards share ---------------------------------------------------------------------------------------------


def render(template: str, **values: Any) -> str:
    """Render a template of `data_prep/hub/templates`; consecutive empty lines become one."""
    text = TEMPLATES.get_template(template).render(table=table, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def table(head: Sequence[str], lines: Iterable[Sequence]) -> str:
    """A Markdown table, or "" if there are no lines."""
    shown = [
        [f"{cell:,}" if type(cell) in (int, float) else str(cell).replace("|", "\\|") for cell in line]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *shown]) if shown else ""


def title(folder: Path) -> str:
    return folder.name.replace("_", " ").capitalize()


def configs(groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The configurations of the card's header, each with its Parquet files."""
    return [{"config_name": name, "data_files": [{"split": "train", "path": parts}]} for name, parts in groups.items()]


def license_of(stated: Iterable[str]) -> dict[str, str]:
    """The licence of the card's header. A single licence that the Hub knows is given by the Hub's identifier. Any other
    is `other` with its name, and several are `other` with a name that says where they are listed."""
    names = {rows.hub_license(name) or name.strip() for name in stated}
    name = names.pop() if len(names) == 1 else "other"
    if name in rows.HUB_LICENSES - {"other"}:
        return {"license": name}
    own = re.sub(r"[^a-z0-9.-]+", "-", re.sub(r"^https?://", "", name.lower())).strip("-.")
    found = {"license": "other", "license_name": own if own not in ("", "other") else "as-listed-in-this-card"}
    return found | ({"license_link": name} if re.fullmatch(r"https?://\S+", name) else {})


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf, which is a value that is neither a mapping nor a list."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def count(column: pa.ChunkedArray) -> Counter[str]:
    """Count each value of a column; the items of a list are counted one by one."""
    found = (one if isinstance(one, list) else [one] for one in column.to_pylist())  # a licence may be a list
    return Counter(str(one) for one in itertools.chain.from_iterable(found) if one is not None)


# --- what the rows say ------------------------------------------------------------------------------------------------


def statistics(files: list[Path], config: Card) -> dict[str, Any]:
    found = {path.name: pq.ParquetFile(path) for path in files}
    schema = found[files[0].name].schema_arrow
    total = sum(file.metadata.num_rows for file in found.values())
    step = max(1, total // (config.limit or config.read_rows))
    names = [name for name in (*COUNTED, "revision") if name in schema.names]
    columns = pq.read_table(files, columns=names)
    counts: dict[str, Counter] = {name: Counter() for name in COUNTED}
    counts |= {name: count(columns[name]) for name in names if name != "revision"}
    revisions: dict[str, set[str]] = {}
    if "revision" in names:
        for source, revision in set(zip(columns["source"].to_pylist(), columns["revision"].to_pylist(), strict=True)):
            revisions.setdefault(source, set()).update([revision] if revision else [])
    lengths: dict[str, list[int]] = {"prompt": [], "reasoning": [], "summary": []}
    shares: list[float] = []
    incomplete = emails = read = 0
    measure = _measure(config.tokenizer)
    texts = [name for name in ("prompt", "completion", "language") if name in schema.names]
    for row in itertools.islice(rows.stream(files, texts), 0, None, step):
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
    return {
        "rows": total,
        "files": {name: {"rows": file.metadata.num_rows, "bytes": path.stat().st_size}
                  for (name, file), path in zip(found.items(), files, strict=True)},
        "columns": {column.name: str(column.type) for column in schema},
        "counts": {name: dict(values.most_common()) for name, values in counts.items() if values},
        "domains": domains if lengths["summary"] else {},
        "revisions": {source: sorted(values) for source, values in sorted(revisions.items()) if values},
        "commercial_rows": sum(n for name, n in counts["license"].items() if rows.commercial(name)),
        "checked": {
            "rule": sum(counts["verifier"][name] for name in ("math", "choice", "code", "gym")),
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
    counts, edges = np.histogram(shares, CONSISTENCY)
    bins = zip(edges, edges[1:], counts.tolist(), strict=False)
    return {f"{low:g} to {high:g}": count for low, high, count in bins} if shares else {}


# --- what the runs say ------------------------------------------------------------------------------------------------

BOOKKEEPING = ("stage", "id", "code", "versions", "seconds", "tries", "peak_rss_gb", "config", "seed", "inputs")
# Fields that identify a run, and the files that it made.
NOT_SHOWN = (*(field.name for field in fields(runs.Identity)), "models", "made")


def lineage(run: Path) -> list[dict[str, Any]]:
    """The records of a run and of all runs that it came from. Inputs without a run.json are skipped with a warning."""
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
        figures = {name: value for name, value in record.items() if name not in BOOKKEEPING + NOT_SHOWN}
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
    """Yield every mapping within a value, with its key."""
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
    sources = [name for name in stats["counts"].get("source", {}) if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    return {
        "pretty_name": config.title,
        **license_of([config.license] if config.license else stats["counts"].get("license", {})),
        "language": list(stats["counts"].get("language", {})),
        "annotations_creators": "machine-generated",
        "size_categories": next((name for size, name in SIZES if stats["rows"] < size), "n>1M"),
        "source_datasets": sources or ["original"],
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "deepseek-r1", "synthetic"],
        "configs": configs(rows.configurations(stats["files"])),
    }


def rows_card(config: Card, stats: dict[str, Any]) -> str:
    """The card of a data set; its sections are in the order of the Hub's template."""
    counts, head, revisions = stats["counts"], stats["runs"][0], stats["revisions"]
    completions = "reasoning" in stats["lengths"]
    columns = ("run", "seed", "rows", "seconds", "tries", "peak_rss_gb", "id", "code")
    made = [
        r | {"rows": r["figures"].get("rows", ""), "id": str(r["id"])[:12], "code": (r["code"] or {}).get("commit", "")}
        for r in stats["runs"]
    ]
    return render(
        "rows.md",
        header=DatasetCardData(**metadata(config, stats)).to_yaml().strip(),
        config=config,
        stats=stats,
        head=head,
        intended="supervised fine-tuning of a reasoning model"
        if completions
        else "reinforcement learning from rewards",
        licences=[(name, n, "yes" if rows.commercial(name) else "no") for name, n in counts.get("license", {}).items()],
        sources=[(_link(name), n, ", ".join(revisions.get(name, ()))) for name, n in counts.get("source", {}).items()],
        domains=[(name, *one.values()) for name, one in stats["domains"].items()],
        lengths=[(name, *one.values()) for name, one in stats["lengths"].items()],
        made=[[r[column] for column in columns] for r in made],
        figures={r["run"]: _numbers(r) for r in stats["runs"] if "rows" in r["figures"]},
        sampling=_sampling(stats["runs"]),
        math_verify=importlib.metadata.version("math-verify"),
        commit=_commit(),
    )


def _link(source: str) -> str:
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    return f"[{source}]({HUB}/datasets/{source})" if known else source


def _numbers(record: dict[str, Any]) -> list[tuple[str, float]]:
    """The counts and thresholds of a run as (dotted name, number)."""
    flat = dict(leaves(record["figures"])) | dict(leaves({"config": record["config"] or {}}))
    return [(name, value) for name, value in flat.items() if isinstance(value, int | float) and value is not False]


def _sampling(records: list[dict[str, Any]]) -> list[str]:
    """One line for each sampler in a run's settings: model, revision, decoding and attempts per prompt."""
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
    sys.exit(jobs.main(__spec__.name))
