"""Which answer a completion gives to a task of reasoning-gym, and what happens without that library."""

import importlib.util
import time

from data_prep.runs import commands
from rewards import GymReward, gym_reward, is_correct
from rewards.gym import GymMissing, answer_of

import pytest

GRID = "1 2\n3 4"


@pytest.mark.parametrize(
    ("text", "gold", "answer"),
    [
        (f"<answer>\n{GRID}\n</answer>", GRID, GRID),
        ("<answer>\n  1 2\n 3 4\n</answer>", " 1 2\n 3 4", " 1 2\n 3 4"),  # with the white space of the gold one
        (GRID, GRID, GRID),
        (f"Here it is.\n```\n{GRID}\n```\nHope it helps.", GRID, GRID),
        (f"The final answer is:\n\n{GRID}\n\nHope it helps.", GRID, GRID),
        ("The answer is 5.\nThis is since 2 + 3 = 5.", "7", "5"),
        ("**Answer: 5**", "5", "5"),
        ("**Answer:** x**2", "x**2", "x**2"),
        ("The answer is **5**.", "5", "5"),
        ("Answer: _ Q\nQ _", "_ Q\nQ _", "_ Q\nQ _"),
        ("Thus $\\boxed{\\text{True}}$.", "True", "True"),
        ("<answer>\\boxed{5}</answer>", "5", "5"),
        ("<answer>I am home.</answer>", "I am home.", "I am home."),
        ('<answer>["fill A", "pour A->B"]</answer>', "", '["fill A", "pour A->B"]'),
        ("<answer>5</answer> or <answer>6</answer>", "5", None),
        ("The answer is 4. The answer is 5.", "5", None),
        ("The answer is 4.\nThe answer is 5.", "5", None),
        ("\\boxed{4} \\boxed{5}", "5", None),
        ("<answer>5</answer> \\boxed{6}", "5", None),
        ("**Final Answer:**\n\n5", "5", "5"),
        ("### Final Answer\n\n5", "5", "5"),
        ("**Final Answer**\n5", "5", "5"),
        ("- **Answer**: 5", "5", "5"),
        ("The answer is:\n\n\\[\n5\n\\]", "5", "5"),
        ("The answer is $$5$$", "5", "5"),
        ('The answer is *5*, "6".', "5", '*5*, "6"'),
        ('The answer is *"5"*.', "5", "5"),
        (f"The answer is:\n```text\n{GRID}\n```\nEach row is right.", GRID, GRID),
        (f"Final Answer:\n\n~~~\n{GRID}\n~~~\n\nDone.", GRID, GRID),
        ("#### Step 1\nAdd.\n\\boxed{5}", "5", "5"),
        ("2 + 3\n#### 5", "5", "5"),
        ("The answer is found by adding 2 and 3.\n\nThe final answer is $\\boxed{5}$.", "5", "5"),
        ("The answer is 5. So the final answer is 5.", "5", "5"),
        ("\\boxed{5}\n\nFinal answer: 7", "5", None),
        ("<answer>5</answer>\nThe answer is 7.", "5", None),
        ("The answer is 5.\n#### 7", "5", None),
        ("I doubt that the answer is 5.", "5", None),
        ("I doubt that the answer is 4. The answer is 5.", "5", "5"),
        ("\\boxed{5} \\boxed{5", "5", None),
        ("", "5", None),
    ],
)
def test_the_answer_of_a_completion(text: str, gold: str, answer: str | None) -> None:
    assert answer_of(f"<think>Is it 9? The answer is 9.</think>{text}", gold) == answer


@pytest.mark.parametrize(
    "part", [r"\boxed{", "```\n", "```a\nb\n", "the answer is 5\n", "**answer:** ", "**", "\\[", "\n"]
)
def test_no_text_takes_long(part: str) -> None:
    until = time.process_time() + 5
    answer_of("<think>x</think>" + part * (60_000 // len(part)), "5")
    assert time.process_time() < until


def test_an_answer_within_the_reasoning_is_none() -> None:
    assert answer_of("<think><answer>5</answer>", "5") is None


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    row = {"completions": ["5"], "answer": ["5"], "entry": ["{}"]}
    assert GymReward()(**row, verifier=["math"]) == [None]
    with pytest.raises(GymMissing, match="requirements-smol.txt"):
        gym_reward(**row, verifier=["gym"])
    with pytest.raises(SystemExit) as ended:
        commands.run(lambda argv: is_correct("5", "5", "gym", entry="{}"), [])
    assert ended.value.code == 2 and "pip install -r requirements-smol.txt" in capsys.readouterr().err


def test_what_is_missing_or_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="columns `answer` and `entry`"):
        gym_reward(completions=["5"], answer=["5"])
    with pytest.raises(ValueError, match="`credit` is 'some'; write "):
        GymReward(credit="some")
