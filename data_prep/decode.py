"""One completion of each prompt of a batch, by transformers: for data jobs, evaluations and rollouts on small machines.

Not ``model.generate``: that reads a group's prompt once for each of its completions, keeps computing for completions
that have ended until the longest has, and mixes in whatever sampling defaults the checkpoint carries.
"""

from __future__ import annotations

from collections.abc import Iterable

from data_prep.runs import ConfigError
from data_prep.sampling import Decoding

import torch
from transformers import DynamicCache, PreTrainedModel

LIKELIEST = 64  # tokens, among which top-p looks first


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad: int,
    ends: Iterable[int],
    decoding: Decoding,
    seed: int | None = None,
) -> list[list[int]]:
    """Token ids of completions for token ids of prompts; the end token is the last of one that has ended. Without a
    seed torch's own generator is drawn from. Raises ConfigError for a model whose cache has no rows to select."""
    device, width = model.device, max(map(len, prompts))
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    distinct = {tokens: row for row, tokens in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in distinct], device=device)
    mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in distinct], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    last = torch.tensor(sorted(ends), device=device)
    cache = DynamicCache(config=model.config)
    if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        kind = model.config.model_type
        raise ConfigError(f"the cache of a {kind} cannot be cut by rows; sample with vLLM: `sampler: {{kind: vllm}}`")
    completions: list[list[int]] = [[] for _ in prompts]
    alive = torch.arange(len(prompts), device=device)  # the completion that each row of the batch belongs to
    for step in range(decoding.max_tokens):
        logits = model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        if step == 0 and len(distinct) < len(prompts):
            copies = torch.tensor([distinct[tuple(tokens)] for tokens in prompts], device=device)
            cache.batch_select_indices(copies)
            logits, mask, positions = (x[copies] for x in (logits, mask, positions))
        drawn = draw(logits.float(), decoding, generator)
        for row, token in zip(alive.tolist(), drawn.tolist(), strict=True):
            completions[row].append(token)
        going = torch.isin(drawn, last, invert=True).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            drawn, mask, positions, alive = (x[going] for x in (drawn, mask, positions, alive))
        ids, positions = drawn[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return completions


def draw(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator | None = None) -> torch.Tensor:
    """One token id for each row of logits (rows, vocabulary): top-k, then top-p, as in transformers."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    logits, tokens = logits / decoding.temperature, None
    if decoding.top_k:
        logits, tokens = logits.topk(min(decoding.top_k, logits.shape[-1]))
    chances = logits.softmax(-1)
    if decoding.top_p < 1:
        # The likeliest few nearly always have the mass, and to sort all takes five times as long.
        ordered, index = chances.topk(min(LIKELIEST, chances.shape[-1]))
        if (ordered.sum(-1) < decoding.top_p).any():
            ordered, index = chances.sort(-1, descending=True)
        chances = ordered.masked_fill(ordered.cumsum(-1) - ordered >= decoding.top_p, 0)  # the first to reach it stays
        tokens = index if tokens is None else tokens.gather(-1, index)
    # One number a row; torch.multinomial draws one for each token, which takes ten times as long.
    sums = chances.double().cumsum(-1)
    number = torch.rand(len(sums), 1, dtype=sums.dtype, device=sums.device, generator=generator) * sums[:, -1:]
    drawn = torch.searchsorted(sums, number, right=True).clamp(max=sums.shape[-1] - 1)
    return (drawn if tokens is None else tokens.gather(-1, drawn))[:, 0]
