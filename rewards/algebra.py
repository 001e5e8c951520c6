"""Runs math-verify in a worker process for pairs that `rewards.equality` cannot decide."""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

CONFIGS = (LatexExtractionConfig(), ExprExtractionConfig())


def verify_pair(pair: list[str]) -> bool | None:
    """Whether math-verify finds the answer equal to the gold answer; None if it cannot parse the gold answer.

    Its own time limits are off: they need SIGALRM, and the parent kills this process at its limit anyway.
    """
    gold, answer = (
        parse(f"${text}$", CONFIGS, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None)
        for text in pair
    )
    if not gold:
        return None
    return bool(answer) and verify(gold, answer, timeout_seconds=None)
