"""Scalar formulas: their value, and whether two are equal.

A restated question is not equal to its answer: 2 + 3 * 4 or 28 / 2 leave arithmetic undone that 14 has done.
"""

import cmath
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from rewards.expression import FUNCTIONS, MAX_BITS, Node, Unreadable

Verdict = Literal["equal", "different", "unknown"]
EQUAL: Verdict = "equal"
DIFFERENT: Verdict = "different"
UNKNOWN: Verdict = "unknown"


@dataclass(frozen=True)
class Tolerance:
    """How tolerant the comparison is.

    Args:
        percent: With "loose", 50% equals 50 and 0.5, as in math-verify, because data sets leave the sign out. With
            "strict" it equals only 0.5.
        decimals: A decimal answer equals a fraction or an irrational number if both round to the same at this many
            places (counted from the first digit for numbers below 1): 0.333333 is 1/3, 0.333 is not. None: never.
    """

    percent: Literal["loose", "strict"] = "loose"
    decimals: int | None = 6


@dataclass(frozen=True)
class Value:
    """A number. `exact` is set if it is rational; `samples` has its value for each choice of the variables."""

    exact: Fraction | None
    samples: tuple[complex, ...]


# Number of values that a variable is tried with. They depend on its name, and one is negative.
POINTS = 3


def _sample(name: str, point: int) -> complex:
    seed = sum(ord(letter) * 31**place for place, letter in enumerate(name[:8])) % 997
    return complex(((seed * 0.6180339887 + point * 0.7548776662) % 1) * 1.7 + 0.31) * (-1 if point == 2 else 1)


@lru_cache(maxsize=8_192)
def evaluate(node: Node) -> Value:
    """The value of a scalar formula.

    Raises:
        Unreadable: The formula is not a scalar, is undefined (1/0), or exceeds the bounds on numbers.
    """
    try:
        exact = _exact(node)
        if exact is not None:
            return Value(exact, (complex(float(exact)),) * POINTS if abs(exact) < 10**300 else ())
        samples = tuple(_numeric(node, point) for point in range(POINTS))
    except ZeroDivisionError as error:
        raise Unreadable("undefined") from error
    except (OverflowError, ValueError, TypeError) as error:
        raise Unreadable(str(error)) from error
    if any(cmath.isnan(sample) for sample in samples):
        raise Unreadable("undefined")
    return Value(None, samples)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise Unreadable("too large a number")
    return value


def _exact(node: Node) -> Fraction | None:
    """The rational value of a formula, or None if its form is not rational."""
    if node.kind == "number":
        return node.value
    if node.kind in ("variable", "constant", "call", "degree", "pm"):
        return None
    values = [_exact(part) for part in node.parts]
    if any(value is None for value in values):
        return None
    first, *rest = values
    match node.kind:
        case "neg":
            return -first
        case "+":
            if node.name == "mixed" and first < 0:
                return first - rest[0]
            return _bounded(sum(values, Fraction(0)))
        case "*":
            return _bounded(math.prod(values, start=Fraction(1)))
        case "/":
            return _bounded(first / rest[0])
        case "percent":
            return first / 100
        case "abs":
            return abs(first)
        case "^":
            power = rest[0]
            if power.denominator != 1:
                return None
            size = first.numerator.bit_length() + first.denominator.bit_length()
            if abs(power) * size > MAX_BITS and first not in (0, 1, -1):
                raise Unreadable("too large a number")
            return first ** int(power)
        case "root":
            return _rational_root(first, rest[0])
        case "!":
            if first.denominator != 1 or not 0 <= first <= 170:
                raise Unreadable("too large a factorial")
            return Fraction(math.factorial(int(first)))
        case "binom":
            if any(value.denominator != 1 or not 0 <= value <= 1000 for value in values):
                raise Unreadable("too large a binomial")
            return Fraction(math.comb(int(first), int(rest[0])))
    raise Unreadable(node.kind)


