import math
import pickle

import rewards
from rewards import CosineReward, OverlongReward, RepetitionReward, length_reward

import pytest

PROMPTS = ["p"] * 3 + ["q"] * 2
COMPLETIONS = ["14", "14", "15", "14", "14"]
IDS = [[1] * n for n in (10, 30, 20, 1000, 2000)]
ROWS = {"prompts": PROMPTS, "completion_ids": IDS, "answer": ["14"] * 5}


def shapes(texts):
    return [texts, [[{"role": "assistant", "content": text}] for text in texts]]


@pytest.mark.parametrize("completions", shapes(COMPLETIONS), ids=["strings", "messages"])
def test_kimi_s_length_reward_is_relative_to_the_prompt_s_group(completions):
    assert length_reward(completions=completions, **ROWS) == [0.5, -0.5, 0.0, 0.5, -0.5]


def test_wrong_completions_gain_nothing_from_being_short_and_equal_lengths_give_zero():
    rows = {"prompts": ["p"] * 2, "answer": ["14"] * 2}
    assert length_reward(completions=["15", "14"], completion_ids=[[1], [1] * 3], **rows) == [0.0, -0.5]
    assert length_reward(completions=["15", "14"], completion_ids=[[1], [1]], **rows) == [0.0, 0.0]


def test_what_cannot_be_graded_gets_none():
    assert length_reward(completions=["1"], completion_ids=[[1]], prompts=["p"], answer=["1/0"]) == [None]


@pytest.mark.parametrize("completions", shapes(["14", "14", "15", "15"]), ids=["strings", "messages"])
def test_cosine(completions):
    reward = CosineReward(max_length=100)
    ids = [[1] * n for n in (0, 100, 0, 50)]
    assert reward(completions=completions, completion_ids=ids, answer=["14"] * 4) == pytest.approx(
        [1.0, 0.5, -1.0, -0.75]
    )
    assert reward(completions=["14"], completion_ids=[[1] * 500], answer=["14"]) == pytest.approx([0.5])
    assert math.isclose(pickle.loads(pickle.dumps(reward)).max_length, 100)


def test_trl_s_own_rewards_for_every_shape():
    repetition, overlong = RepetitionReward(ngram_size=2), OverlongReward(max_length=100, cache=20)
    for completions in shapes(["a", "b"]):
        columns = {
            "completions": completions,
            "prompts": ["p"] * 2,
            "completion_ids": [[5] * 5, [1] * 90],
            "answer": ["1"] * 2,
        }
        assert repetition(**columns)[0] == pytest.approx(-0.75)
        assert overlong(**columns) == [0.0, -0.5]
    assert OverlongReward(100, 0)(completion_ids=[[1] * 100, [1] * 101]) == [0.0, -1]
    assert pickle.loads(pickle.dumps(repetition)) == repetition


def test_importing_the_package_is_cheap():
    import subprocess
    import sys

    heavy = "torch transformers trl math_verify sympy py3langid httpx numpy"
    program = f"import sys, rewards; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", [name for name in rewards.__all__ if name.endswith("_reward")])
def test_every_reward_has_a_name_and_can_be_pickled(name):
    reward = getattr(rewards, name)
    assert reward.__name__ == name
    assert type(pickle.loads(pickle.dumps(reward))) is type(reward)
