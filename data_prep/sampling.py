"""Completions of prompts: by transformers in this process, by vLLM in this process, or by an OpenAI-compatible server.

All have one method, ``sample(prompts, n, ...) -> list[list[Sample]]``. A prompt is a string (sent as it is) or a list
of chat messages (rendered by the checkpoint's chat template). What was paid for is kept under ``store`` by its key, the
hash of prompt, model, revision, decoding, seed and index: after a kill, and after any change that leaves a sample's key
as it was (a larger n, more prompts, another threshold), it is found there. A kill repeats at most the batch, or the
requests, in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import random
import sqlite3
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import rewards
from data_prep import commands, memory
from data_prep.rows import read_parquet, write_parquet
from data_prep.runs import Stopped, is_here, require_model, write_json
from rewards.settings import Count, NotNegative, Positive, Range, Seconds, Share, check

import httpx
import pyarrow.parquet as pq

log = logging.getLogger(__name__)
Prompt = str | list[dict[str, str]]
T = TypeVar("T")


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


class Batched(ABC):
    """A checkpoint in this process: it samples in fixed batches, each a file of the store.

    Batches: prompts sorted by length, n of each, cut into ``batch_size`` sequences. What the store has already is left
    out, and what is then to be drawn is written down first (``*.plan.json``), so that a restart cuts the same batches
    and ends with the same bytes.
    """

    identity: str  # of the weights: what stored samples are good for
    batch_size: int
    limit: int  # tokens of prompt and completion together
    max_refused: float | None = None  # of the prompts, those that do not fit; None: where no YAML has a key for it
    tokenizer: Any

    @abstractmethod
    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        """One completion of each prompt, given as token ids; the same seed gives the same."""

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """n samples of each prompt, in the order of the prompts. Finished batches are files in ``store``. A prompt that
        does not fit is refused; raises TooManyRefused before any work."""
        started = time.monotonic()
        tokens = [self._tokenize(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]), reverse=True)  # the worst for memory first
        refused = [i for i in order if len(tokens[i]) + decoding.max_tokens > self.limit]
        if refused:
            longest = len(tokens[refused[0]]) + decoding.max_tokens
            told = f"the longest prompt with max_tokens makes {longest} tokens, the model takes {self.limit}"
            if len(refused) > may_refuse(self.max_refused or 0, len(prompts)):
                over = way = ""
                if self.max_refused is not None:
                    over = f", more than `max_refused: {self.max_refused:g}` of `sampler` allows"
                    way = ", or write a larger `max_refused` to drop them"
                raise TooManyRefused(
                    f"{len(refused)} of {len(prompts)} prompts do not fit{over}: {told}. Write a smaller `max_tokens` "
                    f"(of the YAML's `decoding`, where it has one), or leave long prompts out{way}"
                )
            log.warning("%d of %d prompts are refused: %s", len(refused), len(prompts), told)
        order = order[len(refused) :]
        sequences = [i for i in order for _ in range(n)]
        common = _hash([self.identity, asdict(decoding), seed])
        times: Counter[str] = Counter()  # an equal prompt's samples go on where its first's end
        keys = []
        for i in sequences:
            prompt = _hash(tokens[i])
            keys.append(_hash([common, prompt, times[prompt]]))
            times[prompt] += 1
        found = _stored(store, set(keys))
        batches = self._plan(keys, set(found), store)
        for number, batch in commands.progress(batches, "sampling", unit="batch"):
            if all(keys[at] in found for at in batch):
                continue
            own = number if isinstance(number, int) else keys[batch[0]]
            samples = self._generate([tokens[sequences[at]] for at in batch], decoding, int(_hash([seed, own])[:8], 16))
            records = [{"key": keys[at]} | asdict(sample) for at, sample in zip(batch, samples, strict=True)]
            if store:
                write_parquet(store / f"{_hash([record['key'] for record in records])}.parquet", records)
            found |= {keys[at]: sample for at, sample in zip(batch, samples, strict=True)}
        results: list[list[Sample]] = [[] for _ in prompts]
        for i in refused:
            why = f"with max_tokens it makes {len(tokens[i]) + decoding.max_tokens} tokens, not {self.limit}"
            results[i] = [Sample("", "refused", len(tokens[i]), 0, why)] * n
        for i, key in zip(sequences, keys, strict=True):
            results[i].append(found[key])
        made = sum(sample.completion_tokens for group in results for sample in group)
        log.info("%d samples of %d tokens in %.0f s", len(sequences), made, time.monotonic() - started)
        return results

    def _plan(self, keys: list[str], known: set[str], store: Path | None) -> list[tuple[int | None, list[int]]]:
        """The batches to draw, as (number, places in keys). A batch of a store that had none of these keys is seeded
        by its number, any other (number None) by its first key, so that no two batches share their draws."""
        path = store / f"{_hash([self.batch_size, *keys])}.plan.json" if store else None
        if path and path.exists():
            plan = json.loads(path.read_text(encoding="utf-8"))
        else:
            plan = {"fresh": not known, "places": [at for at, key in enumerate(keys) if key not in known]}
            if path and plan["places"]:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, plan)
        later = set(range(len(keys))) - set(plan["places"])  # stored once; since then its file may have broken
        broken = [at for at in sorted(later) if keys[at] not in known]
        cut = [
            part[at : at + self.batch_size]
            for part in (plan["places"], broken)
            for at in range(0, len(part), self.batch_size)
        ]
        return [(number if plan["fresh"] else None, batch) for number, batch in enumerate(cut)]

    def _tokenize(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class LocalModel(Batched):
    """A plain checkpoint (a folder or a Hub id) by transformers; without ``dtype``, float32 on a CPU, the checkpoint's
    own on a GPU."""

    def __init__(self, checkpoint: str | Path, batch_size: int = 256, revision: str = "", dtype: str = ""):
        import torch  # a job that only asks a server never loads it
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batch_size = batch_size
        pinned = {"revision": revision} if revision else {}
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left", **pinned)
        usual = "auto" if self.device == "cuda" else "float32"
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype or usual, **pinned)
        self.model.to(self.device).eval()
        if self.device == "cpu":
            memory.keep_freed(self.model.num_parameters())
        if getattr(self.model.config, "output_router_logits", False):
            self.model.config.output_router_logits = False  # left by SFT of a mixture of experts; it fails on a cache
        self.identity = _identity(checkpoint, getattr(self.model.config, "_commit_hash", None)) + dtype
        self.limit = positions(self.model.config) or sys.maxsize
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if not self.ends:
            raise ValueError(f"{checkpoint}: neither its tokenizer nor its generation config names an end token")
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.ends)

    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        from data_prep import decode

        completions = decode.complete(self.model, inputs, self.pad, self.ends, decoding, seed)
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        finishes = ["stop" if completion[-1] in self.ends else "length" for completion in completions]
        counts = zip(map(len, inputs), map(len, completions), strict=True)
        return [Sample(*parts, *count) for *parts, count in zip(texts, finishes, counts, strict=True)]


def positions(config: Any) -> int | None:
    """Tokens of prompt and completion that a model takes, as vLLM counts them; None where its config does not say.

    A scaled RoPE goes as far as its factor says, unless `max_position_embeddings` has that in it already.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    ropes = getattr(text, "rope_parameters", None) or {}
    scaled = [most]
    for rope in [ropes, *ropes.values()] if most else []:  # of the model, or of each kind of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("linear", "dynamic", "yarn"):
            first = rope.get("original_max_position_embeddings") if rope["rope_type"] == "yarn" else None
            scaled.append(int((first or most) * (rope.get("factor") or 1)))
    return most if "gemma3" in text.model_type else max(scaled) if most else None


