"""Are two answers equal."""

import re
import unicodedata
from fractions import Fraction


def plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).strip().strip("$*").strip()
    boxed = re.fullmatch(r"\\boxed\{(.*)\}", text, re.S)
    text = boxed.group(1) if boxed else text
    return text.strip().strip("$").rstrip(".。 ").replace(" ", "").replace("−", "-")


def number(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def is_equal(gold: str, answer: str) -> bool:
    gold, answer = plain(gold), plain(answer)
    a, b = number(gold), number(answer)
    return a == b if a is not None and b is not None else gold.casefold() == answer.casefold()
