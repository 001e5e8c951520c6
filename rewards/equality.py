r"""Decides whether two answers are equal: by value if `rewards.expression` can read them, else with math-verify.

`compare` is the bounded fast path. It returns "equal", "different" or "unknown", and `EqualityRule` sends unknown pairs
to math-verify in a worker process. `compare` decides the cases in which math-verify is known to be wrong:

* A restated question is not an answer: `2 + 3 \times 4`, `\sum_{k=1}^{4} k` or `\frac{28}{2}` for 14 leave work to do.
* A chain of equations has to be true: `4 = 5` is not 5.
* A set is not a tuple. A unit counts if both sides give one (5 km is 5000 m and not 5 m).
* Numbers agree to `decimals` significant places of the smaller one's size, not to an absolute 1e-6: 3e-7 is not 1e-7.
"""

import itertools
import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction

from rewards.answers import Answer, as_tree, prepare
from rewards.expression import FUNCTIONS, Node, Unreadable
from rewards.scalars import (
    DIFFERENT,
    EQUAL,
    UNKNOWN,
    Tolerance,
    Verdict,
    evaluate,
    has_decimal,
    is_constant,
    same_numbers,
)
from rewards.units import WRAPPED
from rewards.workers import pool

DEFAULT_TOLERANCE = Tolerance()
MAX_LENGTH = 2000  # characters; longer answers are compared as text
# Operations that belong to a question instead of an answer.
HEAVY = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|max|min|sup|inf|gcd|lcm|bmod|pmod|mod|binom|det|lfloor|lceil|deg)(?![A-Za-z])"
    r"|!(?!=)|\bd/d[a-z]|\\frac\{d[^{}]*\}\{d[a-z]\}|\b(?:gcd|lcm|mod|max|min)\b"
)
CLOCK = re.compile(r"(\d{1,2}):([0-5]\d(?::[0-5]\d)?)\s*([ap]m)?", re.I)  # a time of day instead of a ratio
SIDES = re.compile(r"(?<![<>!=\\])=(?!=)(?![^{}]*\})")
SPACE = re.compile(r"(?<!\d) | (?!\d)")  # all spaces except those between two digits
FUNCTION_NAMES = frozenset("fghpqrFGHPQRSTVW")
MONTH = re.compile(r"(?:jan|febr)uary|march|april|may|june|july|august|(?:septem|octo|novem|decem)ber")


def compare(gold: str, answer: str, tolerance: Tolerance = DEFAULT_TOLERANCE) -> Verdict:
    """Whether an answer equals the gold answer, in bounded time and without an algebra system."""
    if max(len(gold), len(answer)) > MAX_LENGTH:
        return EQUAL if gold.split() == answer.split() else DIFFERENT
    wanted, given = prepare(gold), prepare(answer)
    if wanted.unit is not None and given.unit is None:
        given = prepare(answer, True)
    elif given.unit is not None and wanted.unit is None:
        wanted = prepare(gold, True)
    if not wanted.text or not given.text:
        return DIFFERENT
    times = [_minutes(WRAPPED.sub(r"\1", side.text)) for side in (wanted, given)]
    if None not in times:
        return EQUAL if times[0] == times[1] else DIFFERENT
    if wanted.words is not None or given.words is not None:
        return EQUAL if _same_words(wanted, given) and _same_unit(wanted, given) == 1 else DIFFERENT
    scale = _same_unit(wanted, given)
    if scale is None:
        return DIFFERENT
    percents = [side.tree is not None and side.tree.kind == "percent" for side in (wanted, given)]
    if percents[0] and given.unit or percents[1] and wanted.unit:
        return DIFFERENT
    if HEAVY.search(SIDES.split(given.text)[-1]) and not HEAVY.search(wanted.text):
        return DIFFERENT
    if _false_equation(given.text):
        return DIFFERENT
    if wanted.bound and given.bound and wanted.bound != given.bound:
        return DIFFERENT
    if wanted.tree is None or given.tree is None:
        return _compare_texts(wanted, given, scale, tolerance)
    others = wanted.other_tree, given.other_tree
    if re.fullmatch(r"-?\d+,\d+", wanted.text):  # only the answer may have a decimal comma
        others = None, others[1]
    pairs = [(wanted.tree, given.tree), *itertools.product({wanted.tree, others[0]}, {given.tree, others[1]})]
    verdicts = [_same(one, other, scale, tolerance) for one, other in dict.fromkeys(pairs) if one and other]
    if EQUAL not in verdicts and (wanted.tree.has(_is_log) or given.tree.has(_is_log)):
        # \log is the natural logarithm in some books and the decimal one in others
        verdicts.append(_same(_renamed(wanted.tree), _renamed(given.tree), scale, tolerance))
    return EQUAL if EQUAL in verdicts else verdicts[0]


