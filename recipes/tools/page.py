"""The report's page: one HTML file that needs no network, built from the files in outputs/<scale>.

Every part shows the existing data, so a run in progress or one that was cut off has a page too. Text of models is
escaped, or stored as JSON that the page's script inserts as text. The page's Content-Security-Policy allows no other
script and loads nothing.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_prep import commands, prompts, runs
from recipes.tools import folders, pictures
from recipes.tools.evaluate import GROUP, WALKTHROUGH
from recipes.tools.folders import RunFolder, read_run, shorten
from recipes.tools.view import clock
from rewards import FormatReward, accuracy_reward, language_consistency_reward

import pyarrow.parquet as pq

TEMPLATE = Path(__file__).with_name("page.html")
MOST_BYTES = 5_000_000
LONG_TEXT = 4_000  # maximum characters of an answer in the page itself

# stage: (place in time, lane, title, colour, evaluation of its result); lanes: data, checkpoints, bases
PLACES = {
    "r1_zero": (0, 1, "R1-Zero", "blue", "r1_zero"),
    "cold_start": (1, 0, "cold-start\ndata", "orange", None),
    "cold_start_sft": (2, 1, "Dev1: SFT", "green", "cold_start_sft"),
    "reasoning_rl": (3, 1, "Dev2: RL", "blue", "reasoning_rl"),
    "reasoning_rl_no_language": (3, 0, "no language\nreward", "blue", "reasoning_rl_no_language"),
    "rejection_sampling": (4, 0, "rejection\nsampling", "orange", None),
    "general": (4, 1, "general\ndata", "orange", None),
    "mixture": (5, 0, "mixture", "orange", None),
    "sft_stage_2": (6, 1, "Dev3: SFT", "green", "sft_stage_2"),
    "preferences": (7, 2, "preferences", "orange", None),
    "reward_models": (8, 2, "reward\nmodels", "purple", None),
    "all_scenarios_rl": (9, 1, "R1: RL", "blue", "r1"),
    "distillation": (10, 0, "distillation\nset", "orange", None),
    "student_rl": (10, 1, "student\nby RL", "blue", "student_rl"),
    "distill": (11, 1, "distilled\nstudent", "green", "student_distilled"),
    "base": (0, 2, "base", "muted", "base"),
    "student_base": (10, 2, "the student's\nbase", "muted", "student_base"),
}
RAILS = {"base": 6, "mixture": 9, "student_base": 11}  # the last place in time that starts from it
ARROWS = (
    ("base", "r1_zero"), ("base", "cold_start"), ("r1_zero", "cold_start"), ("base", "cold_start_sft"),
    ("cold_start", "cold_start_sft"), ("cold_start_sft", "reasoning_rl"),
    ("cold_start_sft", "reasoning_rl_no_language"), ("reasoning_rl", "rejection_sampling"),
    ("reasoning_rl", "general"), ("rejection_sampling", "mixture"), ("general", "mixture"),
    ("mixture", "sft_stage_2"), ("base", "sft_stage_2"), ("sft_stage_2", "preferences"),
    ("preferences", "reward_models"), ("reward_models", "all_scenarios_rl"), ("sft_stage_2", "all_scenarios_rl"),
    ("mixture", "distillation"), ("distillation", "distill"), ("student_base", "distill"),
    ("student_base", "student_rl"),
)  # fmt: skip
TAUGHT = ("all_scenarios_rl", "distillation")  # this arrow is drawn only if R1 answers the mixture's prompts again
NAMES = {  # names of checkpoints
    "base": "base", "r1_zero": "R1-Zero", "cold_start_sft": "Dev1 (cold-start SFT)", "reasoning_rl": "Dev2 (RL)",
    "reasoning_rl_no_language": "Dev2 without language reward", "sft_stage_2": "Dev3 (SFT)", "r1": "R1",
    "student_base": "student's base", "student_rl": "student by RL", "student_distilled": "distilled student",
}  # fmt: skip
FIGURES = (  # column of the table, key in results.json
    ("pass@1", "pass@1"), ("cons@k", "cons@k"), ("T = 1", "pass@1_at_temperature_1"), ("pass@16", "pass@16"),
    ("cons@16", "cons@16"), ("format", "format_rate"), ("language", "language_consistency"),
    ("tokens", "mean_completion_tokens"), ("helpful, 0-3", "helpful_score"), ("wins", "helpful_win_rate"),
    ("safe", "safe_rate"), ("refused", "refusals_of_harmless"),
)  # fmt: skip
# The paper's results: v2 tables 3, 8, 15 and 16, section E.4 and figure 1. They are AIME 2024 pass@1 and majority vote
# (of 16 for R1-Zero, else of 64), MATH-500, GPQA Diamond, LiveCodeBench, AlpacaEval 2.0, ArenaHard.
PAPER_COLUMNS = ("AIME 2024", "cons@k", "MATH-500", "GPQA-D", "LiveCodeBench", "AlpacaEval", "ArenaHard")
PAPER = {
    "base": ("DeepSeek-V3-Base", 15.6, None, None, None, None, None, None),
    "r1_zero": ("R1-Zero", 77.9, 86.7, 95.9, 75.8, 50.0, 24.7, 53.6),
    "cold_start_sft": ("Dev1", 59.0, None, 94.2, 66.1, 57.5, 50.1, 77.0),
    "reasoning_rl": ("Dev2", 74.0, None, 95.9, 70.7, 63.5, 55.8, 73.2),
    "sft_stage_2": ("Dev3", 78.1, None, 95.4, 71.2, 64.6, 62.1, 75.6),
    "r1": ("R1", 79.8, 86.7, 97.3, 71.5, 65.9, 87.6, 92.3),
    "student_rl": ("Qwen2.5-32B by RL", 47.0, 60.0, 91.6, 55.0, 40.2, None, None),
    "student_distilled": ("Qwen2.5-32B distilled", 72.6, 83.3, 94.3, 62.1, 57.2, None, None),
}


def write(scale_dir: Path, results: dict[str, Any]) -> Path:
    """Builds outputs/<scale>/report/index.html and PNGs of its pictures from the files on disk and `results`, the
    content of results.json. Returns its path."""
    report = scale_dir / "report"
    for old in report.glob("*.png"):
        old.unlink()
    stages = {name: read_run(scale_dir / name) for name in folders.names(scale_dir, PLACES)}
    rl = [stage for stage in stages.values() if stage.is_rl]
    evaluations = {name: read_run(scale_dir / f"evaluate_{name}") for name in NAMES}
    measured = {name: results["checkpoints"].get(name) or results["ablations"].get(name) or {} for name in NAMES}
    scorers = stages["reward_models"].record or {}
    drawn = commands.progress(rl, "drawing", unit="stage")
    lines = '<p class="note">Pale: each step. Bold: the mean of the steps around it.</p>' if rl else ""
    sections = [
        ("map", "Stages", _map(report, stages, measured)),
        ("checkpoints", "Checkpoints", _checkpoints(report, measured)),
        *([("benchmarks", "Benchmarks", measured_on)] if (measured_on := _benchmarks(results["benchmarks"])) else ()),
        ("effects", "The paper's effects", _effects(results)),
        ("question", WALKTHROUGH, _question(evaluations)),
        ("rl", "Reinforcement learning", lines + "".join(_rl_stage(report, stage) for stage in drawn)),
        ("reward-models", "Reward models", _reward_models(report, scorers, results["reward_models_over_training"])),
        ("distillation", "Distillation and RL", _distillation(report, scale_dir, measured)),
        ("funnels", "Data", charts(list(_funnels(stages.values())), "two")),
        ("time", "Time", _time([*stages.values(), *evaluations.values()], results)),
    ]
    body = "".join(
        f'<section id="{name}"><h2>{escape(title)}</h2>{content or "<p>Nothing of it is there yet.</p>"}</section>'
        for name, title, content in sections
    )
    links = [*((name, title) for name, title, _ in sections), ("completions", "Completions")]
    script = re.search(r"<script>(.*?)</script>", TEMPLATE.read_text(encoding="utf-8"), re.S)[1]
    content = {
        "policy": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": f"DeepSeek-R1 at the scale {escape(results['scale'])}",
        "links": "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in links),
        "lead": _lead(stages, results),
        "sections": body,
    }
    room = MOST_BYTES - len(TEMPLATE.read_bytes()) - sum(len(part.encode()) for part in content.values())
    content["completions"] = folders.embedded(folders.choose(rl, evaluations.values()), room)
    page = prompts.fill(TEMPLATE.read_text(encoding="utf-8"), **content)
    path = report / "index.html"
    with runs.whole_file(path) as file:
        file.write(page.encode())
    return path


# Sections


def _lead(stages: dict[str, RunFolder], results: dict[str, Any]) -> str:
    passed = [results["checkpoints"][name]["pass@1"] for name in ("base", "r1_zero", "r1")]
    done = sum(stage.record is not None for stage in stages.values())
    open_ = [_title(stage.name) for stage in stages.values() if stage.begun and not stage.record]
    shown = [effect["reproduced"] for effect in results["effects"] if effect["reproduced"] is not None]
    tiles = [
        (" → ".join("–" if value is None else f"{value:.2f}" for value in passed), "pass@1 of base, R1-Zero, R1"),
        (f"{shown.count(True)} of {len(shown)}", "of the paper's effects shown, of those measured"),
        (clock(results["wall_seconds"]) or "–", "minutes:seconds in all"),
        (f"{results['peak_rss_gb']:.1f} GB" if results["peak_rss_gb"] else "–", "memory at most"),
        (str(done), "stages and data jobs done"),
    ]
    unfinished = f'<p class="note">Not finished: {escape(", ".join(open_))}.</p>' if open_ else ""
    shown_tiles = "".join(f"<div><b>{value}</b>{escape(what)}</div>" for value, what in tiles)
    return f'<div class="tiles">{shown_tiles}</div>{unfinished}'


def _map(report: Path, stages: dict[str, RunFolder], measured: dict[str, dict[str, Any]]) -> str:
    boxes = {}
    for name, (time, lane, title, colour, checkpoint) in PLACES.items():
        stage = stages[name]
        lines = [_made(stage), stage.state]
        if checkpoint and measured[checkpoint].get("pass@1") is not None:
            lines[0] = f"pass@1 {measured[checkpoint]['pass@1']:.2f}"
        boxes[name] = pictures.Box(
            time, lane, title, tuple(filter(None, lines)), colour, stage.record is not None, RAILS.get(name)
        )
    inputs = (stages["distillation"].record or {}).get("inputs", ())
    taught = [TAUGHT] if any(Path(one).name == TAUGHT[0] for one in inputs) else []
    wide, narrow = pictures.stage_map(report / "stages", boxes, [*ARROWS, *taught])
    return f"""<p>Each box is a run: <b class="blue">reinforcement learning</b>, <b class="green">supervised
        fine-tuning</b>, <b class="purple">reward models</b>, <b class="orange">a data job</b>, with what it made and
        how long it took. Dashed: not finished.</p><div class="wide">{wide}</div><div class="narrow">{narrow}</div>"""


def _made(stage: RunFolder) -> str:
    """The number of rows that a data job wrote."""
    record = stage.record or {}
    if "parent" not in record and isinstance(record.get("rows"), int):
        return f"{record['rows']:,} rows"
    kept = [funnel["kept"] for _, funnel in find_funnels(record)]
    return f"{sum(kept):,} rows" if kept and "parent" not in record else ""


def _checkpoints(report: Path, measured: dict[str, dict[str, Any]]) -> str:
    found = {name: values for name, values in measured.items() if values.get("pass@1") is not None}
    if not found:
        return ""

    def level(values: dict[str, Any], key: str) -> tuple[float, float | None] | None:
        return None if values.get(key) is None else (values[key], values.get(f"{key}_stderr"))

    ours = [(NAMES[name], [level(values, "pass@1"), level(values, "cons@k")]) for name, values in measured.items()]
    first = next(iter(found.values()))
    paper = [(row[0], [(row[1], None), row[2] and (row[2], None)]) for row in PAPER.values()]
    drawn = pictures.draw(
        report / "checkpoints",
        [
            pictures.bars("This run: held-out problems", ours, ("pass@1", f"cons@{first['k'] or 'k'}")),
            pictures.bars("The paper: AIME 2024", paper, ("pass@1", "cons@k"), top=100),
        ],
        size=(5.2, 0.6 + 0.36 * len(NAMES)),
    )
    rows = [
        [NAMES[name], *(number(values.get(key), values.get(f"{key}_stderr")) for _, key in FIGURES)]
        for name, values in found.items()
    ]
    ours_table = table(("checkpoint", *(title for title, _ in FIGURES)), rows)
    paper_rows = [[row[0], *("" if value is None else f"{value:.1f}" for value in row[1:])] for row in PAPER.values()]
    return f"""{charts(drawn, "two")}
        <p>Ours: {first["n_problems"] or "?"} held-out problems of this scale, {first["k"] or "?"} samples each at
        temperature 0.6 and top-p 0.95; bars are one standard error, clustered by problem. Theirs: the full models on
        AIME 2024. Sizes and problems differ, so compare what a stage adds, not the levels.</p>
        {ours_table}
        <p class="note">cons@k: the majority of those samples. T = 1: pass@1 at temperature 1. Wins: how often its
        answer to a helpful prompt scores above Dev3's, ties half. Safe: over harmful requests. Refused: of the harmless
        look-alikes.</p>
        <h3>The paper's table</h3>{table(("model", *PAPER_COLUMNS), paper_rows)}
        <p class="note">arXiv 2501.12948v2, tables 3, 8, 15 and 16, section E.4 and figure 1; AlpacaEval 2.0 with length
        control.</p>"""


def _benchmarks(rows: list[dict[str, Any]]) -> str:
    parts = []
    for key in dict.fromkeys(row["set"] for row in rows):
        chosen = [row for row in rows if row["set"] == key]
        lines = [
            [escape(_title(row["checkpoint"])), f"{row['n_problems']:,} × {row['k']}"]
            + [number(row["pass@1"], row["pass@1_stderr"]), number(*row["over_start"]), number(*row["over_dev1"])]
            + [number(row["format_rate"]), f"{row['mean_completion_tokens']:.0f}", f"{row['truncated']:.1%}"]
            for row in chosen
        ]
        heads = ("checkpoint", "problems", "pass@1", "over the start", "over Dev1", "format", "tokens", "cut off")
        parts.append(f"<h3>{escape(chosen[0]['title'])}, {escape(chosen[0]['sampled'])}</h3>{table(heads, lines)}")
    note = '<p class="note">Gains are on the problems that both were asked; errors are one standard error.</p>'
    return "".join(parts) + note if parts else ""


def _effects(results: dict[str, Any]) -> str:
    measured = [effect for effect in results["effects"] if effect["figure"] is not None]
    if not measured:
        return ""
    said = {True: '<b class="green">shown</b>', False: '<b class="red">not shown</b>'}
    rows = [
        [escape(effect["name"]), escape(effect["aim"]), number(effect["figure"], effect["stderr"])]
        + [said[effect["reproduced"]]]
        for effect in measured
    ]
    left = len(results["effects"]) - len(measured)
    note = f'<p class="note">Not measured yet: {left} more.</p>' if left else ""
    return table(("effect", "aim", "this run", ""), rows, "wrap") + note


def _question(evaluations: dict[str, RunFolder]) -> str:
    """Each checkpoint's answer to the walkthrough's question, and the rewards and advantages of a group."""
    parts = []
    for name, evaluation in evaluations.items():
        if evaluation.record is None:
            continue
        rows = pq.read_table(
            evaluation.folder / "generations.parquet",
            columns=["set", "completion", "correct"],
            filters=[("set", "in", ["walkthrough", "walkthrough_group"])],
        ).to_pylist()
        greedy = next(row for row in rows if row["set"] == "walkthrough")
        group = [row["completion"] for row in rows if row["set"] == "walkthrough_group"]
        mark = '<b class="green">right</b>' if greedy["correct"] else '<b class="red">wrong</b>'
        style = evaluation.record["config"]["style"]
        worked = worked_group(group, style) if group else "<p>No group was sampled.</p>"
        parts.append(
            f"""<details{" open" if name in ("base", "r1_zero") else ""}><summary><b>{escape(NAMES[name])}</b> {mark}
            <code>{text(greedy["completion"])}</code></summary>{worked}</details>"""
        )
    if not parts:
        return ""
    return f"""<p>No stage trains on this question. The line is the most likely answer; below it {GROUP} samples at
        temperature 1, scored by the rule rewards and turned into advantages as GRPO does within a group: what is above
        the group's mean becomes more likely, what is below less.</p>{"".join(parts)}"""


