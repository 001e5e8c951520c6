"""50,000 strings through every rule: no exception, no call over its limit."""

import random
import time

from rewards import format_reward, gold_error, is_well_formed, language_consistency, parse
from rewards.accuracy import grade
from rewards.code import program_of
from rewards.equality import EqualityRule, compare
from rewards.gym import answer_of
from rewards.judge import refusal
from rewards.statements import chosen, statements, unstated

import pytest
from cases import DIFFERENT, EQUIVALENT, pairs

PIECES = [
    *"0123456789abcxyzABCD +-*/^_=<>()[]{}|.,;:!?%$&#'\"\\\n~`", "<think>", "</think>", "<answer>", "</answer>",
    "\\boxed{", "\\frac", "\\sqrt", "\\text{", "\\left(", "\\right)", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\",
    "**", "$$", "```python\n", "```", "The answer is ", "答案是", "，", "。", " or ", " and ", " km", "\u200b",
    "\ufeff", "½", "²", "√", "\x00", "\ud800", "9^{9^9}", "https://a.b/c",
    "é", "語", "<!--", "-->", "\\pm", "\\cup",
    "\\in", "\\mathbb{Z}", "1e999", "0.\\overline{3}", "....",
]  # fmt: skip
ANSWERS = [side for pair in pairs(EQUIVALENT) + pairs(DIFFERENT) for side in pair]
LIMIT = 5.0  # seconds of CPU; a call takes well under a millisecond


def strings(count: int, seed: int):
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.6:
            yield "".join(rng.choices(PIECES, k=rng.randint(0, 40)))
        elif kind < 0.9:  # a real answer with a few characters changed
            text = list(rng.choice(ANSWERS))
            for _ in range(rng.randint(1, 3)):
                text.insert(rng.randint(0, len(text)), rng.choice(PIECES))
            yield rng.choice(("", "<think>a</think> ", "\\boxed{", "The answer is ")) + "".join(text)
        else:
            yield rng.choice(PIECES) * rng.randint(50, 400)


def through_every_rule(text: str, gold: str) -> None:
    parts = parse(text)
    answer = parts.answer or ""
    statements(answer), unstated(answer, False), chosen(answer), program_of(text), refusal(answer)
    is_well_formed(text), is_well_formed(text, "think"), format_reward(completions=[text]), answer_of(text, gold)
    assert 0.0 <= language_consistency(text, "en") <= 1.0
    assert compare(gold, answer) in ("equal", "different", "unknown")
    assert compare(text, gold) in ("equal", "different", "unknown")


@pytest.mark.parametrize("count, seed", [(3_000, 0), pytest.param(49_000, 1, marks=pytest.mark.slow)])
def test_no_string_breaks_or_holds_up_a_rule(count, seed):
    rng = random.Random(seed)
    slowest = (0.0, "")
    language_consistency("Sumamos los dos números para terminar.", "en")  # loads the model of py3langid
    for text in strings(count, seed):
        start = time.process_time()
        through_every_rule(text, rng.choice(ANSWERS))
        slowest = max(slowest, (time.process_time() - start, text))
    assert slowest[0] < LIMIT, slowest


@pytest.mark.slow
def test_no_string_breaks_the_slow_path():
    texts = list(strings(400, 2))
    rng = random.Random(2)
    golds = [rng.choice(ANSWERS) for _ in texts]
    assert set(grade(texts, golds, ["math"] * len(texts), EqualityRule())) <= {True, False, None}
    assert {gold_error(text) is None for text in texts[:300]} == {True, False}