def _is_log(node: Node) -> bool:
    return node.kind == "call" and node.name == "log"


def _renamed(node: Node) -> Node:
    """A formula with every \\log to the base ten."""
    return replace(node, parts=tuple(map(_renamed, node.parts)), name="lg" if _is_log(node) else node.name)


def _minutes(text: str) -> tuple[int, str] | None:
    """A time of day as (minutes since midnight, seconds), or None."""
    if not (match := CLOCK.fullmatch(re.sub(r"\s+", " ", text).strip())):
        return None
    hour, half = int(match[1]), (match[3] or "").lower()
    return hour % 12 * 60 + 720 * (half == "pm") if half else hour * 60, match[2]


def _same_words(wanted: Answer, given: Answer) -> bool:
    """Whether the words are the same. A date may be in any order, and "Yes, it is." equals "Yes"."""
    if wanted.words is None or given.words is None:
        return False
    if wanted.words in (("yes",), ("no",)):
        others = {"yes", "no", "not"} if wanted.words == ("yes",) else {"yes"}
        return given.words[:1] == wanted.words and not others & set(given.words[1:])
    if any(MONTH.fullmatch(word) for word in wanted.words):
        return sorted(wanted.words) == sorted(given.words)
    return wanted.words == given.words


def _same_unit(wanted: Answer, given: Answer) -> Fraction | None:
    """The factor that converts the given number to the wanted unit; None if the units do not convert."""
    if wanted.unit is None or given.unit is None:
        return Fraction(1)
    if wanted.unit[1] != given.unit[1]:
        return None
    return given.unit[0] / wanted.unit[0]


def _compare_texts(wanted: Answer, given: Answer, scale: Fraction, tolerance: Tolerance) -> Verdict:
    """Compare answers of which one could not be read. The last side of an equation may still be readable."""
    if len({re.sub(r"[{}]", "", SPACE.sub("", WRAPPED.sub(r"\1", side.text))) for side in (wanted, given)}) == 1:
        return EQUAL if scale == 1 else DIFFERENT
    opened = [re.match(r"\\\{|[(\[]", side.text) for side in (wanted, given)]
    if all(opened) and {match.group() for match in opened} == {"\\{", "("}:
        return DIFFERENT
    for one, other, most in ((wanted, given, math.inf), (given, wanted, 2)):
        sides = SIDES.split(other.text)
        if other.tree is None and 1 < len(sides) <= most and one.tree is not None and _shape(one.tree) != "relation":
            last = as_tree(sides[-1])
            return _same(wanted.tree or last, given.tree or last, scale, tolerance) if last else UNKNOWN
    worded = given.tree is None and not re.search(r"\d|\\", given.text)
    return DIFFERENT if worded and wanted.tree is not None and is_constant(wanted.tree) else UNKNOWN


def _false_equation(text: str) -> bool:
    """Whether a text equates two different integers or fractions: "So 4 = 5"."""
    sides = SIDES.split(text) if text.count("=") <= 20 else []
    for left, right in itertools.pairwise(sides):
        begin = re.search(
            r"(?:^|(?<![A-Za-z\\])(?P<word>[A-Za-z]{2,})\s+|[,:]\s*)(?P<sum>[(\d-][-+*/^()\d\s]*)$", left[-80:]
        )
        end = re.match(r"\s*(?P<sum>[(\d-][-+*/^()\d\s]*)(?:$|\s[A-Za-z])", right)
        trees = [as_tree(match["sum"]) if match else None for match in (begin, end)]
        if all(trees) and begin["word"] not in FUNCTIONS and not _holds(Node("relation", tuple(trees), "=")):
            return True
    return False