def worked_group(completions: list[str], style: str) -> str:
    """Rewards (summed with equal weights, as in the paper), mean, spread and advantages of one group, as HTML."""
    columns = {"answer": ["14"], "question": [WALKTHROUGH], "language": ["en"]}
    columns = {name: value * len(completions) for name, value in columns.items()}
    scorers = {"accuracy": accuracy_reward, "format": FormatReward(style)}
    if style == "think":
        scorers["language"] = language_consistency_reward
    scores = {name: scorer(completions=completions, **columns) for name, scorer in scorers.items()}
    rewards = [sum(values) for values in zip(*scores.values(), strict=True)]
    mean, spread = fmean(rewards), stdev(rewards) if len(rewards) > 1 else 0.0
    samples = []
    for at, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
        advantage = (reward - mean) / (spread + 1e-4)
        added = " + ".join(f"{name} {scores[name][at]:g}" for name in scores)
        colour = "green" if advantage > 0 else "red" if advantage < 0 else "muted"
        samples.append(
            f"""<li><code>{text(completion)}</code><div>{added} = <b>{reward:.3g}</b>; advantage ({reward:.3g} −
            {mean:.3g}) / ({spread:.3g} + 0.0001) = <b class="{colour}">{advantage:+.3f}</b></div></li>"""
        )
    total = " + ".join(f"{reward:.3g}" for reward in rewards)
    flat = " All are alike, so this group teaches nothing." if spread == 0 else ""
    return f"""<ol class="group">{"".join(samples)}</ol><p>mean ({total}) / {len(rewards)} = <b>{mean:.3g}</b>; spread
        (standard deviation) <b>{spread:.3g}</b>.{flat}</p>"""


