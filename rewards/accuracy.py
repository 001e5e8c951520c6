"""Accuracy: is the answer of a completion right."""

import re
from dataclasses import dataclass
from typing import Any

from rewards.completion import parse, text_of
from rewards.equality import is_equal

STATEMENT = re.compile(
    r"(?:answer|result)(?:\s+is|\s*:)\s*(.+?)(?:\.\s|\.?\s*$)|(?:答案|结果)(?:是|为|:|：)\s*(.+?)(?:。|$)", re.I | re.M
)
BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def stated(answer: str) -> str | None:
    found = BOX.findall(answer) or [one or other for one, other in STATEMENT.findall(answer)]
    found = [text.strip() for text in found] or [answer]
    return found[-1] if len(set(found)) == 1 else None


def is_correct(completion: str, answer: str, verifier: str = "math", question: str = "") -> bool | None:
    """Whether a completion answers its row rightly; None where the row has no gold that a rule can compare with."""
    if verifier == "code":
        from rewards.code import prints

        return prints(completion, answer)
    if verifier not in ("math", "choice") or not answer:
        return None
    found = parse(completion).answer
    value = stated(found) if found else None
    if value is None:
        return False
    if verifier == "choice":
        letter = re.match(r"\(?([A-Z])\b[).:]?", value.strip("*$ "))
        return letter is not None and letter.group(1) == answer.strip("() .")
    return is_equal(answer, value)


@dataclass(frozen=True)
class AccuracyReward:
    __name__ = "accuracy_reward"

    def __call__(
        self,
        completions: list,
        solution: list | None = None,
        answer: list | None = None,
        verifier: list | None = None,
        kind: list | None = None,
        question: list | None = None,
        **columns: Any,
    ) -> list:
        golds = solution or answer
        if golds is None:
            raise ValueError("accuracy_reward: the data set needs a column `answer` or `solution` with the gold answer")
        rewards: list[float | None] = []
        for row, completion in enumerate(completions):
            rule = verifier[row] if verifier else "math"
            right = None
            if rule in ("math", "choice") and (kind is None or kind[row] == "reasoning"):
                right = is_correct(text_of(completion), golds[row], rule, question[row] if question else "")
            rewards.append(None if right is None else float(right))
        return rewards


accuracy_reward = AccuracyReward()
