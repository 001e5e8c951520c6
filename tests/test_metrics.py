"""Figures of an evaluation against numbers worked by hand."""

import math

from recipes.tools.metrics import majority_vote, mean_and_stderr, paired_difference, pass_at_k, win_rate

import pytest


def test_mean_and_stderr_are_clustered_by_problem() -> None:
    # Problem means 1, 0.5, 0: mean 0.5, variance (0.25 + 0 + 0.25) / 2 = 0.25, error 0.5 / sqrt(3). Taken as nine
    # independent samples, the error would be only sqrt(0.2778) / 3 = 0.176.
    mean, stderr = mean_and_stderr([[1, 1, 1, 1], [1, 0, 1, 0], [0]])
    assert mean == pytest.approx(0.5)
    assert stderr == pytest.approx(0.5 / math.sqrt(3))


def test_mean_and_stderr_of_little() -> None:
    assert mean_and_stderr([]) == (None, None)
    assert mean_and_stderr([[], []]) == (None, None)
    assert mean_and_stderr([[1, 0]]) == (0.5, None)


def test_paired_difference_takes_difficulty_out() -> None:
    # Differences 0.5, 0.5, 0.5 on shared problems: no error at all, though both lists spread widely.
    first = {"a": 1.0, "b": 0.75, "c": 0.5, "only here": 1.0}
    second = {"a": 0.5, "b": 0.25, "c": 0.0, "only there": 0.0}
    assert paired_difference(first, second) == (pytest.approx(0.5), pytest.approx(0.0))
    # Differences 1, 0: mean 0.5, stdev sqrt(0.5), error sqrt(0.5) / sqrt(2) = 0.5.
    assert paired_difference({"a": 1, "b": 0}, {"a": 0, "b": 0}) == (pytest.approx(0.5), pytest.approx(0.5))
    assert paired_difference({"a": 1}, {"b": 1}) == (None, None)


def test_pass_at_k_is_unbiased() -> None:
    assert pass_at_k(4, 1, 1) == pytest.approx(0.25)
    # Two of four right, two drawn: 1 - C(2, 2) / C(4, 2) = 5/6.
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(16, 0, 16) == 0.0
    assert pass_at_k(16, 1, 16) == 1.0
    with pytest.raises(ValueError, match="pass@16 from 4 samples"):
        pass_at_k(4, 1, 16)


def test_majority_vote() -> None:
    assert majority_vote(["14", "20", "14"], [True, False, True]) == 1.0
    assert majority_vote(["20", "20", "14"], [False, False, True]) == 0.0
    assert majority_vote(["20", "14", None, None, None], [False, True, False, False, False]) == 0.5
    assert majority_vote(["20", "20", "14", "14.0"], [False, False, True, True]) == 0.5
    assert majority_vote(["14", "20", "15"], [True, False, False]) == pytest.approx(1 / 3)
    assert majority_vote([None, None], [False, False]) == 0.0
    wrong_leads = ["0.5", "\\frac12", "\\frac{1}{2}", "7", "7"]
    assert majority_vote(wrong_leads, [False, False, False, True, True]) == 0.0


def test_win_rate_counts_ties_half() -> None:
    assert win_rate([(3, 1), (2, 2), (0, 1), (3, 2)]) == pytest.approx(2.5 / 4)
    assert win_rate([]) is None