def _rl_stage(report: Path, stage: RunFolder) -> str:
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
    name = escape(_title(stage.name))
    if not stage.log:  # completions of a run that was cut off may exist
        return f"<h3>{name}</h3><p>Nothing is logged yet.</p>"
    first, last = stage.log[0], stage.log[-1]
    drawn = charts(pictures.draw(report / stage.name, panels))
    of = "" if stage.record else f" of {last['max_steps']}"  # a token budget may end a run before its last step
    return f"""<h3>{name}</h3><p>{last["step"]}{of} steps; reward {number(first.get("reward"))} at
        step {first["step"]}, {number(last.get("reward"))} at step {last["step"]}.
        <a href="#completions?stage={stage.name}">Read what it said</a></p>{drawn}"""


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


def _reward_models(report: Path, trained: dict[str, Any], found: dict[str, Any] | None) -> str:
    names = ("helpfulness", "harmlessness")
    parts = [f"{name} {number(trained[key])}" for name in names if (key := f"{name}_accuracy") in trained]
    content = f"<p>Right on what was held out: {', '.join(parts)}.</p>" if parts else ""
    if not found:
        return content
    panels = [
        pictures.scores(name.capitalize(), [{"step": row["step"]} | row[name] for row in found["steps"] if name in row])
        for name in names
        if name in found
    ]
    return f"""{content}<p>Their scores beside the rules that they stand for, while R1 is trained on them (the paper's
        B.5): where the two part, the policy pleases the model and no longer serves its purpose.</p>
        {charts(pictures.draw(report / "reward_models", panels))}"""


