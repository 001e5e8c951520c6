"""Runs the scorers of reasoning-gym in the worker processes of `rewards.workers`, which import it once.

The scorers of version 0.1.25 were reviewed for unsafe use of a model's text. Five call `eval` on it, and four pass it
to sympy's `parse_expr`, which calls `eval`; both are replaced here. Tasks whose scorer accepts nonsense are in
`REFUSED`. Some scorers accept inexact numbers or text around an answer; `ALSO` says what else a right answer needs. The
worker's limits end long simulations, large powers and deep nesting.
"""

import ast
import functools
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from rewards.gym import REFUSED

import reasoning_gym
import reasoning_gym.algorithmic.graph_color
import reasoning_gym.arithmetic.bitwise_arithmetic
import reasoning_gym.games.countdown
import sympy

MAX_ANSWER = 20_000  # characters beyond twice the length of the gold answer
BELOW = math.nextafter(1.0, 0.0)
FUNCTIONS = {"Abs", "exp", "ln", "log", "pi", "sqrt"} | {
    f"{inverse}{name}{hyperbolic}"
    for inverse in ("", "a")
    for name in ("sin", "cos", "tan", "cot", "sec", "csc")
    for hyperbolic in ("", "h")
}
NOT_FINITE = re.compile(r"(?<![a-z])(?:nan|inf|infinity)(?![a-z])", re.I)  # any comparison with nan passes
_parse_expr = sympy.parse_expr


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", text)]


def _near(answer: str, gold: str, error: Callable[[Decimal], Decimal]) -> bool:
    """Whether both have the same numbers in each line, apart from an error that depends on the gold number."""
    ours, theirs = ([_numbers(line) for line in text.splitlines() if line.strip()] for text in (answer, gold))
    pairs = zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True)
    return [*map(len, ours)] == [*map(len, theirs)] and all(abs(one - other) <= error(other) for one, other in pairs)


def _no_more(answer: str, gold: str, *_: Any) -> bool:
    """Whether an answer has as many words and numbers as the gold answer, so nothing was added to it."""
    few = [re.findall(r"\d+(?:\.\d*)?|(?<![^\W\d_])(?!(?i:[dt]?frac)\b)[^\W\d_]+", text) for text in (answer, gold)]
    return len(few[0]) == len(few[1])


def _only(pattern: str) -> Callable[..., bool]:
    return lambda answer, *_: re.fullmatch(pattern, answer) is not None


def _same(form: Callable[[str], Any]) -> Callable[..., bool]:
    return lambda answer, gold, *_: form(answer) == form(gold)


def _json(text: str) -> Any:
    """Raises ValueError for a repeated key, too. Numbers are in tuples, since 1 equals `true`."""

    def number(digits: str) -> tuple[Decimal]:
        return (Decimal(digits),)

    return json.loads(text, parse_int=number, parse_float=number, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_thousands = _only(r"[^,]*|[+-]?\d{1,3}(,\d{2,3})*,\d{3}(\.\d*)?")  # commas as in 1,000 or 1,00,000, but not in 1,0
TIME = re.compile(r"[+-]?(\d+(\s+days?)?|(\d+\s+days,\s*)?\d+:\d+(:\d+(\.(\d{3}|0+))?)?)", re.I)
WORD = re.compile(r"\b(?!(?:an?|and|hence|is|so|therefore|thus)\b)\w+")
# A right answer also passes this check of (answer, gold answer, settings). It is wrong if the check raises.
ALSO: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(("advanced_geometry", "fraction_simplification", "letter_jumble"), _no_more),
    **dict.fromkeys(("polynomial_equations", "survo", "word_sorting"), _no_more),
    "chain_sum": _thousands,
    "codeio": _same(_json),
    "countdown": _same(lambda text: _arithmetic(text)),  # the library accepts an error of 0.001%
    "cryptarithm": _same(lambda text: text.count("=")),  # a letter that has two digits
    "decimal_arithmetic": lambda answer, gold, config: _near(
        answer, gold, lambda one: abs(one).scaleb(2 - config.precision)
    ),
    "figlet_font": _same(lambda text: text.replace(" ", "").lower()),
    "game_of_life": _same(json.loads),
    "graph_color": _same(lambda text: _json(text).keys()),
    "jugs": lambda answer, *_: all(len(move.split()) == 2 for move in json.loads(answer)),
    "kakurasu": _only(r"([01_]|[^\w-])*"),
    "knights_knaves": _same(lambda text: sorted(WORD.findall(text.lower()))),
    "number_format": lambda answer, gold, _: (
        _thousands(answer) and _near(answer.replace(",", ""), gold, lambda one: Decimal("6e-4"))  # of three decimals
    ),
    "number_sorting": _same(_numbers),
    "pool_matrix": lambda answer, gold, _: _near(answer, gold, lambda one: Decimal("0.005")),  # asked to two places
    "products": _thousands,
    "quantum_lock": _only(r"([^\w]|[A-Ca-c]|\\to\b|\d+[.)])*"),
    "rubiks_cube": _only(r"(?:[A-Za-z]'?\d{0,2}(?![\d'])|\d+[.)]\s|[\s,()])*"),
    "sokoban": _only(r"[LRUD,\s]*"),
    "time_intervals": _same(lambda text: [mark in TIME.fullmatch(text)[0] for mark in ":-"]),
}


