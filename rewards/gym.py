r"""Procedural tasks of reasoning-gym: is the answer of a completion right, by the scorer of its task.

What counts as the answer, in the part that `rewards.parse` gives (the `<answer>` body, else what follows the
reasoning): what stands in a box; else what follows "The answer is" or the like on its line, or up to the next empty
line where the gold answer has several; else the only fenced block; else all of it. Emphasis, dollars, `\text{}`, a
fence and a final full stop around it do not count. Who states two different answers, or a box that differs from the
`<answer>`, has given none.

The library is optional (requirements-smol.txt). Its scorers run in worker processes, see `rewards.gym_worker`.
"""

import importlib.util
import re
from dataclasses import dataclass
from typing import Any, Literal

from rewards.accuracy import BOX, PLACEHOLDER, STATEMENT
from rewards.completion import parse, texts_of
from rewards.equality import matching
from rewards.settings import check
from rewards.workers import pool

MISSING = "reasoning-gym is not installed; run `.venv/bin/python -m pip install -r requirements-smol.txt`"
REFUSED = {
    "arc_agi": "half of its questions are the evaluation set of ARC-AGI",
    "boxnet": "it has no solution that its scorer could be checked with",
    "coin_flip": "its scorer takes the answer 0 for every probability below 1",
    "composite": "it only mixes other tasks; name those",
    "game_of_life_halting": "its scorer takes every text for a right answer",
    "gsm_symbolic": "its questions are made from GSM8K's test, which is reported",
    "propositional_logic": "its scorer takes a premise that is copied from the question",
    "puzzle24": "its scorer takes any four numbers for those of the question",
    "rush_hour": "it has no solution that its scorer could be checked with",
}
FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n`]*\n(.*?)\n?^[ \t]*\1[ \t]*$", re.M | re.S)
AROUND = re.compile(
    r"\*\*(?P<bold>.+)\*\*|`(?P<code>[^`]+)`|\$(?P<formula>[^$]+)\$|\\\((?P<inline>.+)\\\)"
    r"|\\(?:text|texttt|textbf|mathrm|mathbf)\{(?P<text>[^{}]*)\}",
    re.S,
)


class GymMissing(RuntimeError):
    """reasoning-gym is not installed; the message says how to install it."""


def installed() -> bool:
    return importlib.util.find_spec("reasoning_gym") is not None


def require() -> None:
    """Raises GymMissing where the library is not installed."""
    if not installed():
        raise GymMissing(MISSING)


def answer_of(completion: str, gold: str) -> str | None:
    """The answer that a completion gives, None where it gives none. The gold one is only asked how it is written: in
    how many lines, with which white space around it, and whether a full stop, a fence or dollars belong to it."""
    parts = parse(completion)
    if parts.answer is None:
        return None
    whole = _plain(parts.answer, gold)
    given = {whole} if whole == gold else {_plain(one, gold) for one in _stated(parts.answer, gold)} or {whole}
    if parts.answer != parts.shown:
        given |= {_plain(one, gold) for one in _boxes(parts.shown)}
    return given.pop() or None if len(given) == 1 else None


def _stated(text: str, gold: str) -> list[str]:
    if boxes := _boxes(text):
        return boxes
    values = []
    for head in STATEMENT.finditer(text):
        opened = head.start() + len(head.group().rstrip("*_ \t\n"))  # "_" can belong to the answer, "**" be its own
        value = text[opened:].lstrip(" \t").strip("\n").split("\n\n" if "\n" in gold.strip() else "\n")[0].rstrip()
        if text[: head.start()].rpartition("\n")[2].count("**") % 2:  # the bold is that of the head
            value = value[2:] if value.startswith("**") else value.removesuffix("**")
        values += [value] if value.strip() else []
    return values or [found[2] for found in FENCED.finditer(text)]


def _boxes(text: str) -> list[str]:
    found = []
    for box in BOX.finditer(text):
        end = matching(text, box.end()) if text[box.end() : box.end() + 1] == "{" else None
        if end is not None and not PLACEHOLDER.fullmatch(text[box.end() + 1 : end]):
            found.append(text[box.end() + 1 : end])
    return found


def _plain(text: str, gold: str) -> str:
    while text.strip() != gold.strip():
        if fenced := FENCED.fullmatch(text.strip()):
            text = fenced[2]
        elif around := AROUND.fullmatch(text.strip()):
            text = around[around.lastgroup]
        elif text.rstrip().endswith(".") and not gold.rstrip().endswith("."):
            text = text.rstrip()[:-1]
        else:
            return text.strip("\n")
    return gold


def score(answers: list[tuple[str, str, str]]) -> list[float | None]:
    """The library's score of each (answer, gold answer, entry), from 0 to 1. 0.0 for one that its scorer cannot read
    or has not scored in time; None for an entry that cannot be used.

    Raises:
        GymMissing: the library is not installed.
    """
    require()
    asked = list(dict.fromkeys(one for one in answers if one[0]))
    found = dict(zip(asked, pool("rewards.gym_worker:score").map(asked), strict=True))
    return [(found[one][1] if found[one][0] else 0.0) if one[0] else 0.0 for one in answers]


def gold_error(answer: str, entry: str | None) -> str | None:
    """Why the gold answer of an entry cannot be used, None where it can. Raises as `score`."""
    found = score([(answer, answer, entry or "")])[0]
    if found is None:
        return "its `entry` is no task of reasoning-gym that is known and not refused"
    return None if found == 1.0 else f"its scorer does not take the gold answer {answer!r:.60} for right"


def is_right(completion: str, answer: str, entry: str | None) -> bool | None:
    """Whether the scorer gives a completion all credit; None for an entry that cannot be used. Raises as `score`."""
    found = score([(answer_of(completion, answer) or "", answer, entry or "")])[0]
    return None if found is None else found == 1.0


@dataclass(frozen=True)
class GymReward:
    """1.0 for a completion whose answer the scorer of its task holds right, else 0.0; with `credit` "library" what
    that scorer gives, which for some tasks is a part of 1.0 for a wrong answer.

    The columns `answer` (the gold) and `entry` (the task, its settings, and what the scorer reads) are those that
    `python -m data_prep.gym` writes. None for rows whose `verifier` is not "gym" or whose entry cannot be used.

    Args:
        prefilled: the prompts end in `<think>`; seen by itself for prompts that are strings.

    Metrics: `gym/unusable`, the share of the rows whose entry cannot be used.

    Raises:
        GymMissing: the library is not installed.
    """

    credit: Literal["all", "library"] = "all"
    prefilled: bool = False
    __name__ = "gym_reward"

    __post_init__ = check

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        answer: list | None = None,
        entry: list | None = None,
        verifier: list | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        rows = [row for row in range(len(completions)) if verifier is None or verifier[row] == "gym"]
        if rows and (answer is None or entry is None):
            raise ValueError("gym_reward: the data set needs the columns `answer` and `entry` of `data_prep.gym`")
        texts = texts_of(completions, prompts, self.prefilled)
        golds = {row: answer[row] or "" for row in rows}
        asked = [(answer_of(texts[row], golds[row]) or "", golds[row], entry[row] or "") for row in rows]
        rewards: list[float | None] = [None] * len(completions)
        for row, found in zip(rows, score(asked) if rows else [], strict=True):
            rewards[row] = float(found == 1.0) if self.credit == "all" and found is not None else found
        if log_metric is not None and rows:
            log_metric("gym/unusable", sum(rewards[row] is None for row in rows) / len(rows))
        return rewards


gym_reward = GymReward()
