"""A client for OpenAI-compatible servers that stores all answers and retries failed requests."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import rewards
from data_prep.runs import Stopped, commands
from data_prep.sampling.samples import NEUTRAL, Decoding, Prompt, Sample, TooManyRefused, key_of, may_refuse
from data_prep.sampling.store import Store
from rewards import retry
from rewards.settings import Count, NotNegative, Positive, Seconds, Share, check

import httpx

log = logging.getLogger(__name__)
FOR_ALL = (401, 402, 404, 405, 407)  # statuses that concern all requests: a wrong key, bill or path


class ServerError(Stopped):
    """The server gave no usable answer in any attempt."""


@dataclass(frozen=True)
class ServerSettings:
    """An OpenAI-compatible server. ``base_url`` "world" starts the toy world's own (data_prep.world.oracle);
    any other is used unchanged, as in http://localhost:8000/v1. ``api_key_variable`` names an environment variable.
    ``revision``: that of the model; it is part of the key of its samples. ``failures``: how many requests may fail in
    all attempts, each giving a "failed" `Sample`; one more ends the job. ``max_refused``: the share of the requests of
    one round that the server may refuse (too long, filtered), each giving a "refused" `Sample`; more end the job.
    ``serve``: arguments of `vllm serve`, with which the pipeline runs the model on this machine while a step needs it.
    Without them, you start the server.
    ``extensions``: false omits `NEUTRAL`, for services that reject anything beyond OpenAI's protocol."""

    base_url: str
    model: str
    concurrency: Positive = 16
    attempts: Positive = 7
    first_wait_s: NotNegative = 1.0
    timeout_s: Seconds = 600.0
    api_key_variable: str = ""
    revision: str = ""
    failures: Count = 0
    serve: dict[str, Any] | None = None
    extensions: bool = True
    max_refused: Share = 0.05

    def __post_init__(self) -> None:
        check(self)
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            raise ValueError(f"the environment variable {self.api_key_variable} is not set; {self.base_url} needs it")


