"""Completions of prompts, from a checkpoint in this process or from an OpenAI-compatible server.

Both engines have one method, ``sample(prompts, n, ...) -> list[list[Sample]]``. A prompt is a string (sent as it is) or
a list of chat messages (rendered by the checkpoint's chat template). Work that was paid for is kept under ``store``:
after a kill the same call returns the same samples and repeats at most the batch (or the requests) in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.rows import read_parquet, write_parquet

import httpx
from tqdm import tqdm

log = logging.getLogger(__name__)
Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Sample:
    """``finish`` is "stop" (the model ended) or "length" (cut at max_tokens). Token counts leave padding out."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Decoding:
    """How to sample. temperature 0 is greedy; top_k 0 keeps every token. Lengths in tokens."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


class LocalModel:
    """A plain checkpoint (a folder or a Hub id) in this process, float32 on CPU, the checkpoint's dtype on a GPU.

    Batches are fixed: prompts sorted by length, n of each, cut into ``batch_size`` sequences; each batch draws from a
    generator seeded by (seed, batch index). So a restart, and a run with other batches already done, gives the same.
    """

    def __init__(self, checkpoint: str | Path, batch_size: int = 256):
        import torch  # a job that only asks a server never loads it
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch_size = batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        dtype = "auto" if self.device == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(self.device).eval()
        self.identity = _identity(checkpoint, self.model.config)
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if not self.ends:
            raise ValueError(f"{checkpoint}: neither its tokenizer nor its generation config names an end token")
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.ends)

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """n samples of each prompt, in the order of the prompts. Finished batches are files in ``store``."""
        started = time.monotonic()
        tokens = [self._tokenize(prompt) for prompt in prompts]
        longest = max(map(len, tokens), default=0) + decoding.max_tokens
        limit = getattr(self.model.config, "max_position_embeddings", longest)
        if longest > limit:
            raise ValueError(f"the longest prompt with max_tokens makes {longest} tokens, the model takes {limit}")
        order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]), reverse=True)  # the worst for memory first
        sequences = [i for i in order for _ in range(n)]
        batches = [sequences[at : at + self.batch_size] for at in range(0, len(sequences), self.batch_size)]
        results: list[list[Sample]] = [[] for _ in prompts]
        for number, batch in enumerate(tqdm(batches, desc="sampling", unit="batch", disable=None, leave=False)):
            inputs = [tokens[i] for i in batch]
            key = _hash([self.identity, asdict(decoding), seed, number, inputs])
            path = store / f"{key}.parquet" if store else None
            samples = _stored(path)
            if samples is None:
                samples = self._generate(inputs, decoding, int(_hash([seed, number])[:8], 16))
                if path:
                    write_parquet(path, [asdict(sample) for sample in samples])
            for i, sample in zip(batch, samples, strict=True):
                results[i].append(sample)
        made = sum(sample.completion_tokens for group in results for sample in group)
        log.info("%d samples of %d tokens in %.0f s", len(sequences), made, time.monotonic() - started)
        return results

    def _tokenize(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        """One batch. Not ``model.generate``: that keeps computing for sequences that have ended until the longest has,
        and mixes in whatever sampling defaults the checkpoint carries."""
        import torch
        from transformers import DynamicCache

        width = max(map(len, inputs))
        ids = torch.full((len(inputs), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(inputs):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ends = torch.tensor(sorted(self.ends), device=self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        cache = DynamicCache(config=self.model.config)
        completions: list[list[int]] = [[] for _ in inputs]
        alive = torch.arange(len(inputs), device=self.device)  # the sequence that each row of the batch belongs to
        with torch.inference_mode():
            for _ in range(decoding.max_tokens):
                logits = self.model(
                    ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
                ).logits[:, -1]
                drawn = _draw(logits.float(), decoding, generator)
                for sequence, token in zip(alive.tolist(), drawn.tolist(), strict=True):
                    completions[sequence].append(token)
                going = torch.isin(drawn, ends, invert=True).nonzero()[:, 0]
                if not len(going):
                    break
                if len(going) < len(alive):
                    cache.batch_select_indices(going)
                    drawn, mask, positions, alive = (x[going] for x in (drawn, mask, positions, alive))
                ids, positions = drawn[:, None], positions[:, -1:] + 1
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        finishes = ["stop" if completion[-1] in self.ends else "length" for completion in completions]
        counts = zip(map(len, inputs), map(len, completions), strict=True)
        return [Sample(*parts, *count) for *parts, count in zip(texts, finishes, counts, strict=True)]


def _draw(logits, decoding: Decoding, generator):
    """One token id for each row of logits (rows, vocabulary): top-k, then top-p, as in transformers."""
    import torch

    if decoding.temperature == 0:
        return logits.argmax(-1)
    logits = logits / decoding.temperature
    if decoding.top_k:
        kth = logits.topk(min(decoding.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    chances = logits.softmax(-1)
    if decoding.top_p < 1:
        ordered, index = chances.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= decoding.top_p] = 0  # the first to reach top_p stays
        chances = torch.zeros_like(chances).scatter_(-1, index, ordered)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def _identity(checkpoint: str | Path, config) -> str:
    """What the stored samples of a checkpoint are good for: its weights' hash, or the Hub's commit."""
    files = sorted(Path(checkpoint).glob("*.safetensors"))
    if not files:
        return f"{checkpoint}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stored(path: Path | None) -> list[Sample] | None:
    if path is None or not path.exists():
        return None
    try:
        return [Sample(**record) for record in read_parquet(path)]
    except ValueError as error:
        log.warning("sampling that batch again: %s", error)
        return None


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:32]


# --- servers ----------------------------------------------------------------------------------------------------------


class ServerError(RuntimeError):
    """The server did not give a usable answer, however often it was asked."""


@dataclass(frozen=True)
class ServerSettings:
    """An OpenAI-compatible server. ``base_url`` "world" starts the toy world's own (data_prep.world.oracle);
    any other is used as it stands, as in http://localhost:8000/v1. ``api_key_variable`` names an environment
    variable."""

    base_url: str
    model: str
    concurrency: int = 16
    attempts: int = 7
    first_wait_s: float = 1.0
    timeout_s: float = 600.0
    api_key_variable: str = ""

    def __post_init__(self) -> None:
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            raise ValueError(f"the environment variable {self.api_key_variable} is not set; {self.base_url} wants it")


class Server:
    """Asks for each sample in a request of its own (seed + sample index), ``concurrency`` at a time. Answers are kept
    in ``store``/requests.sqlite by the hash of the request. 408, 429, 5xx, lost connections and unreadable answers are
    tried again, each wait twice the last (or what Retry-After says); other refusals stop at once."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        key = settings.api_key_variable
        self.headers = {"Authorization": f"Bearer {os.environ[key]}"} if key else {}

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """As LocalModel.sample. Raises ServerError after the last attempt; what was answered stays in ``store``."""
        if store:
            store.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(store / "requests.sqlite" if store else ":memory:")) as answers:
            answers.execute("pragma journal_mode = wal")
            answers.execute("pragma synchronous = normal")  # a kill loses nothing; a power cut may lose the last few
            answers.execute("create table if not exists answers (request text primary key, sample text)")
            try:
                samples = asyncio.run(self._ask_all(prompts, n, decoding, seed, answers))
            except* ServerError as group:
                raise group.exceptions[0] from None
            except* sqlite3.OperationalError as group:
                raise OSError(f"{store}: {group.exceptions[0]}") from None  # a full disk
        return [samples[at : at + n] for at in range(0, len(samples), n)]

    def _payload(self, prompt: Prompt, decoding: Decoding, seed: int) -> dict:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        payload = {"model": self.settings.model, **asked, **asdict(decoding), "seed": seed}
        if decoding.top_k == 0:
            del payload["top_k"]  # vLLM's extension of the protocol; left out, it keeps every token
        return payload

    async def _ask_all(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, answers: sqlite3.Connection
    ) -> list[Sample]:
        samples: list[Sample | None] = [None] * (len(prompts) * n)
        waiting = iter(range(len(samples)))  # shared by the workers: a request is made when a worker is free
        progress = tqdm(total=len(samples), desc="asking", unit="request", disable=None, leave=False)

        async def work(client: httpx.AsyncClient) -> None:
            for index in waiting:
                payload = self._payload(prompts[index // n], decoding, seed + index % n)
                key = _hash(payload)
                found = answers.execute("select sample from answers where request = ?", (key,)).fetchone()
                sample = Sample(**json.loads(found[0])) if found else await self._ask(client, payload)
                if not found:
                    with answers:
                        values = (key, json.dumps(asdict(sample)))
                        answers.execute("insert or replace into answers values (?, ?)", values)
                samples[index] = sample
                progress.update()

        loopback = urlsplit(self.settings.base_url).hostname in ("127.0.0.1", "localhost", "::1")
        client = httpx.AsyncClient(headers=self.headers, timeout=self.settings.timeout_s, trust_env=not loopback)
        with progress:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(samples))):
                    group.create_task(work(client))
        return samples

    async def _ask(self, client: httpx.AsyncClient, payload: dict) -> Sample:
        url = self.settings.base_url.rstrip("/") + ("/completions" if "prompt" in payload else "/chat/completions")
        wait, trouble = self.settings.first_wait_s, ""
        for attempt in range(self.settings.attempts):
            if attempt:
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # so that many clients do not return together
                wait *= 2
            try:
                response = await client.post(url, json=payload)
                if response.status_code in (408, 429) or response.status_code >= 500:
                    trouble = f"status {response.status_code}"
                    after = response.headers.get("retry-after", "")
                    wait = max(wait, float(after)) if after.isdigit() else wait
                    continue
                if response.is_error:
                    raise ServerError(f"{url}: status {response.status_code}: {response.text[:200]}")
                choice, usage = response.json()["choices"][0], response.json().get("usage") or {}
                text = choice["text"] if "prompt" in payload else choice["message"]["content"]
                return Sample(
                    text or "",
                    "length" if choice.get("finish_reason") == "length" else "stop",
                    usage.get("prompt_tokens", 0),
                    usage.get("completion_tokens", 0),
                )
            except (httpx.TransportError, ValueError, LookupError, TypeError, AttributeError) as error:
                trouble = f"{type(error).__name__}: {error}"
        raise ServerError(f"{url}: {self.settings.attempts} attempts failed, the last with {trouble}")


@contextmanager
def connect(settings: ServerSettings) -> Iterator[Server]:
    """A server for the block: the toy world's own, started and stopped here, or one that runs elsewhere."""
    if settings.base_url != "world":
        yield Server(settings)
        return
    from data_prep.world import oracle

    with oracle.serve() as url:  # a thread of this process: many requests at a time only fight for the interpreter
        yield Server(replace(settings, base_url=url, concurrency=min(settings.concurrency, 4)))