def _distillation(report: Path, scale_dir: Path, measured: dict[str, dict[str, Any]]) -> str:
    names = ("student_base", "student_rl", "student_distilled")
    found = [name for name in names if measured[name].get("pass@1") is not None]
    if not found:
        return ""
    ours = [(NAMES[name], [(measured[name]["pass@1"], measured[name]["pass@1_stderr"])]) for name in found]
    paper = [(PAPER[name][0], [(PAPER[name][1], None)]) for name in names[1:]]
    panels = [
        pictures.bars("This run: pass@1", ours, ("pass@1",)),
        pictures.bars("The paper: AIME 2024, pass@1", paper, ("pass@1",), top=100),
    ]
    bench = scale_dir / "bench" / "distillation.json"
    if bench.exists():
        panels.append(_bench(json.loads(bench.read_text(encoding="utf-8"))))
    tokens = {name: measured[name].get("completion_tokens_trained") for name in found}
    spent = "; ".join(f"{NAMES[name]} {value:,}" for name, value in tokens.items() if value)
    return f"""<p>The same small base, by distillation or by reinforcement learning of its own. Completion tokens
        with a gradient: {escape(spent) or "not recorded"}.</p>
        {charts(pictures.draw(report / "distillation", panels, size=(5.2, 2.4)), "two")}"""


