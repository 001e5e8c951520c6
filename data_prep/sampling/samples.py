"""What samplers are told, and what they give back."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Annotated

from data_prep.runs import Stopped
from rewards.settings import Count, NotNegative, Positive, Range, check

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Sample:
    """``finish`` is "stop" (the model ended), "length" (cut at max_tokens), "refused" (the prompt is too long, or a
    server does not take the request: `max_refused`) or "failed" (a server gave nothing, however often it was asked:
    `ServerSettings.failures`). The last two have no text, and ``why`` says what happened. Token counts leave padding
    out."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    why: str = ""

    @property
    def is_unanswered(self) -> bool:
        return self.finish in ("refused", "failed")


@dataclass(frozen=True)
class Decoding:
    """How to sample. temperature 0 is greedy; top_k 0 keeps every token. Lengths in tokens."""

    max_tokens: Positive
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    top_k: Count = 0
    __post_init__ = check


# Extensions of OpenAI's protocol that vLLM and SGLang know. What a request leaves out, vLLM fills in from
# the model's generation config: another distribution than the other samplers draw from.
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
JUDGING = Decoding(max_tokens=1024, temperature=0.0)  # chosen: a verdict, and what leads to it


class TooManyRefused(Stopped, ValueError):
    """More requests are refused than ``max_refused`` allows. The message says by whom, why, and what to write."""


def may_refuse(share: float, prompts: int) -> int:
    """How many of some prompts a sampler may refuse: the share, rounded up, so that a single one ends no job."""
    return math.ceil(share * prompts - 1e-9)


def key_of(value: object) -> str:
    """By which a sample is found again: a hash of what it was drawn from."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:32]
