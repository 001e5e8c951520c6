"""What a run's folder holds, finished or not, and the choice of completions that the report's page shows of it."""

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
GROUP_SHOWN = 16  # of one prompt: a group
POINTS = 300  # of a line; more are averaged, so that a run of 10,000 steps fits


@dataclass(frozen=True)
class RunFolder:
    """A run's folder as it is now. `record` is its run.json, None while it is not finished; `log` the rows of
    log.jsonl."""

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
        """How long it took, or how far it is."""
        if self.record:
            return clock(self.record["seconds"])
        if self.log:
            return f"step {self.log[-1]['step']}/{self.log[-1]['max_steps']}"
        return "begun" if self.begun else ""

    @property
    def rewards(self) -> list[str]:
        """Names of the reward functions, in their order."""
        keys = dict.fromkeys(key for row in self.log for key in row)
        return [key.split("/")[1] for key in keys if key.startswith("rewards/") and key.endswith("/mean")]

    @property
    def completions(self) -> list[Path]:
        """The files that TRL writes, one a step."""
        return sorted((self.folder / "completions").glob("*.parquet"))

    def line(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one metric where it is a number; means of neighbours where there are many."""
        found = [(row["step"], finite(row.get(key))) for row in self.log]
        points = [(step, value) for step, value in found if value is not None]
        size = -(-len(points) // POINTS) or 1
        parts = [points[at : at + size] for at in range(0, len(points), size)]
        return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def names(scale_dir: Path, first: Iterable[str], family: str = "") -> list[str]:
    """What follows `family` in the names of a scale's runs: those of `first`, in that order, whether or not they are
    there, then all others; without a family no evaluations."""
    found = [path.parent.name for path in sorted(scale_dir.glob(f"{family}*/begun.json"))]
    others = [name for name in found if family or not name.startswith(("evaluate_", "suites_"))]
    return list(dict.fromkeys([*first, *(name.removeprefix(family) for name in others)]))


def read_run(folder: Path) -> RunFolder:
    """What is there of a run."""
    try:
        record = runs.read(folder)
    except runs.MissingRunError:
        record = None
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    log = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]  # the last may be half
    return RunFolder(folder.name, folder, (folder / "begun.json").exists(), record, log)


def read_completions(path: Path) -> list[dict[str, Any]]:
    """The rows that TRL wrote at one step; none of a file that a killed run left half-written."""
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, FileNotFoundError):  # or that a run has thrown away just now
        return []


def question(prompt: Any) -> str:
    """What was asked, without the paper's template."""
    return prompt_text(prompt).removeprefix(prompts.R1_ZERO_PREFIX).removesuffix(" Assistant:")


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, spread over all from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(at * (len(items) - 1) / max(count - 1, 1))] for at in range(count)]


def choose(rl: Sequence[RunFolder], evaluations: Iterable[RunFolder]) -> list[dict[str, Any]]:
    """At most MOST completions, a fair share of each stage: a whole group at each of the steps spread over a training,
    one after the other of a step's groups, and one sample each of held-out prompts. `right` is None for what has no
    right answer."""
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
            if groups:  # in RL for all scenarios the first of each step are reasoning
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
    """JSON to put into a script element, of at most `room` bytes: long texts lose their middle, then half of the
    completions goes, until it fits."""
    longest = 1 << 20
    while True:
        texts = ("question", "reasoning", "text")
        cut = [one | {name: shorten(one[name], longest) for name in texts} for one in completions]
        content = json.dumps(cut, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        for character in "<>&":  # nothing in it can end the element or open another
            content = content.replace(character, f"\\u{ord(character):04x}")
        if len(content.encode()) <= room or not completions:
            return content
        if longest > 500:
            longest //= 2
        else:
            completions = evenly(completions, len(completions) // 2)


def shorten(said: str, most: int) -> str:
    """A text without its middle where it has more than `most` characters."""
    if len(said) <= most:
        return said
    left_out = f" [... {len(said) - most:,} characters left out ...] "
    return said[: most // 2] + left_out + said[len(said) - most // 2 :]