def _same(gold: Node, answer: Node, scale: Fraction, tolerance: Tolerance) -> Verdict:
    gold, answer = _expand(gold), _expand(answer)
    match _shape(gold), _shape(answer):
        case ("relation", _) | (_, "relation"):
            return _same_relations(gold, answer, scale, tolerance)
        case "scalar", "scalar":
            return same_numbers(gold, answer, scale, tolerance)
        case "matrix", "matrix":
            return _all_same(gold.parts, answer.parts, scale, tolerance)
        case ("matrix", _) | (_, "matrix"):
            return UNKNOWN
        case "scalar", "set" | "list" if answer.parts:
            verdicts = {_same(gold, part, scale, tolerance) for part in answer.parts}  # "14 or 14" equals 14
            return verdicts.pop() if len(verdicts) == 1 else DIFFERENT
        case "scalar", _:
            return DIFFERENT
        case _, "scalar":
            return _same(gold.parts[0], answer, scale, tolerance) if len(gold.parts) == 1 else DIFFERENT
        case ("list", "union") | ("union", "list"):  # x < 1 or x > 2
            bounds, union = (gold, answer) if gold.kind == "list" else (answer, gold)
            intervals = [_interval(part) for part in bounds.parts]
            if None in intervals:
                return DIFFERENT
            return _some_order(tuple(interval for _, interval in intervals), union.parts, scale, tolerance)
        case "ratio", "ratio":
            return _same_ratios(gold, answer)
        case "list", "list" | "group" | "set" if _names_each(gold) and not any(map(_is_relation, answer.parts)):
            # x = 1, y = 2: bare values have to come in this order
            return DIFFERENT if answer.kind == "set" else _all_same(gold.parts, answer.parts, scale, tolerance)
        case ("list", "group") | ("group", "list") if (gold.name or answer.name) in ("[)", "(]"):
            return DIFFERENT
        case "group", "group" if gold.name != answer.name:
            return DIFFERENT
        case "group", "group" | "list":
            return _all_same(gold.parts, answer.parts, scale, tolerance)
        case ("union", "union") | ("list" | "set", "list" | "set") | ("list", "group"):
            return _some_order(gold.parts, answer.parts, scale, tolerance)
    return DIFFERENT  # a set and a group; a union or a ratio beside any other shape


def _shape(node: Node) -> str:
    if node.kind in ("relation", "chain"):
        return "relation"
    return node.kind if node.kind in ("list", "group", "set", "union", "matrix", "ratio") else "scalar"


def _is_relation(node: Node) -> bool:
    return node.kind == "relation"


def _names_each(node: Node) -> bool:
    """Whether each item of a list is an equation with a left side of its own."""
    return len({part.parts[0] for part in node.parts if _is_relation(part) and part.name == "="}) == len(node.parts)


def _expand(node: Node) -> Node:
    """The list of the two readings of a formula with a plus-minus sign."""
    if _shape(node) not in ("scalar", "relation") or not node.has(lambda part: part.kind == "pm"):
        return node
    return Node("list", (_choose(node, 1), _choose(node, -1)))


def _choose(node: Node, sign: int) -> Node:
    if node.kind == "pm":
        inner = _choose(node.parts[0], sign)
        return inner if (sign > 0) == (node.name == r"\pm") else Node("neg", (inner,))
    if not node.parts:
        return node
    return replace(node, parts=tuple(_choose(part, sign) for part in node.parts))


def _all_same(gold: tuple, answer: tuple, scale: Fraction, tolerance: Tolerance) -> Verdict:
    if len(gold) != len(answer):
        return DIFFERENT
    verdicts = {_same(one, other, scale, tolerance) for one, other in zip(gold, answer, strict=True)}
    return DIFFERENT if DIFFERENT in verdicts else UNKNOWN if UNKNOWN in verdicts else EQUAL


def _some_order(gold: tuple, answer: tuple, scale: Fraction, tolerance: Tolerance) -> Verdict:
    """Compare as sets: the items of each side are among those of the other."""
    if len(gold) * len(answer) > 900:
        return UNKNOWN
    table = [[_same(one, other, scale, tolerance) for other in answer] for one in gold]
    hit = all(EQUAL in row for row in table) and all(any(row[j] == EQUAL for row in table) for j in range(len(answer)))
    if hit:
        return EQUAL
    return UNKNOWN if any(UNKNOWN in row for row in table) else DIFFERENT


