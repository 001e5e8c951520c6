"""Cards for the Hub, of rows of the contract, of other records, of a model: computed from rows and records of runs.

What nothing tells (who curates it, whom to write to) is given, or the card says that it is not stated.

`python -m data_prep.cards --config <yaml>` reads the Parquet files of a finished data job and writes ``README.md``
(the card) and ``stats.json``. Lengths, languages and e-mail addresses are measured on every k-th row. A model's card
has its settings, curves, every finished `evaluate_*` run of the same scale that measured it (as `model-index` too), and
the licences that the rows of its data, and of the data of the models that it came from, carry.
"""

from __future__ import annotations

import importlib.metadata
import io
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
from data_prep import hub, jobs, prompts, rows, runs
from data_prep.mixture import TABLE_5
from rewards.settings import Positive

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

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
QUESTION = "What is 2 + 3 * 4?"
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm",
    "optim", "max_steps", "num_train_epochs", "batch_size", "prompts_per_step", "num_generations",
    "generation_batch_size", "num_iterations", "beta", "epsilon", "epsilon_high", "loss_type", "scale_rewards",
    "temperature", "top_p", "max_completion_length", "max_prompt_length", "max_length", "packing",
    "ref_model_sync_steps", "ref_model_mixup_alpha", "token_budget", "dtype", "bf16", "use_peft", "seed",
)  # fmt: skip
LORA = ("lora_r", "lora_alpha", "lora_target_modules")
MEASURES = (
    "pass@1", "pass@1_at_temperature_1", "pass@16", "cons@16", "format_rate", "language_consistency", "answer_language",
    "truncated", "helpful_score", "safe_rate", "refusals_of_harmless",
)  # fmt: skip
MANY, GENERAL = ("pass@16", "cons@16"), ("helpful_score", "safe_rate", "refusals_of_harmless")
CURVES = ("reward", "loss", "kl", "completions/mean_length", "mean_token_accuracy", "entropy")


@dataclass(frozen=True, kw_only=True)
class Card(jobs.Job):
    """``data``: the run whose rows are described. ``license``: of the whole; "" takes that of the rows, or "other"
    where they have several. ``tokenizer``: a path or Hub id; "" counts characters. ``gaps``: what is known to be
    missing, or what stands in for what, a sentence each. ``read_rows``: about as many are measured."""

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
    """A template of `data_prep/templates`, with no two empty lines in a row."""
    text = TEMPLATES.get_template(template).render(table=table, **values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def table(head: Sequence[str], lines: Iterable[Sequence]) -> str:
    """A Markdown table; "" where it has no lines."""
    shown = [
        [f"{cell:,}" if type(cell) in (int, float) else str(cell).replace("|", "\\|") for cell in line]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *shown]) if shown else ""


def title(folder: Path) -> str:
    return folder.name.replace("_", " ").capitalize()


