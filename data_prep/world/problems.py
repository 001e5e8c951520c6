"""Arithmetic problems of the toy world, in English and Chinese: questions, worked solutions, and the held-out set.

An expression has two or three operands from 1 to 9, the operators + - *, and every intermediate result in 0..60, so
that a model of about a million parameters can learn the facts it needs. The held-out set depends on the split: choose
settings on "validation", report on "test". "What is 2 + 3 * 4?", the walkthrough's own question, is held out in both.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

LANGUAGES = ("en", "zh")  # the paper's pair
LICENSE = "apache-2.0"
MAX_VALUE = 60
SPLITS = ("test", "validation")
TEST_SHARE = 12  # one canonical three-operand expression in twelve is held out
OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}

Tree = int | tuple  # an operand, or (operator, left, right)
Operation = tuple[int, str, int, int]  # a, operator, b, a operator b


@dataclass(frozen=True)
class Expression:
    """A tree with its text ("2 + 3 * 4"), its steps in the order of precedence, and its value."""

    tree: Tree

    @property
    def text(self) -> str:
        return _text(self.tree)

    @property
    def steps(self) -> list[Operation]:
        steps: list[Operation] = []
        _value(self.tree, steps)
        return steps

    @property
    def value(self) -> int:
        return _value(self.tree, [])

    @property
    def canonical(self) -> str:
        """A key shared by expressions that differ only in the order of commutative operands: 2 + 3 * 4, 4 * 3 + 2."""
        return _canonical(self.tree)

    def held_out(self, split: str) -> bool:
        if len(self.steps) < 2:  # the facts themselves must be learnable
            return False
        digest = hashlib.sha256(f"{split} {self.canonical}".encode()).digest()
        return self.canonical == _canonical(("+", 2, ("*", 3, 4))) or digest[0] % TEST_SHARE == 0


def _value(tree: Tree, steps: list[Operation]) -> int:
    if isinstance(tree, int):
        return tree
    operator, left, right = tree
    a, b = _value(left, steps), _value(right, steps)
    c = OPERATORS[operator](a, b)
    steps.append((a, operator, b, c))
    return c


def reduce_once(tree: Tree) -> Tree:
    """The tree after its first step."""
    operator, left, right = tree
    if not isinstance(left, int):
        return (operator, reduce_once(left), right)
    if not isinstance(right, int):
        return (operator, left, reduce_once(right))
    return OPERATORS[operator](left, right)


def _text(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree

    def side(child: Tree, is_right: bool) -> str:
        text = _text(child)
        if isinstance(child, int):
            return text
        bracketed = child[0] != "*" and (is_right or operator == "*")
        return f"({text})" if bracketed else text

    return f"{side(left, False)} {operator} {side(right, True)}"


def _canonical(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    operator, left, right = tree
    sides = [_canonical(left), _canonical(right)]
    if operator != "-":
        sides.sort()
    return f"({sides[0]}{operator}{sides[1]})"


@cache
def all_expressions() -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    """Every valid expression of (two, three) operands."""

    def valid(tree: Tree) -> bool:
        steps: list[Operation] = []
        _value(tree, steps)
        return all(0 <= step[3] <= MAX_VALUE for step in steps)

    digits = range(1, 10)
    two = [(op, a, b) for op in OPERATORS for a, b in itertools.product(digits, digits)]
    two = [tree for tree in two if valid(tree)]
    three = [(op, pair, c) for op in OPERATORS for pair in two for c in digits]
    three += [(op, c, pair) for op in OPERATORS for pair in two for c in digits if not (op == pair[0] == "*")]
    return tuple(map(Expression, two)), tuple(Expression(tree) for tree in three if valid(tree))


@cache
def held_out_texts(split: str) -> frozenset[str]:
    return frozenset(expression.text for expression in all_expressions()[1] if expression.held_out(split))


# --- questions ------------------------------------------------------------------------------------------------------

ASK = {
    "en": ("What is {e}?", "Work out {e}.", "Calculate {e}.", "Find the value of {e}."),
    "zh": ("{e} 等于多少？", "计算 {e}。", "求 {e} 的值。", "请算出 {e}。"),
}
NAMES = {"en": ("Tom", "Mia", "Ben", "Ann"), "zh": ("小明", "小红", "小华", "小丽")}
THINGS = {"en": ("apples", "pens", "books", "eggs"), "zh": ("苹果", "铅笔", "本子", "鸡蛋")}
# Word problems by the shape of their expression: its operators from the inside out, and the side of the inner pair.
STORIES = {
    "a*b+c": (
        "{n} has {a} bags of {b} {t} and {c} more. How many {t} are there?",
        "{n}有{a}袋{t}，每袋{b}个，另有{c}个。一共有多少个{t}？",
    ),
    "a*b-c": (
        "{n} has {a} bags of {b} {t} and gives away {c}. How many {t} are left?",
        "{n}有{a}袋{t}，每袋{b}个，送出{c}个。还剩多少个{t}？",
    ),
    "a+b-c": (
        "{n} has {a} {t}, buys {b} and gives away {c}. How many {t} are left?",
        "{n}有{a}个{t}，买了{b}个，送出{c}个。还剩多少个{t}？",
    ),
    "a+b": ("{n} has {a} {t} and buys {b}. How many {t} are there?", "{n}有{a}个{t}，买了{b}个。一共有多少个{t}？"),
    "a*b": ("{n} has {a} bags of {b} {t}. How many {t} are there?", "{n}有{a}袋{t}，每袋{b}个。一共有多少个{t}？"),
}
KINDS = {"sum": 0.64, "story": 0.30, "choice": 0.02, "code": 0.04}  # shares among training and test problems
CODE = {"en": "Write a Python program that prints {e}.", "zh": "写一个 Python 程序，输出 {e} 的值。"}
LETTERS = "AB"


def story_tree(shape: str, a: int, b: int, c: int) -> Tree:
    tree: Tree = (shape[1], a, b)
    return (shape[3], tree, c) if len(shape) > 3 else tree


@dataclass(frozen=True)
class Problem:
    """A question in one language, with all that is needed to write a right or wrong solution."""

    question: str
    language: str
    kind: str  # sum | story | choice | code
    expression: Expression
    choices: tuple[int, ...] = ()

    @property
    def answer(self) -> str:
        """The gold answer: a number, a letter or the output of the program."""
        return LETTERS[self.choices.index(self.expression.value)] if self.choices else str(self.expression.value)

    def row(self, id: str) -> dict:
        domain, verifier = {"code": ("code", "code"), "choice": ("stem", "choice")}.get(self.kind, ("math", "math"))
        return {
            "id": id,
            "question": self.question,
            "prompt": self.question,
            "answer": self.answer,
            "kind": "reasoning",
            "domain": domain,
            "language": self.language,
            "verifier": verifier,
            "thinking": True,
            "source": "toy-world",
            "license": LICENSE,
            "expression": self.expression.text,
        }


@cache
def _readings() -> tuple[list[Expression], ...]:
    """Three-operand expressions by their order of evaluation: precedence (2 + 3 * 4), brackets, left to right."""
    readings: tuple[list[Expression], ...] = ([], [], [])
    for expression in all_expressions()[1]:
        if "(" in expression.text:
            readings[1].append(expression)
        else:
            readings[2 if left_to_right(expression) == expression.value else 0].append(expression)
    return readings


def make_problem(rng: random.Random, kinds: dict[str, float], split: str, held_out: bool = False) -> Problem:
    """Draw one problem whose expression is from the held-out set if ``held_out``, else from the rest."""
    language = rng.choice(LANGUAGES)
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    two = all_expressions()[0]
    while True:
        if kind == "story":
            shape = rng.choice([s for s in STORIES if len(s) > 3 or not held_out])
            a, b, c = (rng.randint(2, 9) for _ in range(3))
            expression = Expression(story_tree(shape, a, b, c))
            if not all(0 < step[3] <= MAX_VALUE for step in expression.steps):
                continue
        else:
            expression = rng.choice(rng.choice(_readings()) if held_out or rng.random() < 0.8 else two)
        if expression.held_out(split) == held_out:
            break
    if kind == "story":
        fields = {"n": rng.choice(NAMES[language]), "t": rng.choice(THINGS[language]), "a": a, "b": b, "c": c}
        return Problem(STORIES[shape][LANGUAGES.index(language)].format(**fields), language, kind, expression)
    if kind == "code":
        return Problem(CODE[language].format(e=expression.text), language, kind, expression)
    question = rng.choice(ASK[language]).format(e=expression.text)
    if kind != "choice":
        return Problem(question, language, kind, expression)
    value = expression.value
    wrong = {left_to_right(expression), value + 1, value - 1, value + 10, value + 2} - {value}
    choices = [value, rng.choice(sorted(w for w in wrong if w >= 0))]
    rng.shuffle(choices)
    options = ", ".join(f"{choice} ({letter})" for letter, choice in zip(LETTERS, choices, strict=True))
    return Problem(f"{question} {options}", language, kind, expression, tuple(choices))


def left_to_right(expression: Expression) -> int:
    """The value without precedence or brackets, as the walkthrough's o1 computes it: 2 + 3 * 4 = 20."""
    return left_to_right_steps(expression)[-1][3]