def _bench(found: dict[str, Any]) -> pictures.Panel:
    """The curves of benchmarks/distillation.py."""
    series = [
        (f"{method}, {rate}", colour, [(row["tokens"], row["pass@1"], row["pass@1_stderr"] or 0.0) for row in rows])
        for method, colour in (("distillation", "green"), ("rl", "blue"))
        for rate, rows in found[method].items()
    ]
    return pictures.budgets("By tokens and learning rate", series, found["student_base"])


def _funnels(stages: Iterable[RunFolder]) -> Iterator[str]:
    for stage in stages:
        for labels, funnel in find_funnels(stage.record or {}):
            seen = funnel["seen"] or 1
            steps = [("seen", funnel["seen"], "blue")]
            steps += [
                (f"− {name.replace('_', ' ')}", count, "red") for name, count in funnel["dropped"].items() if count
            ]
            steps.append(("kept", funnel["kept"], "green"))
            bars = "".join(bar(label, count / seen, f"{count:,}", colour) for label, count, colour in steps)
            title = ": ".join([_title(stage.name), *(label.replace("_", " ") for label in labels)])
            yield f"<figcaption>{escape(title)}</figcaption>{bars}{_near(funnel.get('near_duplicates'))}"


def _near(found: dict[str, Any] | None) -> str:
    """Near duplicates: the size of the largest cluster, and pairs for judging the threshold."""
    if not found or not found["examples"]:
        return ""
    pairs = [[text(pair[side]["prompt"]) for side in ("dropped", "kept")] for pair in found["examples"]]
    largest = f"{found['largest_cluster']:,} prompts make up the largest cluster of near duplicates"
    return f"<details><summary>{largest}</summary>{table(('dropped', 'since this one stays'), pairs, 'wrap')}</details>"


