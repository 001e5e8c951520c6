"""Reads the folders of a scale's runs, finished or not, and chooses the completions that the report's page shows."""

import importlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from data_prep import prompts, runs
from recipes.config import GRPOConfig, RewardConfig, SFTConfig
from recipes.tools.steps import Step, load_steps
from recipes.tools.view import clock
from rewards import detect_language, text_of
from rewards.completion import THINK, prompt_text

import pyarrow as pa
import pyarrow.parquet as pq

MOST = 2_000  # completions in the page
GROUP_SHOWN = 16  # completions of one prompt, which is a group
POINTS = 300  # points of a line; more are averaged, so a run of 10,000 steps fits
TRAINED = {GRPOConfig: "rl", SFTConfig: "sft", RewardConfig: "reward_models"}  # kinds of stages by their settings


@dataclass(frozen=True)
class RunFolder:
    """The current state of a run's folder. `record` is its run.json, or None while the run is not finished; `log` has
    the rows of log.jsonl. `reads` names the runs of the same scale that it reads, and `parent` the one whose checkpoint
    it trains or measures ("" if there is none). `kind` is "rl", "sft", "reward_models", "other", "base" or "data"."""

    name: str
    folder: Path
    begun: bool
    record: dict[str, Any] | None
    log: list[dict[str, Any]]
    kind: str
    reads: tuple[str, ...]
    parent: str

    @property
    def is_rl(self) -> bool:
        return (self.folder / "completions").is_dir() or any("reward" in row for row in self.log)

    @property
    def state(self) -> str:
        """The time that the run took, or its progress."""
        if self.record:
            return clock(self.record["seconds"])
        if self.log:
            return f"step {self.log[-1]['step']}/{self.log[-1]['max_steps']}"
        return "begun" if self.begun else ""

    @property
    def rewards(self) -> list[str]:
        """Names of the reward functions in their order."""
        keys = dict.fromkeys(key for row in self.log for key in row)
        return [key.split("/")[1] for key in keys if key.startswith("rewards/") and key.endswith("/mean")]

    @property
    def completions(self) -> list[Path]:
        """The files of completions that TRL writes, one for each step."""
        return sorted((self.folder / "completions").glob("*.parquet"))

    def line(self, key: str) -> list[tuple[float, float]]:
        """The numeric (step, value) points of one metric. If there are many, neighbours are averaged."""
        found = [(row["step"], finite(row.get(key))) for row in self.log]
        points = [(step, value) for step, value in found if value is not None]
        size = -(-len(points) // POINTS) or 1
        parts = [points[at : at + size] for at in range(0, len(points), size)]
        return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


class Scale(NamedTuple):
    """The runs of a scale. Stages and data jobs have the names of their folders as keys. Evaluations have the names of
    the checkpoints that they measure, and suites the names of their folders without `suites_`."""

    stages: dict[str, RunFolder]
    evaluations: dict[str, RunFolder]
    suites: dict[str, RunFolder]


def read_scale(scale_dir: Path, configs: Path | None = None) -> Scale:
    """The runs of a scale: first the steps of its YAMLs, in their order and whether or not they have begun, then all
    other runs that exist.

    `configs`: the folder of the YAMLs, which is usually recipes/configs/<scale>. Without such a folder, only existing
    runs are found. Raises runs.ConfigError if a YAML cannot be read.
    """
    configs = configs or runs.ROOT / "recipes" / "configs" / scale_dir.name
    steps = {step.output_dir.name: step for step in load_steps(configs)} if configs.is_dir() else {}
    there = sorted(path.parent.name for name in ("begun.json", "run.json") for path in scale_dir.glob(f"*/{name}"))
    scale = Scale({}, {}, {})
    for name in dict.fromkeys([*steps, *there]):
        run = read_run(scale_dir / name, steps.get(name))
        if name.startswith("suites_"):
            scale.suites[name.removeprefix("suites_")] = run
        elif not name.startswith("evaluate_"):
            scale.stages[name] = run
        elif name in steps or not steps:  # another one may have measured other problems (`evaluate.py --rows FILE`)
            scale.evaluations[name.removeprefix("evaluate_")] = run
    return scale


def read_run(folder: Path, step: Step | None = None) -> RunFolder:
    """Read the existing files of a run. What they do not record is taken from the settings of its `step`."""
    try:
        record = runs.read(folder)
    except runs.MissingRunError:
        record = None
    begun = folder / "begun.json"
    held = record or (json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else {})
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    log = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]  # the last may be partial
    settings = held.get("settings") or (step.settings if step else {})
    parent = held.get("parent") or settings.get("model_name_or_path") or settings.get("path") or ""
    places = [Path(place) for place in (*(held.get("inputs") or runs.inputs(settings)), parent)]
    names = [place.name if place.parent.name == folder.parent.name else "" for place in places]
    reads = tuple(dict.fromkeys(filter(None, names)))
    return RunFolder(folder.name, folder, begun.exists(), record, log, _kind(folder, step), reads, names[-1])


def _kind(folder: Path, step: Step | None) -> str:
    if step is None:
        return "rl" if (folder / "completions").is_dir() else "data"
    if not step.trains:
        return "data"
    module = importlib.import_module(".".join(step.script.relative_to(runs.ROOT).with_suffix("").parts))
    arguments, trainer = module.SETTINGS
    if "model_name_or_path" not in arguments.__dataclass_fields__:
        return "base"  # it starts from random weights
    return next((kind for trained, kind in TRAINED.items() if issubclass(trainer, trained)), "other")


