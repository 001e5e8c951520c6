"""Compares the trained reward models with the world's own rules over RL for all scenarios.

The paper's appendix B.5 describes reward hacking: after long training on a reward model, its reward rises while the
quality that it stands for does not. Here the rules are known, so this is visible: the gap grows and the correlation
falls.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any, NamedTuple

from data_prep.world import general
from recipes.tools.folders import read_completions
from recipes.tools.metrics import mean_and_stderr
from rewards import parse, text_of

RULES: dict[str, Callable[[str, str], float]] = {  # the rule that each reward model stands for, in [0, 1]
    "helpfulness": lambda question, text: general.helpful_score(question, parse(text).summary) / 3,
    "harmlessness": lambda question, text: float(general.is_safe(question, text)),
}


class Scored(NamedTuple):
    """One completion for a general prompt."""

    step: int
    question: str
    model: float  # sigmoid of the reward model's score
    rule: float


def reward_models(completions: Path) -> dict[str, Any] | None:
    """Means of each step that has general prompts, and how well model and rule agree in the first and the last quarter
    of these steps. None if there is no such step.

    `gap` is model - rule, with a standard error clustered by prompt. A helpfulness model learns only from pairs, so the
    level of its score has no meaning, and only a change of its gap does. `correlation` is over completions; it is None
    if model or rule is constant.
    """
    scored = {name: found for name, found in _read(completions).items() if found}
    steps = sorted({one.step for found in scored.values() for one in found})
    if not steps:
        return None
    quarter = -(-len(steps) // 4)
    result: dict[str, Any] = {"steps": [{"step": step} for step in steps]}
    for name, found in scored.items():
        for row in result["steps"]:
            if drawn := [one for one in found if one.step == row["step"]]:
                model, rule = fmean(one.model for one in drawn), fmean(one.rule for one in drawn)
                row[name] = {"reward_model": model, "rule": rule, "n": len(drawn)}
        first = _agreement([one for one in found if one.step in steps[:quarter]])
        last = _agreement([one for one in found if one.step in steps[-quarter:]])
        result[name] = {"start": first, "end": last}
    return result


def _read(folder: Path) -> dict[str, list[Scored]]:
    """Completions from the files that TRL writes for each step. Prompts from outside the world have no rule and are
    left out."""
    scored: dict[str, list[Scored]] = {name: [] for name in RULES}
    for path in sorted(folder.glob("*.parquet")):
        for row in read_completions(path):
            asked = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
            for name, rule in RULES.items():
                score = row.get(f"{name}_reward")
                if score is not None and asked in general.BY_QUESTION:
                    scored[name].append(Scored(row["step"], asked, score, rule(asked, text_of(row["completion"]))))
    return scored


def _agreement(found: list[Scored]) -> dict[str, float | None]:
    prompts: dict[str, list[float]] = {}
    for one in found:
        prompts.setdefault(one.question, []).append(one.model - one.rule)
    gap, stderr = mean_and_stderr(list(prompts.values()))
    try:
        agreed = correlation([one.model for one in found], [one.rule for one in found])
    except StatisticsError:
        agreed = None
    return {"gap": gap, "gap_stderr": stderr, "correlation": agreed, "n": len(found)}