def _rational_root(value: Fraction, degree: Fraction) -> Fraction | None:
    if degree.denominator != 1 or not 2 <= degree <= 64 or (value < 0 and degree % 2 == 0):
        return None
    sign, value, n = (-1 if value < 0 else 1), abs(value), int(degree)
    parts = []
    for whole in (value.numerator, value.denominator):
        guess = math.isqrt(whole) if n == 2 else round(whole ** (1 / n)) if whole.bit_length() < 1000 else 0
        if guess**n != whole:
            return None
        parts.append(guess)
    return sign * Fraction(*parts)


def _numeric(node: Node, point: int) -> complex:
    if node.kind in ("+", "*", "/", "^", "neg", "abs", "percent", "root", "!", "binom"):
        exact = _exact(node)
        if exact is not None:
            return complex(float(exact))
    match node.kind:
        case "number":
            return complex(float(node.value))
        case "constant":
            if node.name == "infty":
                return complex(math.inf)
            return {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}[node.name]
        case "variable":
            return _sample(node.name, point)
    parts = [_numeric(part, point) for part in node.parts]
    match node.kind:
        case "neg":
            return -parts[0]
        case "+":
            return sum(parts)
        case "*":
            return math.prod(parts)
        case "/":
            return parts[0] / parts[1]
        case "^":
            return parts[0] ** parts[1]
        case "abs":
            return complex(abs(parts[0]))
        case "percent":
            return parts[0] / 100
        case "root":
            if parts[0].imag == 0 and parts[0].real < 0 and parts[1].real % 2 == 1:
                return -((-parts[0]) ** (1 / parts[1]))
            return parts[0] ** (1 / parts[1])
        case "call":
            angle = node.parts[0].kind == "degree" and node.name in ("sin", "cos", "tan", "cot", "sec", "csc")
            return FUNCTIONS[node.name](parts[0] * math.pi / 180 if angle else parts[0])
        case "degree":
            return parts[0]
    raise Unreadable(node.kind)


def has_decimal(node: Node) -> bool:
    return node.has(lambda part: part.digits is not None)


def is_constant(node: Node) -> bool:
    return not node.has(lambda part: part.kind == "variable")


def same_numbers(gold: Node, answer: Node, scale: Fraction, tolerance: Tolerance) -> Verdict:
    if _infinite(gold) or _infinite(answer):
        return EQUAL if _infinite(gold) == _infinite(answer) else DIFFERENT
    percents = gold.kind == "percent", answer.kind == "percent"
    if tolerance.percent == "loose" and percents[0] != percents[1]:
        bare = same_numbers(
            gold.parts[0] if percents[0] else gold, answer.parts[0] if percents[1] else answer, scale, tolerance
        )
        if bare == EQUAL:
            return EQUAL
    try:
        wanted, given = evaluate(gold), evaluate(answer)
    except Unreadable as error:
        if is_constant(gold) and is_constant(answer):  # too large to evaluate, and algebra systems are wrong there too
            return EQUAL if gold == answer and "undefined" not in str(error) else DIFFERENT
        return UNKNOWN
    if scale != 1:
        exact = given.exact * scale if given.exact is not None else None
        given = Value(exact, tuple(sample * float(scale) for sample in given.samples))
    verdict = _same_values(gold, answer, wanted, given, tolerance)
    return DIFFERENT if verdict == EQUAL and is_constant(gold) and _restates(gold, answer) else verdict


def _infinite(node: Node) -> int:
    if node.kind == "neg":
        return -_infinite(node.parts[0])
    return 1 if node.kind == "constant" and node.name == "infty" else 0


def _same_values(gold: Node, answer: Node, wanted: Value, given: Value, tolerance: Tolerance) -> Verdict:
    if wanted.exact is not None and wanted.exact == given.exact:
        return EQUAL
    decimal = has_decimal(gold) or has_decimal(answer)
    if wanted.exact is not None and given.exact is not None and not decimal:
        return DIFFERENT
    if not wanted.samples or not given.samples:
        return UNKNOWN
    constant = is_constant(gold) and is_constant(answer)
    if constant and any((value.samples[0] == 0) != (value.exact == 0) for value in (wanted, given)):
        return DIFFERENT  # too small for a float
    gaps = [abs(one - other) for one, other in zip(wanted.samples, given.samples, strict=True)]
    sizes = [max(abs(one), abs(other)) for one, other in zip(wanted.samples, given.samples, strict=True)]
    if decimal and constant:
        if wanted.exact is not None and given.exact is not None and abs(wanted.exact - given.exact) >= 1:
            return DIFFERENT
        return EQUAL if _round_alike(wanted.samples[0], given.samples[0], tolerance.decimals) else DIFFERENT
    if all(gap <= 1e-10 * size for gap, size in zip(gaps, sizes, strict=True)):
        return EQUAL
    if max(sizes[:2]) < 1e-9 or any(1e-10 * size < gap <= 1e-7 * size for gap, size in zip(gaps, sizes, strict=True)):
        return UNKNOWN
    # a difference only at a negative number may come from another branch: \\ln x^2 against 2 \\ln x
    return DIFFERENT if any(gap > 1e-7 * size for gap, size in zip(gaps[:2], sizes[:2], strict=True)) else UNKNOWN