class VLLMModel(Batched):
    """A checkpoint by vLLM in this process. ``arguments`` are those of `vllm.LLM`, as in {tensor_parallel_size: 8}.

    Each sequence has a seed of its own. vLLM's kernels do not promise the same bytes for another batch; a kill repeats
    at most the batch in flight, and what is stored is not drawn again.
    """

    def __init__(self, checkpoint: str | Path, batch_size: int, revision: str, arguments: dict[str, Any]):
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise ValueError("`sampler: kind: vllm` needs vllm; install requirements-gpu.txt") from error

        self.batch_size, self.make = batch_size, SamplingParams
        self.llm = LLM(model=str(checkpoint), revision=revision or None, **arguments)
        self.tokenizer = self.llm.get_tokenizer()
        self.limit = self.llm.llm_engine.model_config.max_model_len
        self.identity = _identity(checkpoint, revision)

    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        settings = [self.make(**asdict(decoding), seed=(seed + at) % 2**32) for at in range(len(inputs))]
        outputs = self.llm.generate([{"prompt_token_ids": tokens} for tokens in inputs], settings, use_tqdm=False)
        return [
            Sample(
                output.outputs[0].text,
                "length" if output.outputs[0].finish_reason == "length" else "stop",
                len(output.prompt_token_ids),
                len(output.outputs[0].token_ids),
            )
            for output in outputs
        ]


