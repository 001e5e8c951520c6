"""Settings that cannot work are refused where they are read, by the name of the key and with what to write."""

import dataclasses
import math
import typing
from typing import Annotated

import rewards
from rewards import CodeReward, CosineReward, JudgeReward, OverlongReward, RepetitionReward
from rewards.settings import Range

import pytest

GIVEN = {"CosineReward": {"max_length": 10}, "OverlongReward": {"max_length": 10, "cache": 2}}
GIVEN |= {"PistonSandbox": {"url": "http://localhost:2000"}}
SETTINGS = [getattr(rewards, name) for name in rewards.__all__ if dataclasses.is_dataclass(getattr(rewards, name))]
SETTINGS = [kind for kind in SETTINGS if isinstance(kind, type) and kind is not rewards.Completion]


def numbers(kind):
    """The names of a class's numeric settings, which all have a range."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = next(iter(typing.get_args(hints[field.name])), hints[field.name])  # of `... | None`
        hint = hints[field.name] if typing.get_origin(hints[field.name]) is Annotated else hint
        assert hint not in (int, float), f"{kind.__name__}.{field.name} has no range"
        if field.init and typing.get_origin(hint) is Annotated:
            yield field.name


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_no_number_of_a_reward_may_be_of_another_type_or_not_finite(kind):
    given = GIVEN.get(kind.__name__, {})
    kind(**given)
    for name in numbers(kind):
        for value in (True, "3", math.nan, math.inf, -math.inf, [1]):
            with pytest.raises(ValueError, match=f"`{name}` is .*; write "):
                kind(**given | {name: value})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RepetitionReward(ngram_size=0), "`ngram_size` is 0; write at least 1"),
        (lambda: RepetitionReward(max_penalty=1), "`max_penalty` is 1; write at most 0"),
        (lambda: CosineReward(0), "`max_length` is 0; write at least 1"),
        (lambda: CosineReward(9, right=(0.5, math.nan)), r"`right` is \(0.5, nan\); write 2 finite numbers"),
        (lambda: CosineReward(9, wrong=(0.5,)), r"`wrong` is \(0.5,\); write 2 finite numbers"),
        (lambda: OverlongReward(-5, 0), "`max_length` is -5; write at least 1"),
        (lambda: OverlongReward(5, -1), "`cache` is -1; write at least 0"),
        (lambda: OverlongReward(5, 6), "`cache` is 6; write at most `max_length`, which is 5"),
        (lambda: JudgeReward(timeout=0), "`timeout` is 0; write a number above 0"),
        (lambda: JudgeReward(concurrency=1.5), "`concurrency` is 1.5; write a whole number"),
        (lambda: CodeReward(workers=0), "`workers` is 0; write at least 1"),
        (lambda: CodeReward(mode="some"), "`mode` is 'some'; write one of all, share"),
        (lambda: CodeReward(seconds=0.0), "`seconds` is 0.0; write a number above 0"),
    ],
)
def test_what_cannot_work_is_told_with_what_can(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "told"),
    [
        (Range(1), (1, 10**9), (0, math.inf, math.nan), "at least 1"),
        (Range(high=0), (0, -9), (0.1, -math.inf), "at most 0"),
        (Range(), (0, -9), (math.nan,), "a finite number"),
        (Range(0, 1), (0, 1), (-0.1, 1.1), "a number from 0 to 1"),
        (Range(0, 1, open=True), (0.1, 1), (0, 1.1), "a number from 0 to 1, but not 0"),
        (Range(0, open=True), (0.1,), (0,), "a number above 0"),
    ],
)
def test_ranges(allowed, inside, outside, told):
    assert [value in allowed for value in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)
    assert str(allowed) == told
