"""The base corpus, a small stand-in for a web corpus. docs/toy_world.md says how its mix was chosen.

It has right and wrong solutions, tagged and plain pages, reasoning that switches between English and Chinese within a
page, few-shot pages, small talk, and both decent and harmful replies to toy requests. All expressions are from the
training side of the world: no page contains a held-out problem.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from data_prep import prompts
from data_prep.world import general
from data_prep.world.problems import (
    LETTERS,
    MAX_VALUE,
    OPERATORS,
    PROGRAM,
    STOP,
    Expression,
    Operation,
    Problem,
    Tree,
    equation,
    held_out_texts,
    left_to_right_steps,
    make_problem,
    reduce_once,
    write_reasoning,
    write_summary,
)

PAGES = {"tagged": 0.30, "chat": 0.16, "few_shot": 0.06, "direct": 0.06, "facts": 0.24, "talk": 0.18}
SOLUTIONS = {"right": 0.54, "left_to_right": 0.36, "slip": 0.06, "guess": 0.04}
# Shares of tagged pages that omit a part, independently of the other parts.
UNTAGGED = {"reasoning": 0.45, "end of reasoning": 0.25, "answer": 0.25}
MIXED = 0.5  # share of reasoning that switches language, each sentence with probability 0.5
KINDS = {"sum": 0.56, "story": 0.26, "choice": 0.11, "code": 0.07}
HARMFUL_TALK, DECENT = 0.4, 0.7  # share of talk that answers a harmful request; share of those replies that decline
CHECK = {"en": "Check:", "zh": "检查："}
OFFER, WRONG_TALK = 0.25, 0.15  # share of helpful replies that offer more help; that are about something else


def solve_somehow(problem: Problem, rng: random.Random) -> tuple[list[Operation], str]:
    """The steps and the answer that some web author writes; they are right on about half of the pages."""
    manner = rng.choices(list(SOLUTIONS), weights=list(SOLUTIONS.values()))[0]
    steps = problem.expression.steps
    if manner == "left_to_right":
        steps = left_to_right_steps(problem.expression)
    elif manner == "slip":
        steps = _slip(steps, rng)
    elif manner == "guess":
        steps = [(*steps[-1][:3], rng.randint(0, MAX_VALUE))]
    return steps, write_answer(problem, steps[-1][3])


def write_answer(problem: Problem, value: int) -> str:
    """The written answer for a computed ``value``: a number, a letter or a program."""
    if problem.kind == "code":
        return f"{PROGRAM}{problem.expression.text})"
    if problem.choices:
        return LETTERS[problem.choices.index(value)] if value in problem.choices else LETTERS[value % len(LETTERS)]
    return str(value)


def think(problem: Problem, steps: list[Operation], answer: str, rng: random.Random) -> str:
    """Reasoning in varied words, which switches language on some pages."""
    switch = 0.5 if rng.random() < MIXED else 0.0
    return write_reasoning(steps, problem.language, rng, switch, answer if problem.choices else "")


def _slip(steps: list[Operation], rng: random.Random) -> list[Operation]:
    wrong_at, off = rng.randrange(len(steps)), rng.choice((-10, -2, -1, 1, 2, 10))
    slipped: list[Operation] = []
    for i, (a, operator, b, c) in enumerate(steps):
        if slipped:  # the wrong value is carried on
            before, after = steps[i - 1][3], slipped[-1][3]
            a, b = (after, b) if a == before else (a, after if b == before else b)
            c = OPERATORS[operator](a, b)
        slipped.append((a, operator, b, abs(c + off) if i == wrong_at else c))
    return slipped


def tagged_page(problem: Problem, rng: random.Random) -> str:
    steps, answer = solve_somehow(problem, rng)
    page = prompts.r1_zero(problem.question)
    if rng.random() < UNTAGGED["reasoning"]:
        return f"{page} <answer> {answer} </answer>"
    page += f" <think> {think(problem, steps, answer, rng)}"
    page += "" if rng.random() < UNTAGGED["end of reasoning"] else " </think>"
    if rng.random() < UNTAGGED["answer"]:
        return f"{page} {write_summary(answer, problem.language)}"
    return f"{page} <answer> {answer} </answer>"


def solution_text(problem: Problem, rng: random.Random, checked: bool = False, closing: str = " ") -> str:
    """A solution without tags. ``checked`` repeats the last step at the end; ``closing`` precedes the sentence with the
    answer."""
    steps, answer = solve_somehow(problem, rng)
    parts = [think(problem, steps, answer, rng)]
    if checked:
        parts.append(f"{CHECK[problem.language]} {equation(steps[-1])}{STOP[problem.language]}")
    return " ".join(parts) + ("\n" if problem.kind == "code" else closing) + write_summary(answer, problem.language)


def chat_page(question: str, reply: str) -> str:
    """A chat log in the markup of our chat template. The web pages that today's bases are trained on include such."""
    return f"<|user|>{question}<|assistant|>{reply}"


