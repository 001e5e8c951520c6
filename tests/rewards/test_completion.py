from rewards import parse, text_of
from rewards.completion import prompt_text

import pytest

WALKTHROUGH = "|special_token| 3 * 4 = 12, 2 + 12 = 14 |special_token| Summary: The answer is 14."


@pytest.mark.parametrize(
    "text, reasoning, summary, answer, complete",
    [
        ("14", None, "14", "14", True),
        ("<think> a </think> <answer> 14 </answer>", "a", "14", "14", True),
        ("<think>a</think>\nThe answer is 14.", "a", "The answer is 14.", "The answer is 14.", True),
        ("<think>先算 3 * 4 = 12 。</think>\n答案是 14 。", "先算 3 * 4 = 12 。", "答案是 14 。", "答案是 14 。", True),
        ("<think> 14", "14", "", None, False),
        ("<think> \\boxed{14} </think>", "\\boxed{14}", "", None, True),
        ("<think><answer>14</answer></think> 15", "<answer>14</answer>", "15", "15", True),
        ("a</think> 14", "a", "14", "14", True),
        ("<think>a</think> b <think> \\boxed{4}", "a\n\\boxed{4}", "b", None, False),
        ("<think>a</think> \\boxed{5} </think> \\boxed{6}", "a", "\\boxed{6}", None, True),
        ("<think>a</think> <think>b</think> 6", "a\nb", "6", "6", True),
        ("<answer>1</answer> <answer>2</answer>", None, "1 2", None, True),
        ("<answer>2</answer> <answer>2</answer>", None, "2 2", "2", True),
        ("<think>a</think> <answer> 14", "a", "14", "14", False),
        ("<think>a</think> <!-- \\boxed{14} --> 15", "a", "<!-- \\boxed{14} --> 15", "15", True),
        ("", None, "", None, True),
        ("<think></think>", "", "", None, True),
    ],
)
def test_parts(text, reasoning, summary, answer, complete):
    parts = parse(text)
    assert (parts.reasoning, parts.answer, parts.complete) == (reasoning, answer, complete)
    assert parts.summary.split() == summary.split()


def test_a_cut_off_reasoning_behind_a_prefilled_tag_is_no_answer():
    assert parse("3 * 4 = 12, so \\boxed{14}", prefilled=True).answer is None
    assert parse("3 * 4 = 12 </think> 14", prefilled=True).answer == "14"


def test_the_paper_s_pattern_with_one_special_token_is_the_same_pattern():
    token = ("|special_token|", "|special_token|")
    ours = WALKTHROUGH.replace("|special_token|", "<think>", 1).replace("|special_token|", "</think>")
    assert parse(WALKTHROUGH, think=token) == parse(ours)
    assert parse(WALKTHROUGH, think=token).reasoning == "3 * 4 = 12, 2 + 12 = 14"


@pytest.mark.parametrize(
    "completion, text",
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "a"}], "a"),
        (
            [
                {"role": "assistant", "content": "call"},
                {"role": "tool", "content": "4"},
                {"role": "assistant", "content": "b"},
            ],
            "b",
        ),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "content": "b", "reasoning_content": "a"}], "<think>a</think>b"),
        ([], ""),
        (None, ""),
    ],
)
def test_every_shape_that_trl_passes(completion, text):
    assert text_of(completion) == text


def test_a_completion_of_no_known_shape_is_an_error():
    with pytest.raises(TypeError, match="int"):
        text_of(7)


def test_prompt_text_is_the_last_thing_the_user_said():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert prompt_text(messages) == "c"
    assert prompt_text("c") == "c"
