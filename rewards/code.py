"""Code rewards: does the program that a completion gives do what its tests ask for."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rewards.completion import parse, text_of
from rewards.sandbox import LocalSandbox, Provider, SandboxUnavailable

FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n?```|\Z)", re.S)


def program_of(completion: str) -> str | None:
    """The program of a completion: the last fenced block of its answer, else all of the answer."""
    answer = parse(completion).answer
    if answer is None:
        return None
    blocks = [body for tag, body in FENCE.findall(answer) if tag.lower() in ("", "py", "python", "python3")]
    return (blocks[-1] if blocks else answer).strip() + "\n"


@lru_cache(maxsize=4096)
def _output(provider: Provider, program: str, stdin: str) -> str | None:
    run = provider.run(program, stdin)
    return run.stdout if run.exit_code == 0 and run.stopped is None else None


def prints(completion: str, expected: str, stdin: str = "", provider: Provider = LocalSandbox()) -> bool:  # noqa: B008
    """Whether the program of a completion prints what is expected.

    Raises:
        SandboxUnavailable: the program could not be run.
    """
    program = program_of(completion)
    output = _output(provider, program, stdin) if program else None
    return output is not None and output.split("\n")[:-1] == (expected.rstrip("\n") + "\n").split("\n")[:-1]


@dataclass(frozen=True)
class CodeReward:
    """1.0 for a program that passes, else 0.0; None for rows whose verifier is not `code`, or in an outage."""

    provider: Provider = field(default_factory=LocalSandbox)
    __name__ = "code_reward"

    def __call__(self, completions: list, answer: list, verifier: list, log_metric: Any = None, **columns: Any) -> list:
        rewards: list[float | None] = [None] * len(completions)
        try:
            for row, completion in enumerate(completions):
                if verifier[row] == "code":
                    rewards[row] = float(prints(text_of(completion), answer[row], provider=self.provider))
        except SandboxUnavailable:
            if log_metric is None:
                raise
            log_metric("code/outage", 1.0)
            return [None] * len(completions)
        return rewards


code_reward = CodeReward()
