"""math-verify, asked in a worker process about what `rewards.equality` cannot decide by itself."""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

CONFIGS = (LatexExtractionConfig(), ExprExtractionConfig())


def verify_pair(pair: list[str]) -> bool | None:
    """Whether math-verify takes the answer for the gold one; None where it cannot parse the gold one.

    Its own time limits are off: they rest on SIGALRM, and the parent kills this process at its limit anyway.
    """
    gold, answer = (
        parse(f"${text}$", CONFIGS, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None)
        for text in pair
    )
    if not gold:
        return None
    return bool(answer) and verify(gold, answer, timeout_seconds=None)
