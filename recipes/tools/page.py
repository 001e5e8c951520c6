"""The report's page: one HTML file that needs no network, built from the files in outputs/<scale>.

This module computes what the template page.html shows. Every part shows the existing data, so a run in progress or one
that was cut off has a page too. The template escapes the text of models, or the page's script inserts it as text from
JSON. The page's Content-Security-Policy allows no other script and loads nothing.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_prep import runs
from data_prep.runs import commands
from recipes.tools import folders, paper, pictures
from recipes.tools.evaluate import GROUP, WALKTHROUGH
from recipes.tools.folders import RunFolder, shorten
from recipes.tools.view import clock
from rewards import FormatReward, accuracy_reward, language_consistency_reward

import jinja2
import pyarrow.parquet as pq

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000
LONG_TEXT = 4_000  # maximum characters of an answer in the page itself
COLOURS = {"rl": "blue", "sft": "green", "reward_models": "purple", "data": "orange"}  # of kinds; the others are muted
CHECKPOINT_COLUMNS = {  # column of the table of checkpoints: its key in results.json
    "pass@1": "pass@1", "cons@k": "cons@k", "T = 1": "pass@1_at_temperature_1", "pass@16": "pass@16",
    "cons@16": "cons@16", "format": "format_rate", "language": "language_consistency",
    "tokens": "mean_completion_tokens", "helpful, 0-3": "helpful_score", "wins": "helpful_win_rate",
    "safe": "safe_rate", "refused": "refusals_of_harmless",
}  # fmt: skip
Cell = tuple[str | float | None, float | None]  # a text or a figure, and the standard error of the figure
BENCHMARK_COLUMNS: dict[str, Callable[[dict[str, Any]], Cell]] = {  # column: its cell from a row of results.json
    "problems": lambda row: (row.get("protocol") or f"{row['n_problems']:,} × {row['k']}", None),
    "pass@1": lambda row: (row["pass@1"], row["pass@1_stderr"]),
    "over the start": lambda row: row["over_start"],
    "over Dev1": lambda row: row["over_dev1"],
    "format": lambda row: (row["format_rate"], None),
    "tokens": lambda row: (None if row["k"] is None else f"{row['mean_completion_tokens']:.0f}", None),
    "cut off": lambda row: (None if row["k"] is None else f"{row['truncated']:.1%}", None),
    "trained here on its train split": lambda row: (row["trained_here"], None),
}


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def colour(run: RunFolder) -> str:
    return COLOURS.get(run.kind, "muted")


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"figure": number, "clock": clock, "colour": colour, "stage_title": paper.title}
TEMPLATES.filters["cut"] = lambda text: shorten(text.strip(), LONG_TEXT)


def write(scale_dir: Path, results: dict[str, Any], configs: Path | None = None) -> Path:
    """Builds outputs/<scale>/report/index.html and PNGs of its pictures from the files on disk and `results`, the
    content of results.json. Returns its path. `configs`: see `folders.read_scale`."""
    report = scale_dir / "report"
    for old in report.glob("*.png"):
        old.unlink()
    stages, evaluations, _ = folders.read_scale(scale_dir, configs)
    names = {name: paper.checkpoint(run.parent, name) for name, run in evaluations.items()}
    figures = results["checkpoints"] | results["ablations"]
    measured = {name: figures[name] for name in evaluations}
    levels = {run.parent: measured[name]["pass@1"] for name, run in evaluations.items()}
    rl = [stage for stage in stages.values() if stage.is_rl]
    drawn = commands.progress(rl, "drawing", unit="stage")
    sections = {
        "map": _map(report, stages, levels),
        "checkpoints": _checkpoints(report, names, measured),
        "effects": [effect for effect in results["effects"] if effect["figure"] is not None] and results["effects"],
        "question": list(_answers(names, evaluations)),
        "rl": [_rl_stage(report, stage) for stage in drawn],
        "reward-models": _reward_models(report, stages.get("reward_models"), results["reward_models_over_training"]),
        "distillation": _distillation(report, scale_dir, names, measured),
        "funnels": [
            (": ".join([paper.title(name), *(label.replace("_", " ") for label in labels)]), funnel)
            for name, stage in stages.items()
            for labels, funnel in find_funnels(stage.record or {})
        ],
        "time": [(paper.title(name), stage) for name, stage in stages.items() if stage.record]
        + [(f"measuring {names[name]}", run) for name, run in evaluations.items() if run.record],
    }
    if not evaluations:  # this scale measures benchmarks only
        for name in ("checkpoints", "effects", "question", "distillation"):
            del sections[name]
    if "reward_models" not in stages:
        del sections["reward-models"]
    if results["benchmarks"]:
        sections["benchmarks"] = list(benchmark_tables(results["benchmarks"]))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    content = {
        "policy": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "scale": results["scale"],
        "tiles": _tiles(stages, results),
        "unfinished": [paper.title(stage.name) for stage in stages.values() if stage.begun and not stage.record],
        "shown": sections,
        "question": WALKTHROUGH,
        "group_size": GROUP,
        "published": {"columns": paper.COLUMNS, "rows": paper.PUBLISHED.values()},
        "wall_seconds": results["wall_seconds"],
    }
    template = TEMPLATES.get_template("page.html")
    room = MOST_BYTES - len(template.render(content, completions="").encode())
    completions = folders.embedded(folders.choose(rl, evaluations.values()), room)
    path = report / "index.html"
    with runs.whole_file(path) as file:
        file.write(template.render(content, completions=completions).encode())
    return path


def _tiles(stages: dict[str, RunFolder], results: dict[str, Any]) -> list[tuple[str, str]]:
    """(figure, what it is) for the top of the page."""
    passed = [results["checkpoints"].get(name, {}).get("pass@1") for name in ("base", "r1_zero", "r1")]
    shown = [effect["reproduced"] for effect in results["effects"] if effect["reproduced"] is not None]
    paper_tiles = [
        (" → ".join("–" if value is None else f"{value:.2f}" for value in passed), "pass@1 of base, R1-Zero, R1"),
        (f"{shown.count(True)} of {len(shown)}", "of the paper's effects shown, of those measured"),
    ]
    return [
        *(paper_tiles if results["checkpoints"] else []),
        (clock(results["wall_seconds"]) or "–", "minutes:seconds in all"),
        (f"{results['peak_rss_gb']:.1f} GB" if results["peak_rss_gb"] else "–", "memory at most"),
        (str(sum(stage.record is not None for stage in stages.values())), "stages and data jobs done"),
    ]


def _map(report: Path, stages: dict[str, RunFolder], levels: dict[str, float | None]) -> dict[str, Any]:
    arrows = folders.arrows(stages)
    boxes = {}
    for name, stage in stages.items():
        made = f"pass@1 {levels[name]:.2f}" if levels.get(name) is not None else _made(stage)
        lines = tuple(filter(None, (made, stage.state)))
        boxes[name] = pictures.Box(paper.title(name), lines, colour(stage), stage.record is not None)
    listed = [
        vars(box) | {"reads": [boxes[start].title for start, end in arrows if end == name]}
        for name, box in boxes.items()
    ]
    return {"picture": pictures.stage_map(report / "stages", boxes, arrows), "stages": listed} if boxes else {}


def _made(stage: RunFolder) -> str:
    """The number of rows that a data job wrote."""
    record = stage.record or {}
    if "parent" not in record and isinstance(record.get("rows"), int):
        return f"{record['rows']:,} rows"
    kept = [funnel["kept"] for _, funnel in find_funnels(record)]
    return f"{sum(kept):,} rows" if kept and "parent" not in record else ""


def _checkpoints(report: Path, names: dict[str, str], measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def level(values: dict[str, Any], key: str) -> tuple[float | None, float | None]:
        return values[key], values.get(f"{key}_stderr")

    found = {name: values for name, values in measured.items() if values["pass@1"] is not None}
    if not found:
        return {}
    first = next(iter(found.values()))
    ours = [
        (names[name], [level(values, key) if values[key] is not None else None for key in ("pass@1", "cons@k")])
        for name, values in measured.items()
    ]
    theirs = [(row[0], [(row[1], None), row[2] and (row[2], None)]) for row in paper.PUBLISHED.values()]
    panels = [
        pictures.bars("This run: held-out problems", ours, ("pass@1", f"cons@{first['k'] or 'k'}")),
        pictures.bars("The paper: AIME 2024", theirs, ("pass@1", "cons@k"), top=100),
    ]
    return {
        "pictures": pictures.draw(report / "checkpoints", panels, size=(5.2, 0.6 + 0.36 * len(names))),
        "n_problems": first["n_problems"],
        "k": first["k"],
        "columns": list(CHECKPOINT_COLUMNS),
        "rows": [
            (names[name], [level(one, key) for key in CHECKPOINT_COLUMNS.values()]) for name, one in found.items()
        ],
    }


def benchmark_tables(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[str], list[tuple[str, list[Cell]]]]]:
    """A table for each set, here and on the console: its title, its columns, and (checkpoint, cells) for each row."""
    for key in dict.fromkeys(row["set"] for row in rows):
        chosen = [row for row in rows if row["set"] == key]
        cells = {name: [cell(row) for row in chosen] for name, cell in BENCHMARK_COLUMNS.items()}
        cells = {name: column for name, column in cells.items() if any(value is not None for value, _ in column)}
        lines = [(row["checkpoint"], list(line)) for row, *line in zip(chosen, *cells.values(), strict=True)]
        yield f"{chosen[0]['title']}, {chosen[0]['sampled']}", list(cells), lines


def _answers(names: dict[str, str], evaluations: dict[str, RunFolder]) -> Iterator[dict[str, Any]]:
    """Each checkpoint's answer to the walkthrough's question, and the rewards and advantages of a group."""
    for name, evaluation in evaluations.items():
        if evaluation.record is None:
            continue
        rows = pq.read_table(
            evaluation.folder / "generations.parquet",
            columns=["set", "completion", "correct"],
            filters=[("set", "in", ["walkthrough", "walkthrough_group"])],
        ).to_pylist()
        group = [row["completion"] for row in rows if row["set"] == "walkthrough_group"]
        yield next(row for row in rows if row["set"] == "walkthrough") | {
            "name": names[name],
            "open": name in ("base", "r1_zero"),
            "group": worked_group(group, evaluation.record["config"]["style"]) if group else None,
        }


def worked_group(completions: list[str], style: str) -> dict[str, Any]:
    """Rewards (summed with equal weights, as in the paper), mean, spread and advantages of one group."""
    columns = {"answer": ["14"], "question": [WALKTHROUGH], "language": ["en"]}
    columns = {name: value * len(completions) for name, value in columns.items()}
    scorers = {"accuracy": accuracy_reward, "format": FormatReward(style)}
    if style == "think":
        scorers["language"] = language_consistency_reward
    scores = {name: scorer(completions=completions, **columns) for name, scorer in scorers.items()}
    rewards = [sum(values) for values in zip(*scores.values(), strict=True)]
    mean, spread = fmean(rewards), stdev(rewards) if len(rewards) > 1 else 0.0
    samples = [
        {
            "completion": completion,
            "parts": " + ".join(f"{name} {scores[name][at]:g}" for name in scores),
            "reward": reward,
            "advantage": (reward - mean) / (spread + 1e-4),
        }
        for at, (completion, reward) in enumerate(zip(completions, rewards, strict=True))
    ]
    return {"samples": samples, "mean": mean, "spread": spread}


def _rl_stage(report: Path, stage: RunFolder) -> dict[str, Any]:
    shown = {"name": stage.name, "title": paper.title(stage.name), "done": stage.record is not None, "pictures": []}
    if not stage.log:  # completions of a run that was cut off may exist
        return shown
    means = {name: stage.line(f"rewards/{name}/mean") for name in stage.rewards}
    parts = {name.removesuffix("_reward").replace("_", " "): points for name, points in means.items() if points}
    language = parts.get("language consistency") or language_share(stage)
    lines = (
        ("Reward by part", {"reward": stage.line("reward")} | parts),
        ("Accuracy", {"accuracy": parts.get("accuracy", [])}, "", True),
        ("Share of the question's language", {"share": language}, "", True),
        ("Length", {"length": stage.line("completions/mean_length")}, "tokens"),
        ("KL from the reference", {"kl": stage.line("kl")}),
        ("Entropy", {"entropy": stage.line("entropy")}, "nats"),
        ("Groups with all rewards alike", {"share": stage.line("frac_reward_zero_std")}, "", True),
    )
    panels = [pictures.curves(title, series, "reward", *more) for title, series, *more in lines if any(series.values())]
    first, last = ({"reward": None} | row for row in (stage.log[0], stage.log[-1]))
    return shown | {"first": first, "last": last, "pictures": pictures.draw(report / stage.name, panels)}


def language_share(stage: RunFolder) -> list[tuple[float, float]]:
    """(step, mean share of the question's language in the reasoning), computed from the completions of a stage without
    the language reward."""
    found = []
    for path in folders.evenly(stage.completions, 40):
        rows = folders.read_completions(path)
        if rows:
            said, asked = [row["completion"] for row in rows], [folders.question(row["prompt"]) for row in rows]
            found.append((rows[0]["step"], fmean(language_consistency_reward(completions=said, question=asked))))
    return found


def _reward_models(report: Path, trained: RunFolder | None, found: dict[str, Any] | None) -> dict[str, Any]:
    names = ("helpfulness", "harmlessness")
    record = (trained and trained.record) or {}
    accuracies = {name: record[f"{name}_accuracy"] for name in names if f"{name}_accuracy" in record}
    panels = [
        pictures.scores(name.capitalize(), [{"step": row["step"]} | row[name] for row in found["steps"] if name in row])
        for name in names
        if found and name in found
    ]
    drawn = pictures.draw(report / "reward_models", panels) if panels else []
    return {"accuracies": accuracies, "pictures": drawn} if accuracies or drawn else {}


def _distillation(
    report: Path, scale_dir: Path, names: dict[str, str], measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    compared = ("student_base", "student_rl", "student_distilled")
    found = {name: measured[name] for name in compared if measured.get(name, {}).get("pass@1") is not None}
    if not found:
        return {}
    ours = [(names[name], [(values["pass@1"], values["pass@1_stderr"])]) for name, values in found.items()]
    theirs = [(row[0], [(row[1], None)]) for row in (paper.PUBLISHED["student_rl"], paper.PUBLISHED["distill"])]
    panels = [
        pictures.bars("This run: pass@1", ours, ("pass@1",)),
        pictures.bars("The paper: AIME 2024, pass@1", theirs, ("pass@1",), top=100),
    ]
    bench = scale_dir / "bench" / "distillation.json"
    if bench.exists():
        panels.append(_bench(json.loads(bench.read_text(encoding="utf-8"))))
    spent = {name: values.get("completion_tokens_trained") for name, values in found.items()}
    return {
        "tokens": [f"{names[name]} {tokens:,}" for name, tokens in spent.items() if tokens],
        "pictures": pictures.draw(report / "distillation", panels, size=(5.2, 2.4)),
    }


def _bench(found: dict[str, Any]) -> pictures.Panel:
    """The curves of benchmarks/distillation.py."""
    series = [
        (f"{method}, {rate}", colour, [(row["tokens"], row["pass@1"], row["pass@1_stderr"] or 0.0) for row in rows])
        for method, colour in (("distillation", "green"), ("rl", "blue"))
        for rate, rows in found[method].items()
    ]
    return pictures.budgets("By tokens and learning rate", series, found["student_base"])


def find_funnels(record: Any, labels: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path in the record, funnel) for each count of seen, dropped and kept rows."""
    if isinstance(record, dict):
        if {"seen", "dropped", "kept"} <= record.keys():
            yield labels, record
        else:
            for name, part in record.items():
                yield from find_funnels(part, labels if name in ("ways", "funnel") else (*labels, name))
