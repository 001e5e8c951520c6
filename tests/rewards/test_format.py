import pickle
import time

from rewards import (
    FormatReward,
    accuracy_reward,
    code_reward,
    format_reward,
    is_well_formed,
    language_consistency_reward,
)

import pytest

GOOD = [
    "<think>a</think><answer>b</answer>", "<think> a </think> <answer> b </answer>",
    "\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", "<think>a</think><answer>∅</answer>",
]  # fmt: skip
BAD = [
    "", "b", "<think>a</think>", "<answer>b</answer>", "<answer>b</answer><think>a</think>",
    "<think></think><answer>b</answer>", "<think> \n </think><answer>b</answer>", "<think>a</think><answer> </answer>",
    "<think>\u200b</think><answer>b</answer>", "x<think>a</think><answer>b</answer>",
    "<think>a</think>x<answer>b</answer>", "<think>a</think><answer>b</answer>x", "<think>a<answer>b</answer>",
    "<think>a</think><answer>b</answer><answer>c</answer>", "<think>a</think><think>a</think><answer>b</answer>",
    "<think>a<think>a</think></think><answer>b</answer>", "<think>a<answer>b</answer></think>",
    "<think>a</think><answer>b", "<THINK>a</THINK><answer>b</answer>", "<think>a</think><answer><think>b</answer>",
    "<think>a</think><answer>b</answer>" * 50, "<think>a</think><answer>\u3164</answer>",
    "<think>\u2800\u200d\ufe0f</think><answer>b</answer>", "<think>\x00</think><answer>b</answer>",
    "<think>a<THINK></think><answer>b</answer>", "<think>a</think><answer>b</Answer>c</answer>",
    "<think>.</think><answer>b</answer>", "<think><!-- x --></think><answer>b</answer>",
    "<think>a</think><answer>$$</answer>",
    "<think>a</think><answer>&nbsp;</answer>", "<think>a</think><answer>**</answer>",
    "<think>a</ think ></think><answer>b</answer>", "<think>a<\u200b/think></think><answer>b</answer>",
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_well_formed(text):
    assert is_well_formed(text) and format_reward(completions=[text]) == [1.0]


@pytest.mark.parametrize("text", BAD)
def test_ill_formed(text):
    assert not is_well_formed(text)


@pytest.mark.parametrize(
    "text, thinking, expected",
    [
        ("<think>a</think>\nThe answer is 14.", True, True),
        ("<think>a</think>", True, False),
        ("<think></think> b", True, False),
        ("The answer is 14.", True, False),
        ("b <think>a</think> c", True, False),
        ("<think>a</think> b </think> c", True, False),
        ("<think>a</think> <answer>b</answer>", True, False),
        ("Hello!", False, True),
        ("<think>a</think> Hello!", False, False),
        ("<think></think>Hello!", False, False),
        (" ", False, False),
    ],
)
def test_think_then_summary(text, thinking, expected):
    assert is_well_formed(text, "think", thinking) is expected
    assert FormatReward(style="think")(completions=[text], thinking=[thinking]) == [float(expected)]


def test_a_template_that_opens_the_reasoning():
    assert is_well_formed("a</think> b", "think", prefilled=True)
    assert is_well_formed("a</think><answer>b</answer>", "r1_zero", prefilled=True)
    assert not is_well_formed("<think>a</think> b", "think", prefilled=True)
    assert not is_well_formed("a</think> b", "think")


def test_a_prompt_that_opens_the_reasoning_is_seen_by_all_rewards():
    columns = {"completions": ["so it is</think> <answer>14</answer>"], "prompts": ["2 + 3 * 4? <think>\n"]}
    assert format_reward(**columns) == accuracy_reward(**columns, answer=["14"]) == [1.0]
    assert language_consistency_reward(**columns, language=["zh"]) == [0.0]
    cut = {"completions": ["print(14)"], "prompts": ["Print 14. <think>"]}
    assert code_reward(**cut, answer=["14"]) == [0.0]
    assert code_reward(**cut | {"completions": ["so</think>print(14)"]}, answer=["14"]) == [1.0]


def test_messages_and_settings():
    message = [{"role": "assistant", "content": GOOD[0]}]
    assert format_reward(completions=[message], prompts=[[{"role": "user", "content": "<think></think>"}]]) == [1.0]
    assert pickle.loads(pickle.dumps(FormatReward(style="think"))).style == "think"
    with pytest.raises(ValueError, match="r1_zero, think"):
        FormatReward(style="r1")


def test_it_is_linear():
    start = time.process_time()
    blank = "<think>" + "\u3164" * 400_000 + "</think>"
    long = "<think>" + "a " * 200_000 + "</think><answer>b</answer>"
    for text in ("<think>" * 57_000, long, blank, "<" * 400_000, "<" + " " * 400_000, "< t" * 130_000):
        is_well_formed(text)
    assert time.process_time() - start < 10  # 0.1 s; what is quadratic takes minutes
