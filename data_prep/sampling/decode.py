"""One completion of each prompt of a batch, by transformers: for data jobs, evaluations and rollouts on small machines.

``model.generate`` is not used because it reads a group's prompt once for each completion, computes for finished
completions until the longest one ends, copies all keys and values for each token, and applies the sampling defaults of
the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from data_prep.runs import ConfigError
from data_prep.sampling import Decoding

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LIKELIEST = 64  # tokens that top-p tries first
PART = 256  # tokens per part of a large vocabulary, in which a draw ends
SHARED = "shared_keys"  # the name of ``attend`` in a model's config


class Layer(DynamicLayer):
    """Keys and values of a layer, with space for further tokens. The parent class copies all of them for each token."""

    def update(self, key_states, value_states, *args, **kwargs):
        kind = torch.get_autocast_dtype(key_states.device.type)
        if torch.is_autocast_enabled(key_states.device.type):  # otherwise attention casts all of them at each token
            key_states, value_states = key_states.to(kind), value_states.to(kind)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.keys.numel():
            self.held = self.keys, self.values = key_states, value_states
            return self.held
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self.held[0].shape[-2] < end:
            step = max(256, 1 << end.bit_length() - 2)  # few sizes, so that batches reuse freed memory
            room = -(-end // step) * step - start
            self.held = [functional.pad(x, (0, 0, 0, room)) for x in (self.keys, self.values)]
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[:, :, start:end] = new
        self.keys, self.values = (held[:, :, :end] for held in self.held)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        size = self.keys.shape[-2]
        if len(indices) > len(self.keys):
            self.held = [held[indices] for held in self.held]
        else:
            moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
            for held in self.held:
                held[moved, :, :size] = held[indices[moved], :, :size]
            self.held = [held[: len(indices)] for held in self.held]
        self.keys, self.values = (held[:, :, :size] for held in self.held)


def attend(module, query, key, value, attention_mask, scaling=None, **more):
    """Compute attention as `sdpa` does. With one token per row, keys and values are not copied for each head that
    shares them, because on a CPU the copies took most of the time."""
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    rows, heads, _, size = query.shape
    query = query.reshape(rows, heads // groups, groups, size).transpose(2, 3)
    scores = (key @ query).transpose(2, 3) * (size**-0.5 if scaling is None else scaling)  # this order copies no keys
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    found = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return found.reshape(rows, 1, heads, -1), None


AttentionInterface.register(SHARED, attend)
AttentionMaskInterface.register(SHARED, sdpa_mask)


@contextmanager
def shared_keys(model: PreTrainedModel) -> Iterator[None]:
    """Use ``attend`` in place of `sdpa` and `eager` within the block, on a CPU if heads share keys."""
    config, usual = model.config.get_text_config(), model.config._attn_implementation
    heads = getattr(config, "num_attention_heads", 0)
    shares = (getattr(config, "num_key_value_heads", None) or heads) < heads
    if not shares or model.device.type != "cpu" or not model._supports_sdpa or usual not in ("sdpa", "eager"):
        yield
        return
    model.set_attn_implementation(SHARED)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad: int,
    ends: Iterable[int],
    decoding: Decoding,
    seed: int | None = None,
) -> list[list[int]]:
    """Sample one completion for each prompt; both are lists of token ids. A finished completion ends with the end
    token. Without a seed, torch's global generator is used. Raises ConfigError for a model whose cache does not allow
    rows to be selected."""
    device, width = model.device, max(map(len, prompts))
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    distinct = {tokens: row for row, tokens in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in distinct], device=device)
    mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in distinct], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    last = torch.tensor(sorted(ends), device=device)
    cache = DynamicCache(config=model.config)
    cache.layers = [Layer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        kind = model.config.model_type
        raise ConfigError(f"the cache of a {kind} cannot be cut by rows; sample with vLLM: `sampler: {{kind: vllm}}`")
    completions: list[list[int]] = [[] for _ in prompts]
    alive = torch.arange(len(prompts), device=device)  # which completion each row of the batch belongs to
    with shared_keys(model):
        for step in range(decoding.max_tokens):
            given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "logits_to_keep": 1}
            logits = model(ids, **given).logits[:, -1]
            if step == 0 and len(distinct) < len(prompts):
                copies = torch.tensor([distinct[tuple(tokens)] for tokens in prompts], device=device)
                cache.batch_select_indices(copies)
                logits, mask, positions = (x[copies] for x in (logits, mask, positions))
            order = alive.argsort()  # so that a draw does not depend on the place of its row
            drawn = torch.empty_like(alive)
            drawn[order] = draw(logits[order].float(), decoding, generator)
            for row, token in zip(alive.tolist(), drawn.tolist(), strict=True):
                completions[row].append(token)
            ended = torch.isin(drawn, last)
            going = ended.logical_not().nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < len(alive):  # the last rows replace those that have ended
                places = torch.arange(len(going), device=device)
                places[ended[: len(going)]] = going[going >= len(going)]
                cache.batch_select_indices(places)
                drawn, mask, positions, alive = (x[places] for x in (drawn, mask, positions, alive))
            ids, positions = drawn[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return completions


def draw(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one token id for each row of logits (rows, vocabulary), with top-k, then top-p, as in transformers."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    tokens = None
    if decoding.temperature != 1:
        logits = logits / decoding.temperature
    if decoding.top_k:
        logits, tokens = logits.topk(min(decoding.top_k, logits.shape[-1]))
    chances = logits.softmax(-1)
    if decoding.top_p < 1:
        # The most likely few nearly always hold enough mass, and sorting all tokens takes five times as long.
        ordered, index = chances.topk(min(LIKELIEST, chances.shape[-1]))
        if (ordered.sum(-1) < decoding.top_p).any():
            ordered, index = chances.sort(-1, descending=True)
        chances = ordered.masked_fill(ordered.cumsum(-1) - ordered >= decoding.top_p, 0)  # keeps the one reaching it
        tokens = index if tokens is None else tokens.gather(-1, index)
    # One random number per row: torch.multinomial draws one for each token, which takes ten times as long. The number
    # selects a part of the vocabulary, then a token in it: sums over all tokens would take longer than the model.
    size = chances.shape[-1]
    width = size if size <= 16 * PART else PART
    parts = functional.pad(chances, (0, -size % width)).view(len(chances), -1, width)
    number = torch.rand(len(parts), 1, dtype=torch.float64, device=parts.device, generator=generator)
    whole = parts.sum(-1).double()
    sums = whole.cumsum(-1)
    number = number * sums[:, -1:]
    part = torch.searchsorted(sums, number, right=True).clamp(max=sums.shape[-1] - 1)
    share = ((number - sums.gather(1, part)) / whole.gather(1, part) + 1).clamp(0, 1)  # place in the part
    inner = parts.gather(1, part[..., None].expand(-1, 1, width))[:, 0].double().cumsum(-1)
    place = torch.searchsorted(inner, share * inner[:, -1:], right=True).clamp(max=width - 1)
    drawn = (part * width + place).clamp(max=size - 1)
    return (drawn if tokens is None else tokens.gather(-1, drawn))[:, 0]