def _symbolic(text: str, **names: Any) -> Any:
    """`parse_expr` limited to numbers, operators, single letters and known functions, without large powers."""
    words = set(re.findall("[A-Za-z]{2,}", text))
    if (
        len(text) > 1_000
        or re.search(r"[^A-Za-z0-9\s+\-*/().,]|(?<![0-9])\.|\.(?![0-9])|[0-9][eE]", text)
        or words - FUNCTIONS
    ):
        raise ValueError("not an expression of numbers, letters and functions")
    for power in [node for node in ast.walk(ast.parse(text.strip(), mode="eval")) if _is_power(node)]:
        for node in ast.walk(power.right):
            if _is_power(node) or isinstance(node, ast.Constant) and node.value > 100:
                raise ValueError("a power that is too large")
    return _parse_expr(text, **names)


def _is_power(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)


def _arithmetic(text: str) -> Any:
    """`parse_expr` limited to integers and the operators that `countdown` allows."""
    if len(text) > 1_000 or re.search(r"[^0-9\s+\-*/()]|\*\s*\*|/\s*/", text):
        raise ValueError("not arithmetic")
    return _parse_expr(text)


def _bitwise(text: str) -> int:
    """The value of a `bitwise_arithmetic` problem. It comes from a row, which may be untrusted."""
    if re.search(r"[^0-9a-fA-Fx\s()+*&|^~<>-]|\*\s*\*", text):
        raise ValueError("not a problem of bits")
    return eval(text, {"__builtins__": {}})  # these characters cannot form a name, attribute or string


def _make_safe() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym."):
            module.eval = ast.literal_eval
    reasoning_gym.arithmetic.bitwise_arithmetic.eval = _bitwise
    reasoning_gym.games.countdown.parse_expr = _arithmetic
    sympy.parse_expr = _symbolic


@functools.lru_cache(maxsize=256)
def _dataset(task: str, settings: str) -> Any:
    return reasoning_gym.create_dataset(task, **json.loads(settings))


def score(asked: list[str]) -> float | None:
    """The score of [answer, gold answer, entry] from 0 to 1, or None if the entry cannot be used."""
    answer, gold, text = asked
    try:
        entry = json.loads(text)
        task, metadata = entry["task"], entry["metadata"]
        if task in REFUSED:
            return None
        dataset = _dataset(task, json.dumps(entry["settings"]))
        if task == "rearc":
            metadata["output"] = tuple(map(tuple, metadata["output"]))
    except Exception:  # noqa: BLE001 (any error means that the row cannot be used)
        return None
    if len(answer) > MAX_ANSWER + 2 * len(gold) or NOT_FINITE.search(answer) and not NOT_FINITE.search(gold):
        return 0.0
    if task == "rubiks_cube" and re.search(r"\d{3}", answer):  # too many turns
        return 0.0
    try:
        found = float(dataset.score_answer(answer, {"question": "", "answer": gold, "metadata": metadata}))
        if found >= 1.0 and task in ALSO and answer != gold:
            found *= ALSO[task](answer.strip(), gold.strip(), dataset.config)
    except Exception:  # noqa: BLE001 (no answer ends training)
        return 0.0
    if not math.isfinite(found):
        return 0.0
    return max(found, 0.0) if found <= 1.0 else BELOW  # partial scores of a wrong answer can sum to slightly over 1


_make_safe()
