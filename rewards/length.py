"""Length rewards. Lengths are in tokens, from `completion_ids`, which TRL passes to every reward."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from rewards.accuracy import accuracy_reward
from rewards.settings import Count, Finite, Positive, Range, check


@dataclass(frozen=True)
class LengthReward:
    """Kimi k1.5's length reward (arXiv 2501.12599, Section 2.3.3), within each prompt's group.

    lambda = 0.5 - (length - min) / (max - min). A correct completion gets lambda, and an incorrect one gets
    min(0, lambda). If all lengths of the group are equal, all get 0. Completions that cannot be graded get None.

    Args:
        correctness: The reward that returns 1.0 for correct completions.
    """

    correctness: Callable = field(default=accuracy_reward)
    __name__ = "length_reward"
    whole_groups = True  # lengths are compared within a group, so one process needs the whole group

    def __call__(self, completions: list, completion_ids: list, prompts: list, **columns: Any) -> list[float | None]:
        right = self.correctness(completions=completions, prompts=prompts, **_silent(columns))
        groups: dict[str, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            groups[str(prompt)].append(row)
        rewards: list[float | None] = [None] * len(completions)
        for rows in groups.values():
            lengths = {row: len(completion_ids[row]) for row in rows}
            low, high = min(lengths.values()), max(lengths.values())
            for row in rows:
                if right[row] is not None:
                    score = 0.5 - (lengths[row] - low) / (high - low) if high > low else 0.0
                    rewards[row] = score if right[row] == 1.0 else min(0.0, score)
        return rewards


@dataclass(frozen=True)
class CosineReward:
    """The cosine length reward (arXiv 2502.03373, C.1): v_min + (v_max - v_min) / 2 * (1 + cos(pi * length / max)).

    The reward of correct completions falls from `right[1]` (short) to `right[0]` (at `max_length`). That of incorrect
    ones rises from `wrong[0]` to `wrong[1]`, so they may think longer. Lengths are capped at `max_length` tokens. TRL's
    reward of this name does not accept plain-text completions and hangs on some answers.
    """

    max_length: Positive
    wrong: tuple[Finite, Finite] = (-1.0, -0.5)
    right: tuple[Finite, Finite] = (0.5, 1.0)
    correctness: Callable = field(default=accuracy_reward)
    __name__ = "cosine_reward"
    __post_init__ = check

    def __call__(self, completions: list, completion_ids: list, **columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        graded = self.correctness(completions=completions, **_silent(columns))
        for ids, correct in zip(completion_ids, graded, strict=True):
            low, high = self.right if correct == 1.0 else self.wrong[::-1]
            progress = min(len(ids), self.max_length) / self.max_length
            score = low + (high - low) / 2 * (1 + math.cos(math.pi * progress))
            rewards.append(None if correct is None else score)
        return rewards


@dataclass(frozen=True)
class RepetitionReward:
    """max_penalty * (1 - distinct / all n-grams of tokens) (arXiv 2502.03373, C.2), by TRL."""

    ngram_size: Positive = 3
    max_penalty: Annotated[float, Range(high=0)] = -1.0
    __name__ = "repetition_reward"
    __post_init__ = check

    def __call__(self, completion_ids: list, **columns: Any) -> list[float]:
        from trl.rewards import get_repetition_penalty_reward

        return get_repetition_penalty_reward(self.ngram_size, self.max_penalty)(completion_ids=completion_ids)


@dataclass(frozen=True)
class OverlongReward:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), by TRL.

    It is 0 up to `max_length - cache` tokens, falls linearly to -1 at `max_length`, and stays -1.
    """

    max_length: Positive
    cache: Count
    __name__ = "overlong_reward"

    def __post_init__(self) -> None:
        check(self)
        if self.cache > self.max_length:
            raise ValueError(f"`cache` is {self.cache}; write at most `max_length`, which is {self.max_length}")

    def __call__(self, completion_ids: list, **columns: Any) -> list[float]:
        from trl.rewards import get_soft_overlong_punishment

        return get_soft_overlong_punishment(self.max_length, self.cache)(completion_ids=completion_ids)


def _silent(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns without TRL's loggers, because the accuracy reward logs its metrics itself."""
    return {name: value for name, value in columns.items() if name not in ("log_metric", "log_extra")}


length_reward = LengthReward()