def _round_alike(wanted: complex, given: complex, decimals: int | None) -> bool:
    if decimals is None:
        return False
    pairs = ((wanted.real, given.real), (wanted.imag, given.imag))
    size = abs(wanted)
    if size == 0 or abs(given) == 0:
        return wanted == given
    places = decimals
    while size < 0.1 and places < 300:
        size *= 10
        places += 1
    return all(round(one, places) == round(other, places) for one, other in pairs)


def _restates(gold: Node, answer: Node) -> bool:
    """Whether a numeric answer leaves arithmetic undone that the gold answer has done."""
    undone, allowed = _undone(answer), _undone(gold)
    try:
        wanted, given = evaluate(gold), evaluate(answer)
    except Unreadable:
        return bool(undone - allowed)
    if wanted.exact is not None and given.exact is None and not (allowed or answer.has(_is_i) or has_decimal(gold)):
        return True
    if wanted.exact is not None and wanted.exact.denominator == 1 and _has_quotient(answer) and not _has_quotient(gold):
        undone = undone | {"/"}
    return bool(undone - allowed)


def _is_i(node: Node) -> bool:
    return node.kind == "constant" and node.name == "i"


def _has_quotient(node: Node) -> bool:
    return node.kind == "/" or (node.kind in ("neg", "percent") and _has_quotient(node.parts[0]))


def _undone(node: Node) -> frozenset[str]:
    """The operations in a formula that act on rational numbers only and could have been carried out.

    A fraction of integers, a mixed number and a number in scientific notation count as numbers. So does a power of a
    million or more.
    """
    found = frozenset().union(*map(_undone, node.parts)) if node.parts else frozenset()
    if node.kind == "call" and is_constant(node):
        return found | {"ln" if node.name in ("log", "lg") else node.name}
    if node.kind in ("!", "binom", "abs"):
        return found | ({node.kind} if is_constant(node) else frozenset())
    numbers = [part for part in node.parts if _rational(part) is not None]
    if node.kind == "neg" and numbers and (_rational(node.parts[0]) <= 0 or node.parts[0].kind == "neg"):
        return found | {"neg"}
    if node.kind == "+" and len(numbers) > 1 and node.name != "mixed":
        return found | {"+"}
    if node.kind == "*" and len(numbers) > 1 and not _scientific(node):
        return found | {"*"}
    if node.kind == "/" and len(numbers) == 2 and not all(_whole(part) for part in node.parts):
        return found | {"/"}
    if node.kind == "^" and len(numbers) == 2:
        value = _rational(node)
        if value is None:
            return found
        large = value and max(abs(value.numerator), value.denominator) >= 10**6
        return found if large or (node.parts[0].value or 0) == 10 else found | {"^"}
    if node.kind == "root" and _rational(node) is not None:
        return found | {"root"}
    return found


def _rational(node: Node) -> Fraction | None:
    try:
        return evaluate(node).exact
    except Unreadable:
        return None


def _whole(node: Node) -> bool:
    return (
        (node.kind == "neg" and _whole(node.parts[0]))
        or (node.kind == "number" and node.value is not None and node.value.denominator == 1 and node.digits is None)
        or node.kind in ("^", "root")
    )


def _scientific(node: Node) -> bool:
    if len(node.parts) != 2 or node.parts[0].kind != "number":
        return False
    power = node.parts[1]
    return power.kind == "^" and power.parts[0].value == 10