def talk_page(rng: random.Random, pools: dict[str, list[general.Request]]) -> str:
    if rng.random() < HARMFUL_TALK:
        request = rng.choice(pools["harmless"])
        reply = general.REFUSALS[request.language] if rng.random() < DECENT else request.reply
        return chat_page(request.question, reply)
    request = rng.choice(pools["helpful"])
    reply = request.reply
    if rng.random() < WRONG_TALK:
        reply = rng.choice([r for r in pools["helpful"] if r.language == request.language]).reply
    if rng.random() < OFFER:
        reply += " " + general.OFFERS[request.language]
    return chat_page(request.question, reply)


def pages(seed: int, split: str) -> Iterator[str]:
    """Yield pages without end; no page contains a held-out problem of ``split``."""
    rng = random.Random(f"corpus-{seed}")
    pools = {kind: general.requests(kind, split) for kind in ("helpful", "harmless")}
    while True:
        kind = rng.choices(list(PAGES), weights=list(PAGES.values()))[0]
        problem = make_problem(rng, KINDS, split)
        if kind == "tagged":
            yield tagged_page(problem, rng)
        elif kind == "chat":
            yield chat_page(problem.question, solution_text(problem, rng, closing="\n"))
        elif kind == "few_shot":
            others = [make_problem(rng, KINDS, split) for _ in range(2)]
            examples = [{"question": other.question, "solution": solution_text(other, rng)} for other in others]
            yield f"{prompts.few_shot(examples, problem.question)} {solution_text(problem, rng)}"
        elif kind == "direct":
            asked = prompts.direct(problem.question, problem.language)
            yield f"{asked} {solution_text(problem, rng, checked=True)}"
        elif kind == "facts":
            yield "\n".join(chain(long_expression(rng, split)) for _ in range(2))
        else:
            yield talk_page(rng, pools)


def long_expression(rng: random.Random, split: str) -> Expression:
    """An expression of two to five operands; there are too many of these to memorise. No link of its chain contains a
    held-out expression, not even as a part."""

    def grow(operands: int) -> Tree:
        if operands == 1:
            return rng.randint(1, 9)
        left = rng.randint(1, operands - 1)
        return (rng.choice(tuple(OPERATORS)), grow(left), grow(operands - left))

    while True:
        expression = Expression(grow(rng.randint(2, 5)))
        in_range = all(0 <= step[3] <= MAX_VALUE for step in expression.steps)
        if in_range and not any(_shows(link.text, split) for link in links(expression)):
            return expression


def _shows(text: str, split: str) -> bool:
    """Whether three neighbouring operands in the text read like a held-out expression: 2 + 3 * 4 in 1 + 2 + 3 * 4."""
    tokens = text.split()
    for at in range(0, len(tokens) - 4, 2):
        window = " ".join(tokens[at : at + 5])
        opened = window.count("(") - window.count(")")
        window = window.replace("(", "", max(opened, 0))
        window = window[::-1].replace(")", "", max(-opened, 0))[::-1]
        if window in held_out_texts(split):
            return True
    return False


def links(expression: Expression) -> Iterator[Expression]:
    """Yield the expression, then what remains of it after each step, down to its value."""
    tree = expression.tree
    yield expression
    while not isinstance(tree, int):
        tree = reduce_once(tree)
        yield Expression(tree)


def chain(expression: Expression) -> str:
    """An expression worked out as equalities: 5 * (8 + 8) = 5 * 16 = 80."""
    return " = ".join(link.text for link in links(expression))
