"""The prompts of the pipeline, each with its source. User text is joined, never formatted: `\\boxed{}` has braces."""

from __future__ import annotations

# arXiv 2501.12948v1, Table 1. The question replaces "prompt".
R1_ZERO_PREFIX = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think> <answer> answer here </answer>. User: "
)
R1_ZERO_SUFFIX = " Assistant:"


def r1_zero_prompt(question: str) -> str:
    """R1-Zero's training prompt: a plain string for a base model, no chat template."""
    return R1_ZERO_PREFIX + question + R1_ZERO_SUFFIX


# The walkthrough's few-shot prompting with long chains of thought, and its direct prompting with verification.
FEW_SHOT_PROBLEM, FEW_SHOT_SOLUTION = "Problem: ", "\nSolution:"
DIRECT_SUFFIX = " Please reason step by step and check your answer."


def few_shot_prompt(examples: list[tuple[str, str]], question: str) -> str:
    """Worked (question, solution) pairs, then the question to be solved in the same shape."""
    pages = [f"{FEW_SHOT_PROBLEM}{asked}{FEW_SHOT_SOLUTION} {solved}\n" for asked, solved in examples]
    return "".join(pages) + FEW_SHOT_PROBLEM + question + FEW_SHOT_SOLUTION


def direct_prompt(question: str) -> str:
    return question + DIRECT_SUFFIX + "\n"
