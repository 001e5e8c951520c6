"""Completions of prompts: by transformers in this process, by vLLM in this process, or by an OpenAI-compatible server.

All three have one method, ``sample(prompts, n, ...) -> list[list[Sample]]``. A prompt is a string (sent unchanged) or a
list of chat messages (rendered by the checkpoint's chat template). Finished samples are stored in the folder ``store``
(`store.Store`) by a key, the hash of prompt, model, revision, decoding, seed and index. They are reused after a kill,
and after any change that does not affect their keys (a larger n, more prompts, another threshold). A kill loses at most
the batch or the requests in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from data_prep.runs import is_here, require_model
from data_prep.sampling.checkpoints import Batched, LocalModel, VLLMModel, positions
from data_prep.sampling.samples import JUDGING, NEUTRAL, Decoding, Prompt, Sample, TooManyRefused
from data_prep.sampling.servers import Server, ServerError, ServerSettings, connect
from rewards.settings import Positive, Share, check

__all__ = [
    "JUDGING", "NEUTRAL", "Batched", "Decoding", "LocalModel", "Model", "Prompt", "Sample", "Sampler", "Server",
    "ServerError", "ServerSettings", "TooManyRefused", "VLLMModel", "connect", "cost", "load_model", "open_model",
    "positions",
]  # fmt: skip
T = TypeVar("T")


@dataclass(frozen=True)
class Sampler:
    """How a job samples its checkpoint. ``kind``: "transformers" or "vllm" sample in this process. "server" samples the
    model of ``server``; the job's ``checkpoint`` is then only the generator's name in the rows. ``batch_size``:
    sequences per stored batch. ``max_refused``: the share of prompts that may be too long. These prompts are dropped.
    If a larger share is too long, the job ends. ``revision``: the commit of a Hub checkpoint. ``dtype``: the type of
    the weights if transformers samples ("": float32 on a CPU, the checkpoint's own on a GPU). ``vllm``: arguments of
    `vllm.LLM`."""

    kind: Literal["transformers", "vllm", "server"] = "transformers"
    batch_size: Positive = 256
    revision: str = ""
    dtype: Literal["", "float32", "bfloat16"] = ""
    vllm: dict[str, Any] = field(default_factory=dict)
    server: ServerSettings | None = None
    max_refused: Share = 0.05

    def __post_init__(self) -> None:
        check(self)
        if (self.kind == "server") != (self.server is not None):
            raise ValueError("`sampler: server` and `sampler: kind: server` go together; write both or neither")
        if self.vllm and self.kind != "vllm":
            raise ValueError("`sampler: vllm` has arguments; write `kind: vllm` beside them")
        if self.dtype and self.kind != "transformers":
            raise ValueError(f"`sampler: dtype` is for `kind: transformers`, not {self.kind}; remove it")

    def require(self, checkpoint: str) -> None:
        """Raises FileNotFoundError for a local path without a model; a Hub id is only checked when it is loaded."""
        if self.kind != "server":
            require_model(checkpoint)


Model = Batched | Server


def cost(asked: int, n: int, decoding: Decoding, by: str, sampler: Sampler | None = None) -> str:
    """A line of a plan. It gives upper bounds, because speed and length depend on the model. A stored token takes four
    bytes."""
    tokens = asked * n * decoding.max_tokens
    how = f" ({sampler.kind})" if sampler else ""
    return (
        f"{asked:,} x {n} answers by {by}{how}: at most {tokens:,} tokens, {tokens * 4 / 2**30:,.1f} GB of disk, "
        f"{tokens / 3.6e6:,.1f} hours at 1,000 tokens a second"
    )


@contextmanager
def open_model(checkpoint: str, sampler: Sampler) -> Iterator[Model]:
    """Open the checkpoint for sampling with the settings of ``sampler``."""
    if sampler.kind == "server":
        with connect(sampler.server) as server:
            yield server
        return
    how = (sampler.batch_size, sampler.revision)
    if sampler.kind == "vllm":
        model = load_model(checkpoint, lambda: VLLMModel(checkpoint, *how, sampler.vllm))
    else:
        more = {"dtype": sampler.dtype} if sampler.dtype else {}
        model = load_model(checkpoint, lambda: LocalModel(checkpoint, *how, **more))
    model.max_refused = sampler.max_refused
    yield model


def load_model(checkpoint: str, load: Callable[[], T]) -> T:
    """Return the result of ``load`` for a folder or a Hub id. Raises FileNotFoundError if neither exists."""
    require_model(checkpoint)
    if is_here(checkpoint):
        return load()
    from data_prep import hub

    return hub.find(checkpoint, load)