def _same_ratios(gold: Node, answer: Node) -> Verdict:
    try:
        wanted, given = ([evaluate(part).exact for part in node.parts] for node in (gold, answer))
    except Unreadable:
        return UNKNOWN
    if len(wanted) != len(given) or None in wanted or None in given or wanted[0] == 0 or given[0] == 0:
        return DIFFERENT if len(wanted) != len(given) else UNKNOWN
    scaled = [number * wanted[0] / given[0] for number in given]
    return EQUAL if scaled == wanted else DIFFERENT


def _same_relations(gold: Node, answer: Node, scale: Fraction, tolerance: Tolerance) -> Verdict:
    if _shape(answer) == "relation":
        links = answer.parts if answer.kind == "chain" else (answer,)
        if not all(_holds(link) for link in links):
            return DIFFERENT
        if all(link.name in ("=", "~") for link in links):
            value = links[-1].parts[1]
            if links[-1].name == "~" and not has_decimal(gold) and is_constant(links[-1].parts[0]):
                value = links[-1].parts[0]  # "\frac13 \approx 0.333" gives the exact number first
            if _shape(gold) != "relation":
                first = _same(gold, links[0].parts[0], scale, tolerance)  # 18 = 2 * 3^2
                return first if first == EQUAL else _same(gold, value, scale, tolerance)
            answer = links[0] if len(links) == 1 else Node("relation", (links[0].parts[0], value), "=")
    if gold.kind == "chain" and all(link.name == "=" for link in gold.parts):
        gold = Node("relation", (gold.parts[0].parts[0], gold.parts[-1].parts[1]), "=")
    if gold.kind == "relation" and gold.name == "=" and _shape(answer) != "relation":
        # the gold answer names its value and the answer gives it; x^2 + y^2 = 4 has no such value
        valued = _is_name(gold.parts[0]) or all(map(is_constant, gold.parts))
        return _same(gold.parts[1], answer, scale, tolerance) if valued else DIFFERENT
    if gold.kind == answer.kind == "relation" and gold.name == answer.name == "=":
        if _is_name(gold.parts[0]) and gold.parts[0] == answer.parts[0]:
            return _same(gold.parts[1], answer.parts[1], scale, tolerance)
        if all(map(is_constant, (*gold.parts, *answer.parts))):  # two true equations can differ
            return EQUAL if gold == answer else DIFFERENT
        if (
            gold.parts[0].kind == answer.parts[0].kind == "variable"
            and is_constant(gold.parts[1])
            and is_constant(answer.parts[1])
        ):
            return DIFFERENT  # x = 5 and y = 5
        return _same_equations(gold, answer)
    wanted, given = _interval(gold), _interval(answer)
    if wanted and given and (wanted[0] == given[0] or "" in (wanted[0], given[0])):
        return _same(wanted[1], given[1], scale, tolerance)
    return UNKNOWN


def _is_name(node: Node) -> bool:
    """Whether it is a name: x, x_1, f(x) (read as a product), (p, q), A : B."""
    if node.kind == "*" and len(node.parts) == 2:
        return node.parts[0].name in FUNCTION_NAMES and all(part.kind == "variable" for part in node.parts)
    return node.kind == "variable" or (node.kind in ("group", "ratio") and all(map(_is_name, node.parts)))


def _holds(link: Node) -> bool:
    """Whether an equation between numbers is true. Any other formula passes."""
    if link.name not in ("=", "~") or not all(map(is_constant, link.parts)):
        return True
    try:
        left, right = (evaluate(part) for part in link.parts)
    except Unreadable:
        return True
    if left.exact is not None and right.exact is not None and link.name == "=" and not has_decimal(link):
        return left.exact == right.exact
    if not left.samples or not right.samples:
        return True
    gap, size = abs(left.samples[0] - right.samples[0]), max(abs(left.samples[0]), abs(right.samples[0]))
    return gap <= size * (0.05 if link.name == "~" or has_decimal(link) else 1e-9)


