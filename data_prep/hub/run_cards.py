"""Hub cards for the results of a run: a model, or records that are not rows of the contract.

A model's card has its settings, its curves and all finished `evaluate_*` runs of the same scale that measured it (also
as `model-index`). It lists the licences of its training rows and of those of the models that it was trained from.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep import hub, prompts, rows, runs
from data_prep.hub.cards import HUB, configs, count, leaves, license_of, read_json, render, table, title

import pyarrow.parquet as pq
import yaml
from huggingface_hub import EvalResult, ModelCardData

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


def model_card(folder: Path, run: Path, hub_model_id: str | None = None) -> str:
    """README.md for the model in `folder`, which `run` (the folder itself or its parent) made. Without an id, the card
    is for the folder, and no requests are sent to the Hub."""
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
        own=sorted(own),
        licences=_licence_text(stated),
    )


def hub_name(place: str | None) -> tuple[str | None, str | None, str | None]:
    """Return (Hub id, revision, local path) for a config's value: a folder, which may have been pushed, or a Hub id."""
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
    """Python code that loads the model from the Hub and asks it one question in the format of its training."""
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
    """Python code that loads the adapter stored beside merged weights, or "" if there is none."""
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


# Data and licences


def _sources(config: dict[str, Any]) -> list[str]:
    """The data in the settings: folders of Parquet files, and Hub ids."""
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
    return count(pq.read_table(path, columns=[name])[name]) if known else Counter()


def _languages(config: dict[str, Any]) -> set[str]:
    return {language for path in _files(config) for language in _column(path, "language")}


def licences(run: Path, ask: bool = True) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (name, its licences and what each applies to) for the data and base of a run, then for the runs before it.
    `ask`: whether to read the licences of cards on the Hub."""
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


# Rewards, curves, figures


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
    """The training log as a PNG, with one panel per metric, or None if there is no log."""
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
    """Yield (name, figures, settings) for the finished evaluations of this model beside its run."""
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
