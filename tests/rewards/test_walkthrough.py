"""The walkthrough's worked numbers: "What is 2 + 3 * 4?", four completions, their rewards and advantages."""

from statistics import mean, stdev

from rewards import accuracy_reward, format_reward, language_consistency_reward

import pytest

COMPLETIONS = [
    "<think> 2 + 3 = 5, 5 * 4 = 20 </think> <answer> 20 </answer>",
    "<think> 3 * 4 = 12, 2 + 12 = 14 </think> <answer> 14 </answer>",
    "14",
    "<think> ...some gibberish reasoning... </think> <answer> 7 </answer>",
]
ROWS = {"answer": ["14"] * 4, "question": ["What is 2 + 3 * 4?"] * 4, "language": ["en"] * 4}


def weighted(weights: dict) -> list[float]:
    scores = {reward: reward(completions=COMPLETIONS, **ROWS) for reward in weights}
    return [sum(weight * scores[reward][row] for reward, weight in weights.items()) for row in range(4)]


def test_rewards_with_accuracy_one_and_format_a_tenth():
    rewards = weighted({accuracy_reward: 1, format_reward: 0.1})
    assert rewards == pytest.approx([0.1, 1.1, 1.0, 0.1])
    assert mean(rewards) == pytest.approx(0.575)


def test_rewards_with_accuracy_one_and_language_a_fifth():
    rewards = weighted({accuracy_reward: 1, language_consistency_reward: 0.2})
    assert rewards[:2] == pytest.approx([0.2, 1.2])


@pytest.mark.parametrize(
    "spread, advantages",
    [
        (lambda rewards: 0.5, [-0.95, 1.05, 0.85, -0.95]),  # the walkthrough rounds it to 0.5
        (lambda rewards: stdev(rewards) + 1e-4, [-0.863, 0.954, 0.773, -0.863]),  # TRL: Bessel-corrected, plus 1e-4
    ],
    ids=["walkthrough", "trl"],
)
def test_advantages(spread, advantages):
    rewards = weighted({accuracy_reward: 1, format_reward: 0.1})
    scale = spread(rewards)
    assert [round((reward - mean(rewards)) / scale, 3) for reward in rewards] == pytest.approx(advantages)