def _same_equations(gold: Node, answer: Node) -> Verdict:
    """Equations are equal if left minus right of one is a constant multiple of left minus right of the other."""
    try:
        wanted, given = (evaluate(Node("+", (one.parts[0], Node("neg", (one.parts[1],))))) for one in (gold, answer))
    except Unreadable:
        return UNKNOWN
    if len(wanted.samples) != len(given.samples) or any(abs(x) < 1e-9 for x in (*wanted.samples, *given.samples)):
        return UNKNOWN
    ratios = [one / other for one, other in zip(wanted.samples, given.samples, strict=True)]
    return EQUAL if all(abs(ratio - ratios[0]) <= 1e-9 * abs(ratios[0]) for ratio in ratios) else UNKNOWN


def _interval(node: Node) -> tuple[str, Node] | None:
    """(variable, interval) for an inequality in one variable; ("", interval) for an interval."""
    infinity = Node("constant", name="infty")
    if node.kind == "group" and len(node.parts) == 2:
        return "", node
    links = node.parts if node.kind == "chain" else (node,) if node.kind == "relation" else ()
    low, high, left, right, name = Node("neg", (infinity,)), infinity, "(", ")", None
    for link in links:
        one, other = link.parts
        if link.name not in ("<", ">", "<=", ">=") or (one.kind == "variable") == (other.kind == "variable"):
            return None
        variable, number, up = (
            (one, other, link.name[0] == "<") if one.kind == "variable" else (other, one, link.name[0] == ">")
        )
        if not is_constant(number) or (name is not None and name != variable.name):
            return None
        name = variable.name
        if up:
            high, right = number, "]" if len(link.name) == 2 else ")"
        else:
            low, left = number, "[" if len(link.name) == 2 else "("
    return (name, Node("group", (low, high), left + right)) if name is not None else None


ALGEBRA = "rewards.algebra:verify_pair"
ASKED_AT_ONCE = 16  # pairs; the time limit is checked after each batch


@dataclass
class EqualityRule:
    """Decides pairs (gold, answer) in batches, caches the verdicts and counts timeouts.

    Once a batch has taken `seconds`, no further pair is sent to math-verify. The remaining pairs get None.
    """

    tolerance: Tolerance = field(default_factory=Tolerance)
    seconds: float = 60.0
    timeouts: int = 0
    _known: dict[tuple[str, str], bool | None] = field(default_factory=dict, repr=False)

    def decide(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bool | None]:
        """The verdict of every pair: False if it timed out, None if math-verify was not asked."""
        verdicts: dict[tuple[str, str], bool | None] = {}
        unknown: dict[tuple[str, str], tuple[str, str]] = {}
        for pair in dict.fromkeys(pairs):
            verdict = compare(*pair, self.tolerance)
            if verdict != UNKNOWN:
                verdicts[pair] = verdict == EQUAL
            else:
                unknown[pair] = prepare(pair[0]).text, prepare(pair[1]).text
        asked = self._ask(unknown.values())
        return verdicts | {pair: asked[key] is True if key in asked else None for pair, key in unknown.items()}

    def gold_error(self, gold: str) -> str | None:
        """Why a gold answer cannot be used, or None if it can. It has to be readable and equal to itself."""
        if not gold.strip():
            return "the gold answer is empty"
        if len(gold) > MAX_LENGTH:
            return f"the gold answer has {len(gold)} characters, more than {MAX_LENGTH}"
        answer = prepare(gold)
        if not answer.text:
            return "the gold answer is empty"
        if answer.words is not None:
            return None
        if answer.tree is not None and compare(gold, gold, self.tolerance) == EQUAL:
            return None
        itself = answer.text, answer.text
        if self._ask([itself]).get(itself) is not True:
            return "the gold answer cannot be parsed, or does not equal itself"
        return None

    def _ask(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], bool | None]:
        """The verdict of math-verify for each pair that it was asked in time; None if it cannot parse the gold answer
        or timed out."""
        unknown = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if unknown and len(self._known) > 50_000:
            self._known.clear()
        end = time.monotonic() + self.seconds
        for start in range(0, len(unknown), ASKED_AT_ONCE):
            if time.monotonic() > end:
                break
            part = unknown[start : start + ASKED_AT_ONCE]
            for pair, (in_time, verdict) in zip(part, pool(ALGEBRA).map(part), strict=True):
                self.timeouts += not in_time
                self._known[pair] = verdict
        return {pair: self._known[pair] for pair in pairs if pair in self._known}