def _identity(checkpoint: str | Path, revision: str | None) -> str:
    """What the stored samples of a checkpoint are good for: its weights' hash, or the Hub's commit."""
    files = sorted(Path(checkpoint).glob("*.safetensors")) or sorted(Path(checkpoint).glob("*.bin"))
    if not files:
        return f"{checkpoint}@{revision}"
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stored(store: Path | None, keys: set[str]) -> dict[str, Sample]:
    """The samples of a store that have these keys. A file that cannot be read is named; its batch is drawn again."""
    found: dict[str, Sample] = {}
    for path in sorted(store.glob("*.parquet")) if store else []:
        try:
            if "key" in pq.read_schema(path).names and not keys.isdisjoint(
                pq.read_table(path, columns=["key"])["key"].to_pylist()
            ):
                for record in read_parquet(path):
                    if (key := record.pop("key")) in keys:
                        found[key] = Sample(**record)
        except (ValueError, OSError, TypeError) as error:
            log.warning("sampling that batch again: %s: %s", path, error)
    return found


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:32]


# --- servers ----------------------------------------------------------------------------------------------------------


TRANSIENT = (408, 409, 425, 429)  # statuses that are tried again, as 5xx are
FOR_ALL = (401, 402, 404, 405, 407)  # statuses that are about no single request: a key, a bill, a path


class ServerError(Stopped):
    """The server did not give a usable answer, however often it was asked."""


@dataclass(frozen=True)
class ServerSettings:
    """An OpenAI-compatible server. ``base_url`` "world" starts the toy world's own (data_prep.world.oracle);
    any other is used as it stands, as in http://localhost:8000/v1. ``api_key_variable`` names an environment
    variable. ``revision``: of the model, part of the key of its samples. ``failures``: as many requests may fail for
    good, each a `Sample` that "failed"; one more ends the job. ``max_refused``: of the requests of one round, the share
    that the server may refuse (too long, filtered), each a `Sample` that is "refused"; more end the job. ``serve``:
    arguments of `vllm serve`, by which the pipeline starts the model on this machine while a step needs it; without it
    the server is yours to start.
    ``extensions`` false: send no `NEUTRAL`, for a service that refuses what OpenAI's protocol does not have."""

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
            raise ValueError(f"the environment variable {self.api_key_variable} is not set; {self.base_url} wants it")