def left_to_right_steps(expression: Expression) -> list[Operation]:
    operands, operators = [], []
    for token in expression.text.replace("(", "").replace(")", "").split():
        (operators if token in OPERATORS else operands).append(token)
    steps: list[Operation] = []
    total = int(operands[0])
    for operator, operand in zip(operators, operands[1:], strict=True):
        result = OPERATORS[operator](total, int(operand))
        steps.append((total, operator, int(operand), result))
        total = result
    return steps


def problem_stream(seed: int | str, kinds: dict[str, float], split: str, held_out: bool = False) -> Iterator[Problem]:
    """Yield distinct questions until the world is exhausted. If ``held_out``, the walkthrough's question is first."""
    rng = random.Random(f"problems-{seed}-{held_out}")
    seen: set[str] = set()
    if held_out:
        first = Problem("What is 2 + 3 * 4?", "en", "sum", Expression(("+", 2, ("*", 3, 4))))
        seen.add(first.question)
        yield first
    while True:
        problem = make_problem(rng, kinds, split, held_out)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


# --- worked solutions -----------------------------------------------------------------------------------------------

OPENERS = {
    "en": ("First work out", "I start with", "We begin with", "Let me compute"),
    "zh": ("先算", "首先计算", "我们先求", "让我算"),
}
FOLLOWERS = {"en": ("Then", "Next comes", "After that", "Now"), "zh": ("再算", "然后", "接着算", "最后")}
STOP = {"en": ".", "zh": "。"}
PROGRAM = "print("


