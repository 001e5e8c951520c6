"""The figures of an evaluation as plain functions of counts and lists, so that each can be checked by hand."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_and_stderr(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Mean over groups of each group's mean, and its standard error clustered by group.

    A group is a problem, its values the scores of the samples drawn for it. Samples of one problem are alike, so the
    spread that counts is that between problems: stdev of the group means / sqrt(groups). (None, None) without groups;
    an error of None with one.
    """
    means = [fmean(group) for group in groups if group]
    if not means:
        return None, None
    return fmean(means), stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def paired_difference(first: dict[str, float], second: dict[str, float]) -> tuple[float | None, float | None]:
    """Mean of first - second over the problems that both have, and its standard error.

    Pairing on the problem takes the spread of difficulty out of the comparison.
    """
    shared = sorted(first.keys() & second.keys())
    return mean_and_stderr([[first[problem] - second[problem]] for problem in shared])


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, unbiased from n >= k samples of which `correct` are right:
    1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, section 2.1).
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} from {n} samples of which {correct} are right is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """cons@n: is the most frequent answer right? Samples without an answer do not vote; where several answers lead,
    the share of them that is right. 0.0 when nobody votes. `correct[i]` says whether `answers[i]` is right.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in leaders) / len(leaders)


def win_rate(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Share of pairs whose first score is the higher, ties half. None without pairs."""
    if not pairs:
        return None
    return fmean(1.0 if first > second else 0.5 if first == second else 0.0 for first, second in pairs)