class Server:
    """Asks for each sample in a request of its own (seed + sample index), ``concurrency`` at a time. Answers are kept
    in ``store``/requests.sqlite by the hash of the request. `TRANSIENT`, 5xx, lost connections, silence and unreadable
    answers are tried again, each wait twice the last (or what Retry-After says), and counted in ``faults`` by their
    kind. What the server refuses is kept in ``store``, too, and not asked again, unless there was too much of it."""

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.faults: Counter[str] = Counter()
        self.failed = 0
        key = settings.api_key_variable
        self.headers = {"Authorization": f"Bearer {os.environ[key]}"} if key else {}

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """As Batched.sample. Raises ServerError after the last attempt; what was answered stays in ``store``."""
        with closing(_open(store)) as answers:
            try:
                samples = asyncio.run(self._ask_all(prompts, n, decoding, seed, answers))
            except* Stopped as group:
                if group.subgroup(TooManyRefused):
                    with answers:  # the server may be started otherwise by the next time
                        answers.execute("delete from answers where json_extract(sample, '$.finish') = 'refused'")
                raise group.exceptions[0] from None
            except* sqlite3.OperationalError as group:
                raise OSError(f"{store}: {group.exceptions[0]}") from None  # a full disk
            finally:
                if self.faults:
                    log.warning("%s: tried again after %s", self.settings.base_url, dict(self.faults))
        return [samples[at * n : (at + 1) * n] for at in range(len(prompts))]

    def _payload(self, prompt: Prompt, decoding: Decoding, seed: int) -> dict:
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        payload = {"model": self.settings.model, **asked, **asdict(decoding), "seed": seed}
        if decoding.top_k == 0:
            del payload["top_k"]  # NEUTRAL has what says so
        return (NEUTRAL if self.settings.extensions else {}) | payload

    async def _ask_all(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, answers: sqlite3.Connection
    ) -> list[Sample]:
        samples: list[Sample | None] = [None] * (len(prompts) * n)
        refused, may = 0, may_refuse(self.settings.max_refused, len(prompts)) * n
        waiting = iter(range(len(samples)))  # shared by the workers: a request is made when a worker is free
        progress = commands.progress(None, "asking", len(samples), "request")

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal refused
            for index in waiting:
                payload = self._payload(prompts[index // n], decoding, seed + index % n)
                revision = self.settings.revision
                key = _hash([payload, revision] if revision else payload)
                found = answers.execute("select sample from answers where request = ?", (key,)).fetchone()
                sample = Sample(**json.loads(found[0])) if found else await self._ask_or_fail(client, payload, index)
                if not found and sample.finish != "failed":
                    with answers:
                        values = (key, json.dumps(asdict(sample)))
                        answers.execute("insert or replace into answers values (?, ?)", values)
                if sample.finish == "refused":
                    refused += 1
                    if refused > may:
                        raise TooManyRefused(
                            f"{self.settings.base_url} refused {refused} of {len(samples)} requests, more than "
                            f"`max_refused: {self.settings.max_refused:g}` allows, the last one with {sample.why}. "
                            "Mend what it refuses, or write a larger `max_refused` beside `base_url` to drop it"
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
        wait, trouble = self.settings.first_wait_s, ""
        for attempt in range(self.settings.attempts):
            if attempt:
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # so that many clients do not return together
                wait *= 2
            try:
                response = await client.post(url, json=payload)
                if response.status_code in TRANSIENT or response.status_code >= 500:
                    trouble = f"status {response.status_code}"
                    self.faults[trouble] += 1
                    after = response.headers.get("retry-after", "")
                    wait = max(wait, float(after)) if after.isdigit() else wait
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
                text.encode()  # what is no text, or has half a surrogate pair, could not be written
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
    """The text of a message; a reasoning that the server has split off is put back in its tags."""
    return rewards.text_of(
        message | {"reasoning_content": message.get("reasoning_content") or message.get("reasoning")}
    )


def _open(store: Path | None) -> sqlite3.Connection:
    """The answers that a store holds. A file that is no database is put aside, and named."""
    if store is None:
        return _prepared(sqlite3.connect(":memory:"))
    store.mkdir(parents=True, exist_ok=True)
    path = store / "requests.sqlite"
    try:
        return _prepared(sqlite3.connect(path))
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}") from None  # a full disk, or another process at the same work
    except sqlite3.DatabaseError as error:
        log.warning("%s: %s; it is put aside as requests.broken, and its requests are made again", path, error)
        path.replace(store / "requests.broken")
        return _prepared(sqlite3.connect(path))


def _prepared(answers: sqlite3.Connection) -> sqlite3.Connection:
    answers.execute("pragma locking_mode = exclusive")  # one process has it; so it works on shared file systems too
    answers.execute("pragma journal_mode = wal")
    answers.execute("pragma synchronous = normal")  # a kill loses nothing; a power cut may lose the last few
    answers.execute("create table if not exists answers (request text primary key, sample text)")
    return answers


@contextmanager
def connect(settings: ServerSettings) -> Iterator[Server]:
    """A server for the block: the toy world's own, started and stopped here, or one that runs elsewhere."""
    if settings.base_url != "world":
        yield Server(settings)
        return
    from data_prep.world import oracle

    with oracle.serve() as url:  # a thread of this process: many requests at a time only fight for the interpreter
        yield Server(replace(settings, base_url=url, concurrency=min(settings.concurrency, 4)))


# --- one door ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """How a job samples its checkpoint. ``kind`` "transformers" or "vllm": in this process, ``batch_size`` sequences to
    a stored batch, ``max_refused`` the share of prompts that may be too long (they are dropped; more end the job),
    ``revision`` the commit of a Hub checkpoint, ``dtype`` of the weights by transformers ("": float32 on a CPU, the
    checkpoint's own on a GPU), ``vllm`` arguments of `vllm.LLM`. "server": whatever ``server`` serves; the job's
    ``checkpoint`` is then only what its rows name as their generator."""

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
        """Raises FileNotFoundError for a local path without a model; a Hub id is asked for where it is loaded."""
        if self.kind != "server":
            require_model(checkpoint)


Model = Batched | Server


def cost(asked: int, n: int, decoding: Decoding, by: str, sampler: Sampler | None = None) -> str:
    """A line of a plan. Speed and length are a model's own, so both are bounds: of a token four bytes are kept."""
    tokens = asked * n * decoding.max_tokens
    how = f" ({sampler.kind})" if sampler else ""
    return (
        f"{asked:,} x {n} answers by {by}{how}: at most {tokens:,} tokens, {tokens * 4 / 2**30:,.1f} GB of disk, "
        f"{tokens / 3.6e6:,.1f} hours at 1,000 tokens a second"
    )


@contextmanager
def open_model(checkpoint: str, sampler: Sampler) -> Iterator[Model]:
    """The checkpoint, ready to be sampled as ``sampler`` says."""
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
    """What ``load`` makes of a folder or a Hub id. Raises FileNotFoundError where there is neither."""
    require_model(checkpoint)
    if is_here(checkpoint):
        return load()
    from data_prep import hub

    return hub.find(checkpoint, load)
