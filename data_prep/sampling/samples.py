"""Inputs and outputs of the samplers: decoding settings, samples and refusals."""

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
    server rejected the request; see `max_refused`) or "failed" (all attempts at a server failed; see
    `ServerSettings.failures`). The last two have no text, and ``why`` gives the reason. Token counts exclude padding.
    """

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
    """Settings of sampling. temperature 0 is greedy; top_k 0 keeps every token. Lengths are in tokens."""

    max_tokens: Positive
    temperature: NotNegative = 1.0
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    top_k: Count = 0
    __post_init__ = check


# Extensions of OpenAI's protocol in vLLM and SGLang. They are always sent because vLLM takes missing values from the
# model's generation config, and would then sample from another distribution than the other samplers.
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
JUDGING = Decoding(max_tokens=1024, temperature=0.0)  # chosen: a verdict and the reasoning for it


class TooManyRefused(Stopped, ValueError):
    """More requests were refused than ``max_refused`` allows. The message says by which model or server, why, and what
    to write."""


def may_refuse(share: float, prompts: int) -> int:
    """How many prompts a sampler may refuse: the share, rounded up, so that a single refusal never ends a job."""
    return math.ceil(share * prompts - 1e-9)


def key_of(value: object) -> str:
    """The key of a sample in a store, which is a hash of everything that it was drawn from."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:32]
