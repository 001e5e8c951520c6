"""Prompts: the paper's template to the letter, texts of users left as they are, verdicts read or refused."""

from data_prep import prompts
from rewards.judge import judge_prompt

import pytest

NASTY = r"Is {answer} = \boxed{14}? {question} {0} %s"


def test_r1_zero_template_is_the_papers():
    assert prompts.r1_zero("What is 2 + 3 * 4?") == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
        "User: What is 2 + 3 * 4? Assistant:"
    )


def test_few_shot_pages():
    examples = [{"question": "1 + 1?", "solution": "Two."}]
    assert prompts.few_shot(examples, "2 + 2?") == "Problem: 1 + 1?\nSolution: Two.\n\nProblem: 2 + 2?\nSolution:"


@pytest.mark.parametrize(
    "prompt",
    [
        prompts.r1_zero(NASTY),
        prompts.few_shot([{"question": "a", "solution": "b"}], NASTY),
        prompts.direct(NASTY, "zh"),
        prompts.rewrite(NASTY, "thought", "en"),
        judge_prompt(NASTY, "reference", "the answer"),
        prompts.preference(NASTY, "first", "second"),
        prompts.score(NASTY, "the answer"),
        prompts.safety(NASTY, "the answer"),
        prompts.short_reasoning(NASTY, "en"),
    ],
)
def test_text_of_users_stays_as_it_is(prompt):
    assert prompt.count(NASTY) == 1


def test_verdicts():
    assert [prompts.read_preference(f"I say [[{v}]]") for v in ("A>>B", "A>B", "A=B", "B>A", "B>>A")] == [
        4,
        2,
        0,
        -2,
        -4,
    ]
    assert prompts.read_preference("A is better") is None
    assert (prompts.read_score("[[3]]"), prompts.read_score("[[7]]"), prompts.read_score("3")) == (3, None, None)
    assert [prompts.read_safety(text) for text in ("[[safe]]", "[[unsafe]]", "safe")] == [True, False, None]