def find_funnels(record: Any, labels: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path in the record, funnel) for each count of seen, dropped and kept rows."""
    if isinstance(record, dict):
        if {"seen", "dropped", "kept"} <= record.keys():
            yield labels, record
        else:
            for name, part in record.items():
                yield from find_funnels(part, labels if name in ("ways", "funnel") else (*labels, name))


def _time(stages: Sequence[RunFolder], results: dict[str, Any]) -> str:
    records = {stage.name: stage.record for stage in stages if stage.record}
    if not records:
        return ""
    longest, total = (kind(record["seconds"] for record in records.values()) for kind in (max, sum))
    bars = []
    for name, record in records.items():
        colour = "muted" if name.startswith("evaluate_") else PLACES[name][3] if name in PLACES else "orange"
        label = _title(name) + (f" ({record['tries']} tries)" if record["tries"] > 1 else "")
        share = record["seconds"] / longest if longest else 0.0  # all times may be 0
        bars.append(bar(label, share, clock(record["seconds"]), colour))
    wall = f" in {clock(results['wall_seconds'])} of the clock" if results["wall_seconds"] else ""
    return f"""<p>{clock(total)} (minutes:seconds) of work{wall}, without the starts of the processes. What could run
        side by side did.</p>{"".join(bars)}"""


# HTML


def text(said: str) -> str:
    """A model's text as HTML."""
    return escape(shorten(said.strip(), LONG_TEXT)) or '<i class="muted">nothing</i>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """An HTML table. Its cells are HTML."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll {kind}"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def bar(label: str, share: float, said: str, colour: str) -> str:
    return f"""<div class="bar"><span>{escape(label)}</span><i><i class="{colour}" style="width:{100 * share:.1f}%"></i>
        </i><span>{escape(said)}</span></div>"""


def charts(drawn: Sequence[str], kind: str = "") -> str:
    shown = "".join(f"<figure>{picture}</figure>" for picture in drawn)
    return shown and f'<div class="charts {kind}">{shown}</div>'


def number(value: float | None, stderr: float | None = None) -> str:
    if value is None:
        return "–"
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}") + (
        "" if stderr is None else f" <small>± {stderr:.3f}</small>"
    )


def _title(stage: str) -> str:
    titles = {name: title.replace("\n", " ") for name, (_, _, title, _, _) in PLACES.items()}
    checkpoint = stage.removeprefix("evaluate_")
    return titles.get(stage) or (f"measuring {NAMES[checkpoint]}" if checkpoint in NAMES else stage.replace("_", " "))
