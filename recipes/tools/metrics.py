"""The metrics of an evaluation as plain functions of counts and lists, so each can be checked by hand."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev

from rewards.equality import EQUAL, compare


def mean_and_stderr(groups: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Mean of the groups' means, and its standard error clustered by group.

    A group is a problem, and its values are the scores of its samples. Samples of one problem are correlated, so the
    error uses the spread between problems: stdev of the group means / sqrt(groups). It is (None, None) without groups;
    the error is None with one group.
    """
    means = [fmean(group) for group in groups if group]
    if not means:
        return None, None
    return fmean(means), stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def paired_difference(first: dict[str, float], second: dict[str, float]) -> tuple[float | None, float | None]:
    """Mean of first - second over the problems that both have, and its standard error.

    Pairing by problem removes the spread of difficulty from the comparison.
    """
    shared = sorted(first.keys() & second.keys())
    return mean_and_stderr([[first[problem] - second[problem]] for problem in shared])


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased probability that at least one of k samples is correct, from n >= k samples of which `correct` are:
    1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, section 2.1).
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} from {n} samples of which {correct} are right is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """cons@n of one problem: 1.0 if the most frequent answer is correct, 0.0 if it is wrong or there are no answers.

    `correct[i]` says whether `answers[i]` is correct. All correct answers are one answer, and wrong answers are merged
    by the reward's own equality. Samples without an answer do not vote. If n answers tie and one is correct, the result
    is 1/n.
    """
    texts = Counter(text for text, right in zip(answers, correct, strict=True) if text is not None and not right)
    wrong: dict[str, int] = {}
    for text, count in texts.items():
        first = next((other for other in wrong if compare(other, text) == EQUAL), text)
        wrong[first] = wrong.get(first, 0) + count
    right, most = sum(correct), max(wrong.values(), default=0)
    if right < most or not right:
        return 0.0
    return 1 / (1 + sum(count == right for count in wrong.values()))


def win_rate(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Share of pairs whose first score is higher; ties count half. None without pairs."""
    if not pairs:
        return None
    return fmean(1.0 if first > second else 0.5 if first == second else 0.0 for first, second in pairs)