class Server:
    """Requests each sample separately (seed + sample index), ``concurrency`` at a time. Answers are stored by the hash
    of the request. Statuses that may pass (`rewards.retry`), lost connections, timeouts and unreadable answers are
    retried and counted in ``faults`` by kind. Refusals are stored as well and not requested again, unless there were
    too many."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.faults: Counter[str] = Counter()
        self.failed = 0
        key = settings.api_key_variable
        self.headers = {"Authorization": f"Bearer {os.environ[key]}"} if key else {}

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """As Batched.sample. Raises ServerError after the last attempt; answers received so far stay in ``store``."""
        with closing(Store(store)) as stored:
            try:
                samples = asyncio.run(self._ask_all(prompts, n, decoding, seed, stored))
            except* (Stopped, OSError) as group:
                if group.subgroup(TooManyRefused):
                    stored.forget_refused()  # the server may have other settings next time
                raise group.exceptions[0] from None
            finally:
                if self.faults:
                    log.warning("%s: requests were tried again after %s", self.settings.base_url, dict(self.faults))
        return [samples[at * n : (at + 1) * n] for at in range(len(prompts))]

    def _payload(self, prompt: Prompt, decoding: Decoding, seed: int) -> dict:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        payload = {"model": self.settings.model, **asked, **asdict(decoding), "seed": seed}
        if decoding.top_k == 0:
            del payload["top_k"]  # NEUTRAL has the value for "all tokens"
        return (NEUTRAL if self.settings.extensions else {}) | payload

    async def _ask_all(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, stored: Store
    ) -> list[Sample]:
        samples: list[Sample | None] = [None] * (len(prompts) * n)
        refused, may = 0, may_refuse(self.settings.max_refused, len(prompts)) * n
        waiting = iter(range(len(samples)))  # shared by the workers; each makes a request when it is free
        progress = commands.progress(None, "asking", len(samples), "request")

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal refused
            for index in waiting:
                payload = self._payload(prompts[index // n], decoding, seed + index % n)
                revision = self.settings.revision
                key = key_of([payload, revision] if revision else payload)
                found = stored.get([key])
                sample = found.get(key) or await self._ask_or_fail(client, payload, index)
                if not found and sample.finish != "failed":
                    stored.put({key: sample})
                if sample.finish == "refused":
                    refused += 1
                    if refused > may:
                        raise TooManyRefused(
                            f"{self.settings.base_url} refused {refused} of {len(samples)} requests, more than "
                            f"`max_refused: {self.settings.max_refused:g}` allows, the last one with {sample.why}. "
                            "Change these requests, or write a larger `max_refused` beside `base_url` to drop them"
                        )
                samples[index] = sample
                progress.update()

        loopback = urlsplit(self.settings.base_url).hostname in ("127.0.0.1", "localhost", "::1")
        client = httpx.AsyncClient(headers=self.headers, timeout=self.settings.timeout_s, trust_env=not loopback)
        with progress:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(samples))):
                    group.create_task(work(client))
        if refused:
            why = next(sample.why for sample in samples if sample.finish == "refused")
            log.warning(
                "%s refused %d of %d requests, the first with %s", self.settings.base_url, refused, len(samples), why
            )
        return samples

    async def _ask_or_fail(self, client: httpx.AsyncClient, payload: dict, index: int) -> Sample:
        try:
            return await self._ask(client, payload)
        except ServerError as error:
            self.failed += 1
            if self.failed > self.settings.failures:
                raise
            log.warning("request %d failed for good (%d of %d): %s", index, self.failed, self.settings.failures, error)
            return Sample("", "failed", 0, 0, str(error))

    async def _ask(self, client: httpx.AsyncClient, payload: dict) -> Sample:
        url = self.settings.base_url.rstrip("/") + ("/completions" if "prompt" in payload else "/chat/completions")
        trouble, asked = "", 0.0
        for attempt in range(self.settings.attempts):
            if attempt:
                await asyncio.sleep(retry.wait_s(attempt, self.settings.first_wait_s, asked))
            try:
                response = await client.post(url, json=payload)
                asked = retry.asked_s(response.headers)
                if retry.is_passing(response.status_code):
                    trouble = f"status {response.status_code}"
                    self.faults[trouble] += 1
                    continue
                if response.is_error:
                    hint = ""
                    if self.settings.extensions and any(key in response.text for key in NEUTRAL):
                        hint = "; write `extensions: false` for a service that does not know these"
                    why = f"status {response.status_code}: {response.text[:200]}{hint}"
                    if response.status_code in FOR_ALL:
                        raise ServerError(f"{url}: {why}")
                    return Sample("", "refused", 0, 0, why)
                choice, usage = response.json()["choices"][0], response.json().get("usage") or {}
                if choice.get("finish_reason") == "content_filter":
                    return Sample("", "refused", 0, 0, "finish_reason content_filter")
                text = (choice["text"] if "prompt" in payload else _said(choice["message"])) or ""
                text.encode()  # neither a non-string nor a lone surrogate could be written
                return Sample(
                    text,
                    "length" if choice.get("finish_reason") == "length" else "stop",
                    usage.get("prompt_tokens") or 0,
                    usage.get("completion_tokens") or 0,
                )
            except (httpx.TransportError, ValueError, LookupError, TypeError, AttributeError) as error:
                trouble = f"{type(error).__name__}: {error}"
                self.faults[type(error).__name__] += 1
        raise ServerError(f"{url}: {self.settings.attempts} attempts failed, the last with {trouble}")


def _said(message: dict) -> str:
    """The text of a message. Reasoning that the server has split off is put back, in tags."""
    return rewards.text_of(
        message | {"reasoning_content": message.get("reasoning_content") or message.get("reasoning")}
    )


@contextmanager
def connect(settings: ServerSettings) -> Iterator[Server]:
    """A server for the block: the toy world's, which is started and stopped here, or one that runs elsewhere."""
    if settings.base_url != "world":
        yield Server(settings)
        return
    from data_prep.world import oracle

    with oracle.serve() as url:  # it is a thread of this process, where many parallel requests slow each other down
        yield Server(replace(settings, base_url=url, concurrency=min(settings.concurrency, 4)))