def equation(step: Operation) -> str:
    a, operator, b, c = step
    return f"{a} {operator} {b} = {c}"


def write_reasoning(
    steps: list[Operation], language: str, rng: random.Random | None = None, switch: float = 0.0, choice: str = ""
) -> str:
    """One sentence per step; the last one has the letter of ``choice``, if given. With ``rng``, the phrasing varies and
    each sentence is in the other language with probability ``switch``, as in the base corpus and in R1-Zero's
    reasoning. Without ``rng``, the style is the readable one."""
    sentences = []
    for i, step in enumerate(steps):
        spoken = language
        if rng is not None and rng.random() < switch:
            spoken = LANGUAGES[1 - LANGUAGES.index(language)]
        if rng is None:
            lead = {"en": ("I start with", "Then"), "zh": ("让我算", "然后")}[spoken][min(i, 1)]
        else:
            lead = rng.choice((FOLLOWERS if i else OPENERS)[spoken])
        mark = f" ({choice})" if choice and i == len(steps) - 1 else ""
        sentences.append(f"{lead} {equation(step)}{mark}{STOP[spoken]}")
    return " ".join(sentences)


def write_summary(answer: str, language: str) -> str:
    """The closing sentence with the final answer; a program is written without a sentence."""
    if answer.startswith(PROGRAM):
        return answer
    return f"The answer is {answer}." if language == "en" else f"答案是 {answer}。"
