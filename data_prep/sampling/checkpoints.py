"""Checkpoints that are sampled in this process, by transformers or by vLLM."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.runs import commands, memory
from data_prep.sampling.samples import Decoding, Prompt, Sample, TooManyRefused, key_of, may_refuse
from data_prep.sampling.store import Store

log = logging.getLogger(__name__)


class Batched(ABC):
    """A checkpoint in this process, which samples in batches; each batch is stored as a whole.

    The prompts are sorted by length and repeated n times. Samples that are in the store are left out, and the others
    are cut into batches of ``batch_size`` sequences. A restart therefore cuts the batches that are left as before, and
    ends with the same samples.
    """

    identity: str  # of the weights; stored samples are valid for these only
    batch_size: int
    limit: int  # tokens of prompt and completion together
    max_refused: float | None = None  # share of prompts that may be too long; None: no YAML has a key for it
    tokenizer: Any

    @abstractmethod
    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        """One completion of each prompt, given as token ids. The same seed gives the same completions."""

    def sample(
        self, prompts: list[Prompt], n: int, decoding: Decoding, seed: int, store: Path | None = None
    ) -> list[list[Sample]]:
        """n samples of each prompt, in the order of the prompts. Finished batches are kept in ``store``. Prompts that
        are too long are refused. Raises TooManyRefused before any work if there are too many of them."""
        started = time.monotonic()
        tokens = [self._tokenize(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(tokens[i]), reverse=True)  # the most memory first
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
        common = key_of([self.identity, asdict(decoding), seed])
        times: Counter[str] = Counter()  # samples of a repeated prompt continue its index
        keys = []
        for i in sequences:
            prompt = key_of(tokens[i])
            keys.append(key_of([common, prompt, times[prompt]]))
            times[prompt] += 1
        with closing(Store(store)) as stored:
            found = stored.get(keys)
            missing = [at for at, key in enumerate(keys) if key not in found]
            batches = [missing[at : at + self.batch_size] for at in range(0, len(missing), self.batch_size)]
            fresh = stored.began_empty(key_of([self.batch_size, *keys]), found)
            for batch in commands.progress(batches, "sampling", unit="batch"):
                # A batch's number, or its first key if other batches of these prompts may have had that number: no two
                # batches may share random draws.
                own = batch[0] // self.batch_size if fresh else keys[batch[0]]
                inputs = [tokens[sequences[at]] for at in batch]
                samples = self._generate(inputs, decoding, int(key_of([seed, own])[:8], 16))
                drawn = {keys[at]: sample for at, sample in zip(batch, samples, strict=True)}
                stored.put(drawn)
                found |= drawn
        results: list[list[Sample]] = [[] for _ in prompts]
        for i in refused:
            why = f"with max_tokens it makes {len(tokens[i]) + decoding.max_tokens} tokens, not {self.limit}"
            results[i] = [Sample("", "refused", len(tokens[i]), 0, why)] * n
        for i, key in zip(sequences, keys, strict=True):
            results[i].append(found[key])
        made = sum(sample.completion_tokens for group in results for sample in group)
        log.info("%d samples of %d tokens took %.0f s", len(sequences), made, time.monotonic() - started)
        return results

    def _tokenize(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        text = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class LocalModel(Batched):
    """A plain checkpoint (a folder or a Hub id) in transformers. Without ``dtype``, the weights are in float32 on a CPU
    and in the checkpoint's own type on a GPU."""

    def __init__(self, checkpoint: str | Path, batch_size: int = 256, revision: str = "", dtype: str = ""):
        import torch  # jobs that only use a server never import it
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
        self.gives_back = self.device == "cpu" and not memory.keep_freed(self.model.num_parameters())
        if getattr(self.model.config, "output_router_logits", False):
            self.model.config.output_router_logits = False  # set by SFT of a mixture of experts; fails with a cache
        self.identity = _identity(checkpoint, getattr(self.model.config, "_commit_hash", None)) + dtype
        self.limit = positions(self.model.config) or sys.maxsize
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if not self.ends:
            raise ValueError(f"{checkpoint}: neither its tokenizer nor its generation config names an end token")
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.ends)

    def _generate(self, inputs: list[list[int]], decoding: Decoding, seed: int) -> list[Sample]:
        from data_prep.sampling import decode

        completions = decode.complete(self.model, inputs, self.pad, self.ends, decoding, seed)
        if self.gives_back:  # otherwise the next batch finds only pieces of the memory of this one
            memory.give_back()
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        finishes = ["stop" if completion[-1] in self.ends else "length" for completion in completions]
        counts = zip(map(len, inputs), map(len, completions), strict=True)
        return [Sample(*parts, *count) for *parts, count in zip(texts, finishes, counts, strict=True)]


def positions(config: Any) -> int | None:
    """The maximum number of tokens of prompt and completion, as vLLM counts it; None if the config does not state it.

    A scaled RoPE extends `max_position_embeddings` by its factor, unless that value already includes it.
    """
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    ropes = getattr(text, "rope_parameters", None) or {}
    scaled = [most]
    for rope in [ropes, *ropes.values()] if most else []:  # the model's own, or one for each kind of layer
        if isinstance(rope, dict) and rope.get("rope_type") in ("linear", "dynamic", "yarn"):
            first = rope.get("original_max_position_embeddings") if rope["rope_type"] == "yarn" else None
            scaled.append(int((first or most) * (rope.get("factor") or 1)))
    return most if "gemma3" in text.model_type else max(scaled) if most else None


class VLLMModel(Batched):
    """A checkpoint in vLLM, in this process. ``arguments`` are those of `vllm.LLM`, as in {tensor_parallel_size: 8}.

    Each sequence has its own seed. vLLM's kernels may give other bytes in another batch. A kill loses at
    most the batch in flight, and stored samples are not drawn again.
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
    """The identity of a checkpoint, to which stored samples belong: a hash of its weights, or the Hub's commit."""
    files = sorted(Path(checkpoint).glob("*.safetensors")) or sorted(Path(checkpoint).glob("*.bin"))
    if not files:
        return f"{checkpoint}@{revision}"
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
