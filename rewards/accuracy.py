r"""The accuracy reward: whether the answer of a completion is correct (DeepSeek-R1, Methods, Eq. 4).

The answer is taken from the part that `rewards.parse` returns: the `<answer>` body, or else the text after the
reasoning. `rewards.statements` finds it there, and `rewards.equality` compares it with the gold answer. Every answer
that is stated outside the reasoning must equal the gold answer; two different answers count as none.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from rewards.answers import prepare
from rewards.completion import parse, texts_of
from rewards.equality import EqualityRule, Tolerance
from rewards.settings import Count, NotNegative, check
from rewards.statements import BOX, LETTERS, chosen, statements, unstated

MAX_READ = 20_000  # only the last characters of an answer are read
GOLD_LETTERS = re.compile(rf"[{LETTERS}]+|[(\s]*[{LETTERS}][).\s]*(?:(?:,|\s)\s*\(?[{LETTERS}][).\s]*)*", re.I)


def gold_of(text: str) -> str:
    r"""The answer in a gold column: the last box or the text after `####` of a worked solution, or else all of it."""
    if BOX.search(text):
        found = statements(text)
        return found[0] if found else ""
    return text.rsplit("####", 1)[-1].strip()


def gold_error(answer: str, verifier: str = "math", entry: str | None = None) -> str | None:
    """Why a gold answer cannot be used, or None if it can. Data preparation refuses such rows. ``entry`` belongs to
    verifier "gym"."""
    if verifier == "gym":
        from rewards import gym

        return gym.gold_error(answer, entry)
    if verifier == "choice":
        return None if GOLD_LETTERS.fullmatch(answer) else f"the gold answer {answer!r} is not a letter from A to J"
    return accuracy_reward.rule.gold_error(gold_of(answer))


def is_correct(completion: str, answer: str, verifier: str = "math", entry: str | None = None) -> bool | None:
    """Whether a completion answers its row correctly. ``entry`` belongs to verifier "gym".

    None if no rule can grade the row: its verifier is "judge" or "none", or its gold answer cannot be used.

    Raises:
        SandboxUnavailable: The verifier is "code", and no program can be run.
        rewards.gym.GymMissing: The verifier is "gym", and reasoning-gym is not installed.
    """
    if verifier == "gym":
        from rewards import gym

        return gym.is_right(completion, answer, entry)
    if verifier == "code":
        from rewards.code import prints

        return prints(completion, answer)
    if verifier not in ("math", "choice"):
        return None
    return grade([completion], [answer], [verifier], accuracy_reward.rule)[0]


def grade(texts: list[str], golds: list[str], verifiers: list[str], rule: EqualityRule) -> list[bool | None]:
    """`is_correct` for many completions. Each distinct pair of answer and gold answer is verified once."""
    usable: dict[tuple[str, str], str | None] = {}
    for key in dict.fromkeys(zip(golds, verifiers, strict=True)):
        usable[key] = rule.gold_error(gold_of(key[0])) if key[1] == "math" else gold_error(*key)
    candidates: list[list[tuple[str, str]]] = [[] for _ in texts]
    results: list[bool | None] = [None] * len(texts)
    for row, (text, gold, verifier) in enumerate(zip(texts, golds, verifiers, strict=True)):
        if usable[gold, verifier] is not None:
            continue
        parts = parse(text)
        answer, shown = ((part or "")[-MAX_READ:] for part in (parts.answer, parts.shown))
        if verifier == "choice":
            beside = chosen(shown) if answer and answer != shown and statements(shown) else set()
            results[row] = chosen(answer) | beside == set(re.findall(f"[{LETTERS}]", gold.upper()))
            continue
        results[row] = False
        words = prepare(gold_of(gold)).words
        is_text = words is not None and "base" not in words
        stated = statements(answer, is_text)
        boxed = bool(BOX.search(answer))
        if not stated and not boxed and answer:
            stated = [unstated(answer, is_text) or ""]
        if answer != shown and any(stated):
            stated += statements(shown, is_text) or [""] * bool(BOX.search(shown))
        if all(stated):
            candidates[row] = [(gold_of(gold), value) for value in stated]
    decided = rule.decide(pair for pairs in candidates for pair in pairs)
    for row, pairs in enumerate(candidates):
        if pairs:
            verdicts = [decided[pair] for pair in pairs]
            results[row] = None if None in verdicts and False not in verdicts else all(verdicts)
    return results


@dataclass(frozen=True)
class AccuracyReward:
    """Returns 1.0 if the answer of a completion equals the gold answer, else 0.0.

    The gold answer is in the column `answer` or, if that is empty, in `solution`. It is an answer or a worked solution
    with a box. A row gets None if this reward cannot grade it: its kind is not `reasoning`, its verifier is not "math"
    or "choice", or its gold answer cannot be used. A row also gets None if math-verify was not asked because
    `step_seconds` had passed. The completion itself never causes None.

    Args:
        percent, decimals: See `rewards.equality.Tolerance`.
        prefilled: The prompts end in `<think>`. This is detected if the prompts are strings.
        step_seconds: How long a call may ask math-verify about answers that `rewards.equality` cannot decide.

    Metrics: `accuracy/gold_unusable`, the share of rows with None; `accuracy/timeouts`, the number of answers not
    decided in time.
    """

    percent: Literal["loose", "strict"] = "loose"
    decimals: Count | None = 6
    prefilled: bool = False
    step_seconds: NotNegative = 60.0
    __name__ = "accuracy_reward"
    __post_init__ = check

    @property
    def rule(self) -> EqualityRule:
        """How answers are compared, with the verdicts cached in this process. Equal settings share one."""
        return _rule(self.percent, self.decimals, self.step_seconds)

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        solution: list | None = None,
        answer: list | None = None,
        verifier: list | None = None,
        kind: list | None = None,
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        if answer is None and solution is None:
            raise ValueError("accuracy_reward: the data set needs a column `answer` or `solution` with the gold answer")
        blank = [None] * len(completions)
        columns_of_gold = zip(answer or blank, solution or blank, strict=True)
        golds = [str(next((gold for gold in golds if gold not in (None, "")), "")) for golds in columns_of_gold]
        rule = self.rule
        rewards: list[float | None] = [None] * len(completions)
        rows = [
            row
            for row in range(len(completions))
            if (kind is None or kind[row] == "reasoning") and (verifier is None or verifier[row] in ("math", "choice"))
        ]
        texts = texts_of(completions, prompts, self.prefilled)
        verifiers = [verifier[row] if verifier else _verifier(golds[row]) for row in rows]
        before = rule.timeouts
        graded = grade([texts[row] for row in rows], [golds[row] for row in rows], verifiers, rule)
        for row, right in zip(rows, graded, strict=True):
            rewards[row] = None if right is None else float(right)
        if log_extra is not None:
            log_extra("answer_found", [parse(text).answer or "" for text in texts])
        if log_metric is not None and rows:
            log_metric("accuracy/gold_unusable", sum(right is None for right in graded) / len(rows))
            log_metric("accuracy/timeouts", float(rule.timeouts - before))
        return rewards


@lru_cache
def _rule(percent: Literal["loose", "strict"], decimals: int | None, seconds: float) -> EqualityRule:
    return EqualityRule(Tolerance(percent, decimals), seconds)


def _verifier(gold: str) -> str:
    """The verifier of a row that does not name one."""
    return "choice" if re.fullmatch(rf"\(?[{LETTERS}]\)?", gold.strip()) else "math"


accuracy_reward = AccuracyReward()
