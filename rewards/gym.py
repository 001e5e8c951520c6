r"""The reward for procedural tasks of reasoning-gym: the scorer of a task decides whether an answer is correct.

The answer is taken from the part that `rewards.parse` returns: the `<answer>` body, or else the text after the
reasoning. A box, "The answer is", a heading such as "### Final Answer" or similar words state an answer there. It ends
with its line (at the next empty line if the gold answer has several lines), or is the fenced block or display that
follows. If no answer is stated, it is the fenced block or else the whole part. Emphasis, quotes, dollars, `\text{}`, a
fence and a final full stop around an answer are removed. Two different answers count as no answer.

The library is optional (requirements-smol.txt). Its scorers run in worker processes; see `rewards.gym_worker`.
"""

import importlib.util
import itertools
import re
from dataclasses import dataclass
from typing import Any, Literal

from rewards.answers import matching
from rewards.completion import parse, texts_of
from rewards.settings import check
from rewards.statements import BOX, DOUBT, PLACEHOLDER, statement_heads
from rewards.workers import pool

MISSING = "reasoning-gym is not installed; run `.venv/bin/python -m pip install -r requirements-smol.txt`"
REFUSED = {
    "arc_agi": "half of its questions are the evaluation set of ARC-AGI",
    "boxnet": "it has no solution to check its scorer with",
    "coin_flip": "its scorer accepts the answer 0 for every probability below 1",
    "composite": "it only mixes other tasks; name those",
    "game_of_life_halting": "its scorer accepts every text",
    "gsm_symbolic": "its questions are made from GSM8K's test, which is reported",
    "propositional_logic": "its scorer accepts a premise that is copied from the question",
    "puzzle24": "its scorer accepts any four numbers",
    "rush_hour": "it has no solution to check its scorer with",
}
MAX_READ, MAX_AROUND = 20_000, 8  # characters beyond twice the length of the gold answer; things around an answer
# A line that is "Final Answer", "### Answer:" or "**Answer**: 5" up to its colon.
HEADING = re.compile(
    r"^[ \t#>*-]*?(?P<bold>\*\*|__)?(?:(?:the|my|final|correct)[ \t]+)*answers?[ \t]*"
    r"(?:[:：]?[ \t]*(?P=bold)[ \t]*[:：]?|[:：]?(?=[ \t]*$))",
    re.M | re.I,
)
BLANK = re.compile(r"[ \t]*(?:\n(?:[ \t]*\n)*)?")
FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n`]*\n(.*?)\n?^[ \t]*\1[ \t]*$", re.M | re.S)
DISPLAYED = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]", re.S)
AROUND = re.compile(
    r"\*\*(?P<bold>.+)\*\*|\*(?P<italic>[^*]+)\*|`(?P<code>[^`]+)`|\"(?P<quoted>[^\"]+)\"|“(?P<curly>[^”]+)”"
    r"|\$(?P<formula>[^$]+)\$|\$\$(?P<display>[^$]+)\$\$|\\\((?P<inline>.+)\\\)|\\\[(?P<bracket>.+)\\\]"
    r"|\\(?:text|texttt|textbf|mathrm|mathbf)\{(?P<text>[^{}]*)\}",
    re.S,
)


class GymMissing(RuntimeError):
    """reasoning-gym is not installed. The message says how to install it."""


def installed() -> bool:
    return importlib.util.find_spec("reasoning_gym") is not None


def require() -> None:
    """Raises GymMissing if the library is not installed."""
    if not installed():
        raise GymMissing(MISSING)


def answer_of(completion: str, gold: str) -> str | None:
    """The answer that a completion gives, or None. The gold answer only shows how an answer is written: its number of
    lines, the white space around it, and whether a full stop, a fence or dollars belong to it."""
    parts = parse(completion)
    if parts.answer is None:
        return None
    answer, shown = (part[-MAX_READ - 2 * len(gold) :] for part in (parts.answer, parts.shown))
    whole = _plain(answer, gold)
    given = [whole] if whole == gold else _stated(answer, gold)
    if not given and answer.count("```") + answer.count("~~~") < 100:  # the time of a search grows with the square
        given = [_plain(found[2], gold) for found in FENCED.finditer(answer)]
    given = given or [whole]
    if answer != shown:
        given += _stated(shown, gold)
    longest = 2 * len(gold.split()) + 1  # words; a longer statement beside a shorter one only talks about the answer
    given = {one for one in given if len(one.split()) <= longest} or set(given)
    return given.pop() or None if len(given) == 1 else None


def _stated(text: str, gold: str) -> list[str]:
    """The answers in boxes and after words; [""] if a box never closes or if all answers are doubted."""
    found, at = [], 0
    while box := BOX.search(text, at):
        at = box.end()
        if text[at : at + 1] == "{":
            if (end := matching(text, at)) is None:
                return [""]
            content, at = text[at + 1 : end], end + 1
            found += [] if PLACEHOLDER.fullmatch(content) else [_plain(content, gold)]
    text = HEADING.sub("Answer:", text)
    marked, doubted = [], False
    words = statement_heads(text)
    for head, following in itertools.zip_longest(words, words[1:]):
        line = text[: head.start()].rpartition("\n")[2]
        opened = head.start() + len(head.group().rstrip("*_ \t\n"))  # "_" or "**" can belong to the answer
        rest = text[opened : following.start() if following else None]
        is_bold = line.count("**") % 2 == 1  # the bold began before the head
        if is_bold and rest.lstrip().startswith("**"):
            rest, is_bold = rest.lstrip()[2:], False
        rest = rest[BLANK.match(rest).end() :]
        if block := FENCED.match(rest) or DISPLAYED.match(rest):
            value = block.group()
        else:
            value = rest.split("\n\n" if "\n" in gold.strip() else "\n")[0].rstrip()
            if following and len(value) == len(rest.rstrip()):  # both are in one line
                value = re.sub(r"(?<=[.!;])\s[^.!;]*$", "", value)
            value = value.removesuffix("**") if is_bold else value
        if DOUBT.search(line[-60:]):
            doubted = True
        elif value.strip() and not BOX.search(value):
            is_mark = head.group().startswith("#") and rest[len(value) :].strip()  # "####" within a text is a heading
            (marked if is_mark else found).append(_plain(value, gold))
    return found or marked or [""] * doubted


def _plain(text: str, gold: str) -> str:
    for _ in range(MAX_AROUND):
        if text.strip() == gold.strip():
            return gold
        if fenced := FENCED.fullmatch(text.strip()):
            text = fenced[2]
        elif around := AROUND.fullmatch(text.strip()):
            text = around[around.lastgroup]
        elif text.rstrip().endswith(".") and not gold.rstrip().endswith("."):
            text = text.rstrip()[:-1]
        else:
            break
    return text.strip("\n")


def score(answers: list[tuple[str, str, str]]) -> list[float | None]:
    """The library's score of each (answer, gold answer, entry), from 0 to 1. It is 0.0 if the scorer cannot read the
    answer or times out, and None if the entry cannot be used.

    Raises:
        GymMissing: The library is not installed.
    """
    require()
    asked = list(dict.fromkeys(one for one in answers if one[0]))
    found = dict(zip(asked, pool("rewards.gym_worker:score").map(asked), strict=True))
    return [(found[one][1] if found[one][0] else 0.0) if one[0] else 0.0 for one in answers]


def gold_error(answer: str, entry: str | None) -> str | None:
    """Why the gold answer of an entry cannot be used, or None if it can. Raises like `score`."""
    if not isinstance(answer, str):
        return f"its gold answer {answer!r:.60} is not text"
    found = score([(answer, answer, entry)])[0] if isinstance(entry, str) else None
    if found is None:
        return "its `entry` is not the JSON text of a task of reasoning-gym that can be used"
    return None if found == 1.0 else f"its scorer does not accept the gold answer {answer!r:.60}"


def is_right(completion: str, answer: str, entry: str | None) -> bool | None:
    """Whether a completion gets the full score; None if the entry cannot be used. Raises like `score`."""
    if not isinstance(answer, str) or not isinstance(entry, str):
        return None
    found = score([(answer_of(completion, answer) or "", answer, entry)])[0]
    return None if found is None else found == 1.0


@dataclass(frozen=True)
class GymReward:
    """Returns 1.0 if the scorer of the task finds the answer correct, else 0.0. With `credit` "library" it returns the
    scorer's own score, which is partial credit for wrong answers in some tasks.

    `python -m data_prep.gym` writes the columns `answer` (the gold answer) and `entry` (the task, its settings and the
    scorer's data). A row gets None if its `verifier` is not "gym" or its entry cannot be used.

    Args:
        prefilled: The prompts end in `<think>`. This is detected if the prompts are strings.

    Metrics: `gym/unusable`, the share of the rows whose entry cannot be used.

    Raises:
        GymMissing: The library is not installed.
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
        usable = [row for row in rows if isinstance(answer[row], str) and isinstance(entry[row], str)]
        asked = [(answer_of(texts[row], answer[row]) or "", answer[row], entry[row]) for row in usable]
        rewards: list[float | None] = [None] * len(completions)
        for row, found in zip(usable, score(asked) if rows else [], strict=True):
            rewards[row] = float(found == 1.0) if self.credit == "all" and found is not None else found
        if log_metric is not None and rows:
            log_metric("gym/unusable", sum(rewards[row] is None for row in rows) / len(rows))
        return rewards


gym_reward = GymReward()