def arrows(stages: dict[str, RunFolder]) -> list[tuple[str, str]]:
    """(input, reader) for each run that another run reads. If another input of the reader depends on an input, its
    pair is left out, because almost every stage reads the first stage's prompts. The pair of a stage and the checkpoint
    that it starts from is never left out."""
    reads = {name: [one for one in stage.reads if one in stages] for name, stage in stages.items()}
    before = {name: set(inputs) for name, inputs in reads.items()}  # its direct and indirect inputs
    for _ in stages:
        for name, inputs in reads.items():
            before[name].update(*(before[one] for one in inputs))
    return [
        (one, name)
        for name, inputs in reads.items()
        for one in inputs
        if one == stages[name].parent or not any(one in before[other] for other in inputs)
    ]


def read_completions(path: Path) -> list[dict[str, Any]]:
    """The rows that TRL wrote at one step; none if a killed run left the file incomplete."""
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, FileNotFoundError):  # incomplete, or just deleted by a run
        return []


def question(prompt: Any) -> str:
    """The question of a prompt, without the paper's template."""
    return prompt_text(prompt).removeprefix(prompts.R1_ZERO_PREFIX).removesuffix(" Assistant:")


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Select `count` items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(at * (len(items) - 1) / max(count - 1, 1))] for at in range(count)]


def choose(rl: Sequence[RunFolder], evaluations: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """At most MOST completions, with a fair share of each stage. RL stages give one group at each of several evenly
    spaced steps, in rotation over the groups of a step. Evaluations give one sample of each chosen held-out prompt.
    `right` is None if there is no correct answer."""
    tested = [stage for stage in evaluations if stage.record]
    share = MOST // max(3 * len(rl) + len(tested), 1)
    found: list[dict[str, Any]] = []
    for stage in rl:
        config = (stage.record or {}).get("config", {})
        weights = dict(zip(stage.rewards, config.get("reward_weights") or [], strict=False))
        for number, path in enumerate(evenly(stage.completions, 3 * share // GROUP_SHOWN)):
            groups: dict[str, list[dict[str, Any]]] = {}
            for row in read_completions(path):
                groups.setdefault(prompt_text(row["prompt"]), []).append(row)
            if groups:  # in RL for all scenarios each step starts with reasoning
                group = list(groups.values())[number % len(groups)][:GROUP_SHOWN]
                found += [_trained(stage, row, weights) for row in group]
    for stage in tested:
        rows = pq.read_table(
            stage.folder / "generations.parquet",
            columns=["set", "question", "language", "completion", "correct", "helpful_score", "safe"],
            filters=[("set", "in", ["reasoning", "helpful", "harmless"]), ("sample", "=", 0)],
        ).to_pylist()
        for row in evenly(rows, share):
            scores = {name: row[name] for name in ("helpful_score", "safe")}
            shown = _shown(stage.name, row["question"], row["completion"], row["language"], scores)
            found.append(shown | {"right": row["correct"]})
    return found


def _trained(stage: RunFolder, row: dict[str, Any], weights: dict[str, float]) -> dict[str, Any]:
    scores = {name: finite(row.get(name)) for name in stage.rewards}
    known = {name: score for name, score in scores.items() if score is not None}
    asked, advantage = question(row["prompt"]), finite(row.get("advantage"))
    right = next((known[name] == 1 for name in ("accuracy_reward", "code_reward") if name in known), None)
    reward = sum(weights.get(name, 1.0) * score for name, score in known.items())
    shown = _shown(stage.name, asked, text_of(row["completion"]), detect_language(asked), known)
    return shown | {"right": right, "step": row["step"], "reward": round(reward, 4), "advantage": advantage}


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shown(stage: str, asked: str, said: str, language: str, scores: dict[str, Any]) -> dict[str, Any]:
    head, closing, tail = said.rpartition(THINK[1])
    fold, rest = (head + closing, tail) if closing else (said, "") if THINK[0] in said else ("", said)
    scores = {
        name.removesuffix("_reward").replace("_", " "): round(float(score), 3)
        for name, score in scores.items()
        if score is not None
    }
    return {"stage": stage, "question": asked, "reasoning": fold, "text": rest, "language": language, "scores": scores}


def embedded(completions: list[dict[str, Any]], room: int) -> str:
    """JSON for a script element of at most `room` bytes. Until it fits, first long texts lose their middle, and then
    half of the completions are dropped at a time."""
    longest = 1 << 20
    while True:
        texts = ("question", "reasoning", "text")
        cut = [one | {name: shorten(one[name], longest) for name in texts} for one in completions]
        content = json.dumps(cut, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for character in "<>&":  # so the text cannot end the element or open another
            content = content.replace(character, f"\\u{ord(character):04x}")
        if len(content.encode()) <= room or not completions:
            return content
        if longest > 500:
            longest //= 2
        else:
            completions = evenly(completions, len(completions) // 2)


def shorten(said: str, most: int) -> str:
    """The text, without its middle if it has more than `most` characters."""
    if len(said) <= most:
        return said
    left_out = f" [... {len(said) - most:,} characters left out ...] "
    return said[: most // 2] + left_out + said[len(said) - most // 2 :]