def configs(groups: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The header's configurations: of each, its Parquet files."""
    return [{"config_name": name, "data_files": [{"split": "train", "path": parts}]} for name, parts in groups.items()]


def license_of(stated: Iterable[str]) -> dict[str, str]:
    """The header's licence: the Hub's identifier of the one that is stated, else `other` under a name of its own, or
    under one that says where several are listed."""
    names = {rows.hub_license(name) or name.strip() for name in stated}
    name = names.pop() if len(names) == 1 else "other"
    if name in rows.HUB_LICENSES - {"other"}:
        return {"license": name}
    own = re.sub(r"[^a-z0-9.-]+", "-", re.sub(r"^https?://", "", name.lower())).strip("-.")
    found = {"license": "other", "license_name": own if own not in ("", "other") else "as-listed-in-this-card"}
    return found | ({"license_link": name} if re.fullmatch(r"https?://\S+", name) else {})


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that is neither mapping nor list inside of a value."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _counts(column: pa.ChunkedArray) -> Counter[str]:
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
    counts |= {name: _counts(columns[name]) for name in names if name != "revision"}
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
# By which a run is known again, and what it made.
NOT_SHOWN = (*(field.name for field in fields(runs.Identity)), "models", "made")


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
    """In the order of the Hub's template."""
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
    """What a run counted and the thresholds that it had, each number under its dotted name."""
    flat = dict(leaves(record["figures"])) | dict(leaves({"config": record["config"] or {}}))
    return [(name, value) for name, value in flat.items() if isinstance(value, int | float) and value is not False]


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


# --- of a model, of other records -------------------------------------------------------------------------------------


def model_card(folder: Path, run: Path, hub_model_id: str | None = None) -> str:
    """README.md for the model in `folder`, which `run` (the folder itself, or the one above) made: on the Hub, or, with
    no id, in the folder, when nothing is asked of the Hub."""
    hub_model_id, is_local = hub_model_id or str(folder), hub_model_id is None
    record = read_json(run / "run.json") or {}
    config = record.get("config", {})
    name, revision, place = hub_name(_parent(folder, record))
    parent = (name, record.get("parent_revision") or revision, place)
    stated = list(licences(run, not is_local))
    measured = list(_evaluations(folder, run))
    return render(
        "model.md",
        header=_header(folder, config, parent, stated, measured, hub_model_id).strip(),
        name=Path(hub_model_id).name,
        record=record,
        kind=_kind(folder, config),
        parent=_said(parent),
        snippet=snippet(folder, config, hub_model_id),
        adapter_snippet=_adapter_snippet(folder, hub_model_id),
        settings=[(key, config[key]) for key in _settings(config) if config.get(key) is not None],
        sources=_data(config),
        rewards=_rewards(config),
        curves=_drawn(_log(folder)),
        hardware=_hardware(record),
        measured=[_measures(name, figures, settings) for name, figures, settings in measured],
        licences=_licence_text(stated),
    )


def record_card(folder: Path, files: hub.Files, groups: dict[str, list[str]]) -> str:
    """README.md for a corpus, preferences, generations or a report: `groups` are its configurations' Parquet files."""
    tables = {name: [pq.ParquetFile(files[part]) for part in names] for name, names in groups.items()}
    stated = list(licences(folder))
    own = {license for names in groups.values() for part in names for license in _column(files[part], "license")}
    header = {
        "pretty_name": title(folder),
        **license_of(own | {name for _, counts in stated for name in counts}),
        "annotations_creators": ["machine-generated"],
        "tags": ["reasoning", "deepseek-r1", "synthetic"],
        "configs": configs(groups),
    }
    record = read_json(folder / "run.json") or {}
    measured = (read_json(folder / "results.json") or {}).get("checkpoints", {})
    return render(
        "records.md",
        header=yaml.safe_dump(header, sort_keys=False).strip(),
        title=title(folder),
        stage=record.get("stage", folder.name),
        configurations=[
            (name, sum(file.metadata.num_rows for file in parts), ", ".join(parts[0].schema_arrow.names))
            for name, parts in tables.items()
        ],
        measured=[_measures(name, figures, {}) for name, figures in measured.items()],
        settings=[(key, json.dumps(value)) for key, value in record.get("config", {}).items()],
        hardware=_hardware(record),
        own=own,
        licences=_licence_text(stated),
    )


def hub_name(place: str | None) -> tuple[str | None, str | None, str | None]:
    """(Hub id, revision, path here) of what a config names: a folder, which may have been pushed, or a Hub id."""
    if place and runs.is_here(place):
        pushed = read_json(Path(place) / "hub.json") or {}
        return pushed.get("id"), pushed.get("revision"), place
    return place or None, None, None


def _parent(folder: Path, record: dict[str, Any]) -> str | None:
    adapter = read_json(folder / "adapter_config.json") or {}
    return record.get("parent") or adapter.get("base_model_name_or_path")


def _said(parent: tuple[str | None, str | None, str | None]) -> str:
    name, revision, place = parent
    if name:
        at = f" at revision `{revision}`" if revision else ""
        return f"[{name}]({HUB}/{name}){at}"
    return f"`{place}`, which was not pushed" if place else "random weights"


def _kind(folder: Path, config: dict[str, Any]) -> str:
    if "reward_funcs" in config:
        return "reinforcement learning by GRPO"
    if _scores(folder):
        return "a reward model: one score a response"
    return "pre-training" if "vocab_size" in config else "supervised fine-tuning"


def _scores(folder: Path) -> bool:
    kinds = (read_json(folder / "config.json") or {}).get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def _settings(config: dict[str, Any]) -> tuple[str, ...]:
    return (*SETTINGS, *(LORA if config.get("use_peft") else ()))


def _header(folder, config, parent, stated, measured, hub_model_id) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_name(settings.get("world"))[0] or "held-out",
            dataset_name=f"held-out problems of {Path(settings.get('world', '')).name or 'this project'}",
            metric_type=measure,
            metric_value=figures[measure],
            metric_name=f"{measure}, {name}",
            metric_args=_arguments(measure, figures, settings),
        )
        for name, figures, settings in measured
        for measure in MEASURES
        if figures.get(measure) is not None
    ]
    adapter = (folder / "adapter_config.json").is_file()
    data = ModelCardData(
        **license_of({name for _, counts in stated for name in counts}),
        base_model=parent[0],
        base_model_relation="adapter" if adapter else "finetune" if parent[0] else None,
        datasets=sorted({name for name, _, _ in map(hub_name, _sources(config)) if name}) or None,
        language=["en", "zh"] if _languages(config) == {"en", "zh"} else sorted(_languages(config)) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if _scores(folder) else "text-generation",
        tags=["deepseek-r1", "reasoning", "trl", *(["grpo"] if "reward_funcs" in config else [])],
        model_name=Path(hub_model_id).name,
        eval_results=results or None,
    )
    return data.to_yaml()


