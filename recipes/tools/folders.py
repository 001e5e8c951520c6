"""Reads a run's folder, finished or not, and chooses the completions that the report's page shows."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from data_prep import prompts, runs
from recipes.tools.view import clock
from rewards import detect_language, text_of
from rewards.completion import THINK, prompt_text

import pyarrow as pa
import pyarrow.parquet as pq

MOST = 2_000  # completions in the page
GROUP_SHOWN = 16  # completions of one prompt, which is a group
POINTS = 300  # points of a line; more are averaged, so a run of 10,000 steps fits


@dataclass(frozen=True)
class RunFolder:
    """The current state of a run's folder. `record` is its run.json, or None while the run is not finished; `log` has
    the rows of log.jsonl."""

    name: str
    folder: Path
    begun: bool
    record: dict[str, Any] | None
    log: list[dict[str, Any]]

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


def names(scale_dir: Path, first: Iterable[str], family: str = "") -> list[str]:
    """The names of a scale's runs after the prefix `family`: first those of `first` in that order, even if they do not
    exist, then all others. Without a family, evaluations are left out."""
    found = [path.parent.name for path in sorted(scale_dir.glob(f"{family}*/begun.json"))]
    others = [name for name in found if family or not name.startswith(("evaluate_", "suites_"))]
    return list(dict.fromkeys([*first, *(name.removeprefix(family) for name in others)]))


def read_run(folder: Path) -> RunFolder:
    """Read the existing files of a run."""
    try:
        record = runs.read(folder)
    except runs.MissingRunError:
        record = None
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    log = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]  # the last may be partial
    return RunFolder(folder.name, folder, (folder / "begun.json").exists(), record, log)


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
    """At most MOST completions, with a fair share of each stage: one whole group at evenly spaced training steps, in
    rotation over the groups of a step, and one sample of each held-out prompt. `right` is None if there is no correct
    answer."""
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
    """JSON for a script element of at most `room` bytes. Long texts lose their middle, then half of the completions is
    dropped until it fits."""
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
