"""Is a completion in the form that its stage asks for (DeepSeek-R1, Methods, Eq. 4: one half of the rule reward)."""

from dataclasses import dataclass
from typing import Any, Literal

from rewards.completion import ANSWER, THINK, text_of

Style = Literal["r1_zero", "think"]
STYLES = ("r1_zero", "think")
# White space to a reader that `str.strip` leaves in place.
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def is_well_formed(text: str, style: Style = "r1_zero", thinking: bool = True, prefilled: bool = False) -> bool:
    """Whether a completion has the form of its style, in time linear in its length.

    `r1_zero`: `<think> ... </think> <answer> ... </answer>`; `think`: `<think> ... </think> ...`. Exactly one of each
    tag, in this order, no text outside of them (but the summary), no empty body; white space is free. With
    `thinking=False` a text without any tag is asked for, in either style. With `prefilled=True` the prompt ends in
    `<think>`, so the completion must not open it again.
    """
    if style not in STYLES:
        raise ValueError(f"style {style!r}: write one of {', '.join(STYLES)}")
    if not thinking:
        return not any(tag in text for tag in THINK + ANSWER) and _has_text(text)
    if prefilled:
        text = THINK[0] + text
    wanted = THINK + (ANSWER if style == "r1_zero" else ())
    if any(text.count(tag) != (1 if tag in wanted else 0) for tag in THINK + ANSWER):
        return False
    before, _, rest = text.partition(THINK[0])
    reasoning, closed, rest = rest.partition(THINK[1])
    if before.strip() or not closed or not _has_text(reasoning):
        return False
    if style == "think":
        return _has_text(rest)
    between, _, rest = rest.partition(ANSWER[0])
    answer, closed, after = rest.partition(ANSWER[1])
    return bool(closed) and not between.strip() and not after.strip() and _has_text(answer)


def _has_text(body: str) -> bool:
    return bool(body.translate(INVISIBLE).strip())


@dataclass(frozen=True)
class FormatReward:
    """1.0 for a completion in the form of its style, else 0.0 (`is_well_formed`).

    A row whose column `thinking` is False is asked for plain text.
    """

    style: Style = "r1_zero"
    prefilled: bool = False
    __name__ = "format_reward"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"format_reward: style {self.style!r}: write one of {', '.join(STYLES)}")

    def __call__(self, completions: list, thinking: list | None = None, **columns: Any) -> list[float]:
        thinks = thinking or [True] * len(completions)
        return [
            float(is_well_formed(text_of(completion), self.style, think is not False, self.prefilled))
            for completion, think in zip(completions, thinks, strict=True)
        ]


format_reward = FormatReward()