def _arguments(measure: str, figures: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    error = figures.get(f"{measure}_stderr")
    sampled = {name: settings[name] for name in ("temperature", "top_p", "max_tokens") if name in settings}
    counts = {"problems": figures.get("n_problems"), "samples_a_problem": figures.get("k")}
    if measure in MANY:
        counts = {"problems": settings.get("n_many"), "samples_a_problem": 16}
    elif measure in GENERAL:
        counts = {"samples_a_problem": figures.get("k")}
    return ({"standard_error": error} if error is not None else {}) | counts | sampled


def snippet(folder: Path, config: dict[str, Any], hub_model_id: str) -> str:
    """Python that loads the model from the Hub and asks it one question, in the form that it was taught."""
    if _scores(folder):
        return (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            f"name = {hub_model_id!r}\n"
            "model, tokenizer = AutoModelForSequenceClassification.from_pretrained(name), "
            "AutoTokenizer.from_pretrained(name)\n"
            f'said = [{{"role": "user", "content": {QUESTION!r}}}, {{"role": "assistant", "content": "14"}}]\n'
            "text = tokenizer.apply_chat_template(said, tokenize=False)\n"
            'print(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits.item())\n'
        )
    if (folder / "adapter_config.json").is_file():
        return (
            "from peft import AutoPeftModelForCausalLM\n\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({hub_model_id!r})  # and the base that it names\n"
        )
    plain = config.get("completion_style") == "r1_zero" or "vocab_size" in config
    asked = prompts.r1_zero(QUESTION) if plain else [{"role": "user", "content": QUESTION}]
    return (
        "from transformers import pipeline\n\n"
        f'generator = pipeline("text-generation", {hub_model_id!r})\n'
        f"asked = {asked!r}\n"
        'print(generator(asked, max_new_tokens=128, return_full_text=False)[0]["generated_text"])\n'
    )


def _adapter_snippet(folder: Path, hub_model_id: str) -> str:
    """Python that loads the adapter beside merged weights; "" where there is none."""
    if not (folder / "adapter").is_dir():
        return ""
    kind = "SequenceClassification" if _scores(folder) else "CausalLM"
    return f"""from peft import PeftConfig, PeftModel
from transformers import AutoModelFor{kind}

name = {hub_model_id!r}
config = PeftConfig.from_pretrained(name, subfolder="adapter")
base = AutoModelFor{kind}.from_pretrained(config.base_model_name_or_path, revision=config.revision)
model = PeftModel.from_pretrained(base, name, subfolder="adapter")
"""


# --- data and licences ------------------------------------------------------------------------------------------------


def _sources(config: dict[str, Any]) -> list[str]:
    """What the settings name as data: the folders of Parquet files, and Hub ids."""
    data = [text for key, value in config.items() if "dataset" in key and key != "dataset_split"
            for _, text in leaves(value) if isinstance(text, str)]  # fmt: skip
    return sorted({str(Path(text).parent) if text.endswith(".parquet") else text for text in data if "/" in text})


def _files(config: dict[str, Any]) -> list[Path]:
    return sorted(
        {
            Path(text)
            for _, text in leaves(config)
            if isinstance(text, str) and text.endswith(".parquet") and Path(text).is_file()
        }
    )


def _column(path: Path, name: str) -> Counter[str]:
    known = name in pq.read_schema(path).names
    return _counts(pq.read_table(path, columns=[name])[name]) if known else Counter()


def _languages(config: dict[str, Any]) -> set[str]:
    return {language for path in _files(config) for language in _column(path, "language")}


def licences(run: Path, ask: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """(what, its licences with what each stands for) of the data and the base of a run, then of the runs before it.
    Does it `ask` the Hub what a card there states?"""
    record, seen = read_json(run / "run.json"), set()
    while record:
        config = record.get("config", {})
        for path in _files(config):
            counts = _column(path, "license")
            if counts and path not in seen:
                sources = ", ".join(sorted(_column(path, "source")))
                yield f"data `{path}`", {name: f"{n:,} rows of {sources}" for name, n in counts.items()}
            seen.add(path)
        for name in _sources(config):
            if not runs.is_here(name):
                yield f"data `{name}`", {hub.stated_license("dataset", name) if ask else "unknown": "as its card says"}
        parent = record.get("parent")
        if parent and not runs.is_here(parent):
            yield f"base `{parent}`", {hub.stated_license("model", parent) if ask else "unknown": "as its card says"}
        record = read_json(Path(parent) / "run.json") if parent and str(parent) not in seen else None
        if parent and runs.is_here(parent) and record is None and str(parent) not in seen:
            yield f"base `{parent}`", {"unknown": "a folder without the record of a run"}
        seen.add(str(parent))


def _licence_text(stated: list[tuple[str, dict[str, str]]]) -> str:
    lines = [
        (what, name, "yes" if rows.commercial(name) else "no, or not known", remark)
        for what, counts in stated
        for name, remark in counts.items()
    ]
    closed = sorted({f"{what} ({name})" for what, name, free, _ in lines if free != "yes"})
    return render("licences.md", lines=lines, closed=closed)


def _data(config: dict[str, Any]) -> list[str]:
    return [f"- `{name}`" if runs.is_here(name) else f"- [{name}]({HUB}/datasets/{name})" for name in _sources(config)]


# --- rewards, curves, figures -----------------------------------------------------------------------------------------


def _rewards(config: dict[str, Any]) -> list[tuple[str, float, str]]:
    names = config.get("reward_funcs") or []
    weights = config.get("reward_weights") or [1.0] * len(names)
    kwargs = config.get("reward_kwargs") or {}
    return [(name, weight, json.dumps(kwargs.get(name, {}))) for name, weight in zip(names, weights, strict=True)]


def _log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _drawn(logged: list[dict[str, Any]]) -> list[str]:
    rewards = sorted({key for row in logged for key in row if key.startswith("rewards/") and key.endswith("/mean")})
    return [key for key in (*CURVES, *rewards) if sum(row.get(key) is not None for row in logged) > 1]


def curves(folder: Path) -> bytes | None:
    """The training log as a PNG, a panel a figure; None where there is no log to draw."""
    logged = _log(folder)
    keys = _drawn(logged)
    if not keys:
        return None
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 2.4 * -(-len(keys) // 3)), layout="constrained")
    for number, key in enumerate(keys, 1):
        axis = figure.add_subplot(-(-len(keys) // 3), 3, number)
        points = [(row["step"], row[key]) for row in logged if row.get(key) is not None]
        axis.plot(*zip(*points, strict=True))
        axis.set_title(key, fontsize=9)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


def _hardware(record: dict[str, Any]) -> list[tuple[str, Any]]:
    lines = [(name, record.get(key)) for name, key in (
        ("seconds of the try that finished", "seconds"), ("tries", "tries"), ("peak memory of a process, GB",
        "peak_rss_gb"), ("steps", "steps"), ("completion tokens trained", "completion_tokens_trained"))]  # fmt: skip
    lines += list((record.get("hardware") or {}).items()) + list((record.get("versions") or {}).items())
    return [(name, value) for name, value in lines if value is not None]


def _evaluations(folder: Path, run: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, figures, settings) of the finished evaluations of this model beside its run."""
    for path in sorted(run.parent.glob("evaluate_*/results.json")):
        settings = (read_json(path.parent / "run.json") or {}).get("config", {})
        if settings.get("path") and Path(settings["path"]).resolve() == folder.resolve():
            yield settings.get("checkpoint", path.parent.name), read_json(path), settings


def _measures(name: str, figures: dict[str, Any], settings: dict[str, Any]) -> str:
    lines = []
    for measure in MEASURES:
        if figures.get(measure) is not None:
            error = figures.get(f"{measure}_stderr")
            lines.append((measure, f"{figures[measure]:.4f}", f"± {error:.4f}" if error is not None else ""))
    how = ", ".join(
        f"{key} {settings[key]}" for key in ("temperature", "top_p", "max_tokens", "seed") if key in settings
    )
    about = f"As `{name}`: {figures.get('n_problems')} problems, {figures.get('k')} samples each; {how}."
    if any(figures.get(measure) is not None for measure in MANY):
        about += f" pass@16 and cons@16: 16 samples of {settings.get('n_many', 'some')} of them."
    if any(figures.get(measure) is not None for measure in GENERAL):
        about += " Helpfulness, safety and refusals: of general prompts beside them."
    return f"{about} Standard errors are over problems.\n\n" + table(("measure", "value", "standard error"), lines)


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
