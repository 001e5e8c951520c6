r"""A bounded parser of mathematical answers: numbers, formulas, tuples, sets, intervals, matrices, (in)equations.

It uses no algebra system and no `eval`. Length, depth and the size of numbers are bounded, so it is safe for any
model's output. It raises `Unreadable` for other input, and `rewards.equality` then asks math-verify.
"""

import cmath
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_CHARACTERS, MAX_TOKENS, MAX_DEPTH, MAX_BITS = 600, 300, 30, 4096


class Unreadable(ValueError):
    """The text is not understood by this parser, or exceeds its bounds."""


@dataclass(frozen=True)
class Node:
    r"""A formula with its `kind` and its parts.

    Kinds: number, constant, variable; neg, +, *, /, ^, root (radicand, degree), call, abs, !, binom, percent, degree
    (an angle), pm; list (bare commas), group (brackets kept in `name`), set, union, matrix (rows of `group`), ratio,
    relation (`name` is the operator), chain (of relations).
    """

    kind: str
    parts: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction | None = None
    digits: int | None = None
    """Digits after the decimal point of a number that was written as a decimal."""

    def has(self, test: Callable[["Node"], bool]) -> bool:
        """Whether the formula or a part of it, at any depth, passes the test."""
        if test(self):
            return True
        for part in self.parts:  # noqa: SIM110 (three times as fast as `any`)
            if part.has(test):
                return True
        return False


TOKEN = re.compile(
    r"(?P<number>\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.\d+|\d+\.(?!\d)|\d+)|(?P<command>\\[A-Za-z]+|\\[{}|\\])"
    r"|(?P<word>[A-Za-z]+)|(?P<sign><=|>=|!=|==|.)",
    re.S,
)
FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x), "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "exp": cmath.exp,
    "ln": cmath.log, "log": cmath.log, "lg": cmath.log10,
}  # fmt: skip
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", r"\le": "<=", r"\ge": ">=", r"\ne": "!=",
    "!=": "!=", r"\approx": "~", r"\in": "in",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon theta lambda mu rho sigma tau phi psi omega xi eta zeta kappa nu"
GREEK = frozenset(_GREEK.split())
_SHORT_WORDS = (
    "to is in no if so on at as we it by of us be an am do go or up the yes has had was are not for but two one six ten"
    " let get all any its can our out new now per due hence thus cm mm km kg mg ml"
)
SHORT_WORDS = frozenset(_SHORT_WORDS.split())
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), r"\{": (r"\}",)}


ELLIPSIS = re.compile(r"(\d*\.\d*?)(\d{1,6}?)\2+ ?(?:\.\.\.|\\[lc]?dots)()")


