"""The format reward, one half of the rule reward (DeepSeek-R1, Methods, Eq. 4): whether a completion has its form."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from rewards.completion import ANSWER, THINK, opened, seen, tag_pattern, text_of
from rewards.settings import check

Style = Literal["r1_zero", "think"]
STYLES = ("r1_zero", "think")
TAG = tag_pattern(*THINK, *ANSWER)
ENTITY = re.compile(r"&#?\w{1,10};")
BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # invisible characters whose category is letter or symbol


def is_well_formed(text: str, style: Style = "r1_zero", thinking: bool = True, prefilled: bool = False) -> bool:
    """Whether a completion has the form of its style, in time linear in its length.

    `r1_zero`: `<think> ... </think> <answer> ... </answer>`; `think`: `<think> ... </think> ...`. Each tag appears
    once, in this order. No body is empty, and there is no text outside the tags except the summary. White space around
    the tags does not matter. With `thinking=False`, both styles ask for a text without tags. With `prefilled=True`, the
    prompt ends in `<think>`, so the completion must not open it again. The filters of the data jobs and the evaluation
    use this function too, so a change of it also changes what they keep and count.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r} is not known; write one of {', '.join(STYLES)}")
    if prefilled and thinking:
        text = THINK[0] + text
    wanted = THINK * thinking + ANSWER * (thinking and style == "r1_zero")
    if [tag.group() for tag in TAG.finditer(text)] != [*wanted]:  # a tag in another case, such as <THINK>, is refused
        return False
    parts = TAG.split(text)
    if not thinking:
        bodies, outside = parts, []
    elif style == "think":
        bodies, outside = parts[1:], parts[:1]
    else:
        bodies, outside = parts[1::2], parts[::2]
    return all(map(_has_text, bodies)) and not "".join(outside).strip()


def _has_text(body: str) -> bool:
    """Whether the text has a visible letter, number or symbol such as ∅, and not only layout marks."""
    return any(
        (letter.isalnum() or (unicodedata.category(letter)[0] == "S" and not letter.isascii())) and letter not in BLANK
        for letter in ENTITY.sub("", seen(body))
    )


@dataclass(frozen=True)
class FormatReward:
    """Returns 1.0 if a completion has the form of its style (`is_well_formed`), else 0.0.

    Rows whose column `thinking` is False ask for plain text. If a prompt ends in `<think>`, its completion must not
    open the reasoning again. `prefilled=True` states this for all prompts.
    """

    style: Style = "r1_zero"
    prefilled: bool = False
    __name__ = "format_reward"
    __post_init__ = check

    def __call__(
        self, completions: list, prompts: list | None = None, thinking: list | None = None, **columns: Any
    ) -> list[float]:
        thinks = thinking or [True] * len(completions)
        openings = map(opened, prompts) if prompts else [False] * len(completions)
        return [
            float(is_well_formed(text_of(completion), self.style, think is not False, self.prefilled or opening))
            for completion, think, opening in zip(completions, thinks, openings, strict=True)
        ]


format_reward = FormatReward()