@lru_cache(maxsize=8_192)
def read(text: str, thousands: bool = True) -> Node:
    """The tree of a normalised formula. With `thousands`, "1,234" is one number instead of two.

    Raises:
        Unreadable: The formula has no kind of `Node`, or is too long or too deep.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unreadable("too long")
    # repeating decimals in three notations
    text = re.sub(r"(\d*\.\d*)(?:\\overline|\\dot|\\bar) ?(?:\{(\d+)\}|(\d))", _repeating, text)
    text = re.sub(r"(\d*\.\d*)\((\d+)\)(?![\d^])()", _repeating, text)
    if not thousands:
        text = text.replace(",", ", ")
    text = ELLIPSIS.sub(_repeating, text)
    tokens = [(match.lastgroup or "", match.group()) for match in TOKEN.finditer(text) if match.group() != " "]
    if not tokens or len(tokens) > MAX_TOKENS:
        raise Unreadable("empty or too many symbols")
    return _Reader(tokens).all()


def _repeating(match: re.Match) -> str:
    """The fraction that `0.1\\overline{6}` stands for."""
    whole, part = match.group(1), match.group(2) or match.group(3)
    if len(whole) + len(part) > 40:
        raise Unreadable("too long a period")
    head, _, tail = whole.partition(".")
    value = Fraction(int(head or "0")) + Fraction(int(tail or "0"), 10 ** len(tail))
    value += Fraction(int(part), (10 ** len(part) - 1) * 10 ** len(tail))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


class _Reader:
    """A recursive descent parser. Every loop consumes a token, and every recursion is counted."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if token and (not wanted or token in wanted):
            self.at += 1
            return token
        return ""

    def put_back(self, kind: str, *tokens: str) -> None:
        """Replace the token that was taken last by these, which are taken next."""
        self.at -= 1
        self.tokens[self.at : self.at + 1] = [(kind, token) for token in tokens]

    def need(self, *wanted: str) -> str:
        token = self.take(*wanted)
        if not token:
            raise Unreadable(f"{' or '.join(wanted)} expected")
        return token

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")

    def all(self) -> Node:
        node = self.items()
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.peek()} not expected")
        return node

    def items(self) -> Node:
        """relation (, | and | or relation)*; with semicolons, a list of such lists."""
        self.enter()
        rows = [[self.relation()]]
        while separator := self.take(",", ";", "and", "or"):
            self.take("and", "or")
            if separator == ";":
                rows.append([])
            rows[-1].append(self.relation())
        self.depth -= 1
        if all(len(row) == 1 for row in rows):
            rows = [[node for row in rows for node in row]]
        lists = [row[0] if len(row) == 1 else Node("list", tuple(row)) for row in rows]
        return lists[0] if len(lists) == 1 else Node("list", tuple(lists))

    def relation(self) -> Node:
        sides, names = [self.union()], []
        while self.peek() in RELATIONS:
            names.append(RELATIONS[self.take()])
            sides.append(self.union())
        if not names:
            return sides[0]
        links = [Node("relation", (sides[i], sides[i + 1]), name) for i, name in enumerate(names)]
        return links[0] if len(links) == 1 else Node("chain", tuple(links))

    def union(self) -> Node:
        return self.joined("union", r"\cup", self.ratio)

    def ratio(self) -> Node:
        return self.joined("ratio", ":", self.sum)

    def joined(self, kind: str, separator: str, part: Callable[[], Node]) -> Node:
        parts = [part()]
        while self.take(separator):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Node(kind, tuple(parts))

    def sum(self) -> Node:
        terms = [_signed(self.take("+", "-", r"\pm", r"\mp"), self.product())]
        while sign := self.take("+", "-", r"\pm", r"\mp"):
            terms.append(_signed(sign, self.product()))
        return terms[0] if len(terms) == 1 else Node("+", tuple(terms))

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.take("*"):
                sign = self.take("+", "-")
                node = _times(node, _signed(sign, self.power()))
            elif self.take("/"):
                node = Node("/", (node, self.power()))
            elif self.starts_factor():
                right = self.power()
                mixed = (
                    _is_integer(node)
                    and right.kind == "/"
                    and all(map(_is_integer, right.parts))
                    and not self._bracketed
                )
                node = Node("+", (node, right), "mixed") if mixed else _times(node, right)
            else:
                return node

    def starts_factor(self) -> bool:
        if self.at >= len(self.tokens):
            return False
        kind, token = self.tokens[self.at]
        if kind == "number":
            return self.tokens[self.at - 1][0] != "number"
        if kind == "word":
            return token not in ("and", "or")
        if kind == "command":
            return (
                token in (r"\frac", r"\sqrt", r"\pi", r"\{", r"\text", r"\mathrm", r"\binom")
                or token[1:] in FUNCTIONS
                or token[1:] in GREEK
            )
        return token in ("(", "{")

    def power(self) -> Node:
        self._bracketed = self.peek() in ("(", "{", "[")
        node = self.postfix(self.atom())
        if self.take("^"):
            node = self.postfix(Node("^", (node, self.exponent())))
        return node

    def exponent(self) -> Node:
        sign = self.take("-", "+")
        node = self.atom()
        if self.peek() == "^":
            self.enter()
            self.take("^")
            node = Node("^", (node, self.exponent()))
            self.depth -= 1
        return _signed(sign, node)

    def postfix(self, node: Node) -> Node:
        while True:
            if self.peek() == "^" and self.peek(1) == r"\circ":
                self.at += 2
                node = Node("degree", (node,))
            elif self.take("!"):
                node = Node("!", (node,))
            elif self.take("%"):
                node = Node("percent", (node,))
            else:
                return node

    def atom(self) -> Node:
        if self.at >= len(self.tokens):
            raise Unreadable("ends too early")
        kind, token = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            digits = token.replace(",", "")
            if len(digits) > 300:
                raise Unreadable("too long a number")
            _, point, tail = digits.partition(".")
            return Node("number", value=Fraction(digits.rstrip(".")), digits=len(tail) if point and tail else None)
        if token in CLOSING:
            return self.group(token)
        if token == "|":
            inner = self.items()
            self.need("|")
            return Node("abs", (inner,))
        if kind == "word":
            return self.word(token)
        if kind == "command":
            return self.command(token[1:])
        raise Unreadable(f"{token} not expected")

    def group(self, opening: str) -> Node:
        if opening == r"\{" and self.take(r"\}"):
            return Node("set")
        inner = self.items()
        closing = self.need(*CLOSING[opening])
        items = inner.parts if inner.kind == "list" else (inner,)
        if opening == r"\{":
            return Node("set", items)
        if opening == "{" or (len(items) == 1 and opening == "(" and closing == ")"):
            return inner
        return Node("group", items, opening + closing)

    def word(self, token: str) -> Node:
        if token in FUNCTIONS or token == "sqrt":
            return self.command(token)
        if token == "abs" and self.take("("):
            return Node("abs", (self.group("("),))
        if token == "pi":
            return Node("constant", name="pi")
        if token[:-1] in FUNCTIONS:  # cosx
            self.put_back("word", token[:-1], token[-1])
            return self.atom()
        if len(token) > 1:
            if len(token) > 3 or not token.islower() or token in SHORT_WORDS:
                raise Unreadable("a word")
            self.put_back("word", *token)  # xy is a product of variables
            return self.atom()
        if token in ("e", "i"):
            return Node("constant", name=token)
        return Node("variable", name=token + self.index())

    def index(self) -> str:
        if not self.take("_"):
            return ""
        kind, token = self.tokens[self.at] if self.at < len(self.tokens) else ("", "")
        self.at += 1
        if kind in ("number", "word"):
            return "_" + token
        inside = []
        if token != "{":
            raise Unreadable("an index")
        while (part := self.take()) != "}":
            if not part:
                raise Unreadable("} expected")
            inside.append(part)
        return "_" + "".join(inside)

    def command(self, name: str) -> Node:
        if name == "frac":
            return Node("/", (self.argument(), self.argument()))
        if name == "sqrt":
            degree = Node("number", value=Fraction(2))
            if self.take("["):
                degree = self.items()
                self.need("]")
            return Node("root", (self.argument(), degree))
        if name == "binom":
            return Node("binom", (self.argument(), self.argument()))
        if name in ("pi", "infty", "emptyset"):
            return Node("set") if name == "emptyset" else Node("constant", name=name)
        if name in FUNCTIONS:
            return self.call(name)
        if name in GREEK:
            return Node("variable", name=name + self.index())
        if name == "begin":
            return self.matrix()
        if name in ("text", "mathrm", "mathbf", "textbf", "operatorname", "mathit", "textit", "mbox"):
            self.need("{")
            node = self.items()
            self.need("}")
            return node
        raise Unreadable(f"\\{name}")

    def argument(self) -> Node:
        """A braced group, or the single symbol after a command: `\\frac12`, `\\sqrt 2`."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "number" and "." not in self.peek():
            token = self.take()
            self.put_back("number", *filter(None, (token[0], token[1:])))
        if self.take("("):
            return self.group("(")
        return self.atom()

    def call(self, name: str) -> Node:
        base = None
        if self.take("_"):
            base = self.argument()
        exponent = self.exponent() if self.take("^") else None
        argument = self.group("(") if self.take("(") else self.product_without_call()
        if exponent is not None and exponent.value == -1 and f"arc{name}" in FUNCTIONS:
            name, exponent = f"arc{name}", None
        node = Node("call", (argument,), name)
        if name == "exp":
            node = Node("^", (Node("constant", name="e"), argument))
        if base is not None:
            node = Node("/", (Node("call", (argument,), "ln"), Node("call", (base,), "ln")))
        return Node("^", (node, exponent)) if exponent is not None else node

    def product_without_call(self) -> Node:
        self.enter()
        node = self.power()
        while self.starts_factor() and self.peek().lstrip("\\") not in FUNCTIONS and self.peek() not in ("(",):
            node = _times(node, self.power())
        self.depth -= 1
        return node

    def matrix(self) -> Node:
        self.need("{")
        name = self.need("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix")
        self.need("}")
        rows, row = [], [self.relation()]
        while self.peek() != "\\end":
            if self.take("&"):
                row.append(self.relation())
            elif self.take("\\\\"):
                rows.append(row)
                if self.peek() == "\\end":
                    row = []
                    break
                row = [self.relation()]
            else:
                raise Unreadable("a matrix")
        rows += [row] if row else []
        for token in ("\\end", "{", name, "}"):
            self.need(token)
        if name == "vmatrix" or len({len(row) for row in rows}) != 1:
            raise Unreadable("a determinant or a ragged matrix")
        return Node("matrix", tuple(Node("group", tuple(row), "()") for row in rows))


def _signed(sign: str, node: Node) -> Node:
    if sign == "-":
        if node.kind == "number" and node.value >= 0:
            return Node("number", value=-node.value, digits=node.digits)
        return Node("neg", (node,))
    return Node("pm", (node,), sign) if sign in (r"\pm", r"\mp") else node


def _times(left: Node, right: Node) -> Node:
    return Node("*", (*left.parts, right)) if left.kind == "*" else Node("*", (left, right))


def _is_integer(node: Node) -> bool:
    return node.kind == "number" and node.digits is None
