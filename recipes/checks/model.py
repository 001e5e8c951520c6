"""Checks of the weights that a stage trains."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.sampling import positions
from recipes import qlora_proof, sharded
from recipes.checks.finding import CHECKED, Finding, spread

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALIKE, FEW_ALIKE = 0.01, 4  # chosen: embeddings closer than this share of their norm are equal; four may be chance


def of_loading(
    info: Mapping, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frozen: bool
) -> Iterator[Finding]:
    """Checks the missing weights of `from_pretrained` and the tokenizer. `frozen`: whether the embeddings are."""
    heads = r"^(score|classifier|lm_head)\."  # the only head of a scorer is new
    missing = sorted(key for key in info["missing_keys"] if not (hasattr(model, "score") and re.match(heads, key)))
    strange = sorted(key for key in info["unexpected_keys"] if not (hasattr(model, "score") and re.match(heads, key)))
    broken = missing + sorted(map(str, info["mismatched_keys"]))
    if broken or strange:
        names = ", ".join([*broken, *strange][:3])
        yield Finding(
            f"{model.name_or_path}: {len(broken)} tensors are missing and {len(strange)} unexpected: {names}. Missing "
            "weights are random. Copy the checkpoint again, or take another one.",
            stops=bool(broken),
        )
    if len(tokenizer) > (rows := sharded.shape(model.get_input_embeddings().weight)[0]):
        yield Finding(
            f"The tokenizer has {len(tokenizer)} tokens, but the model {rows} embeddings. The first token beyond them "
            "would end the run. Take the tokenizer of this very checkpoint."
        )
    yield from _of_end(model, tokenizer, frozen)


def _of_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frozen: bool) -> Iterator[Finding]:
    """Checks whether the end token's embedding was ever trained."""
    weight, end = model.get_input_embeddings().weight, tokenizer.eos_token_id
    if end is None or not weight.is_floating_point() or sharded.shape(weight) != weight.shape or end >= len(weight):
        return  # sharded or in 4 bits
    with torch.no_grad():
        apart = torch.cdist(weight[end : end + 1].float(), weight.float())[0]
        like = (apart < ALIKE * weight[end].float().norm()).nonzero()[:, 0].tolist()
    if len(like) > FEW_ALIKE:
        some = ", ".join(map(repr, tokenizer.convert_ids_to_tokens([one for one in like if one != end][:3])))
        yield Finding(
            f"The end token {tokenizer.eos_token!r} has the embedding of {len(like) - 1} others ({some}). No training "
            "has set it apart, and with frozen embeddings none will, so that answers would not end. Write an end token "
            "that the base knows into tokenizer_config.json, or train all weights.",
            stops=frozen,
        )


def of_model(trainer: Any, args: Any) -> Iterator[Finding]:
    """Checks the weights to be trained."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = dict(model.named_parameters())
    if not any(one.requires_grad for one in parameters.values()):
        yield Finding("No weight is trainable. Write use_peft: false, or other lora_target_modules.")
    judged = {name: one for name, one in parameters.items() if "lora_B" not in name}  # lora_B starts at 0
    if broken := sharded.broken(judged, trainer.accelerator.device):
        yield Finding(
            f"{len(broken)} tensors are all zero or not finite: {', '.join(broken[:3])}. This checkpoint is broken. "
            "Copy it again, or take another one."
        )
    shape, data = model.config, spread(trainer.train_dataset, CHECKED)
    tokens = max(max(row.get("seq_lengths") or [len(row.get("input_ids", ()))]) for row in data)  # for a packed row
    if tokens > (room := positions(shape) or math.inf):
        yield Finding(
            f"Rows of up to {tokens} tokens are too long for a model of {room} positions, which has never seen a token "
            f"beyond them. Write max_length: {room}, or max_position_embeddings: {tokens} for a model that is to learn "
            "them."
        )
    adapted = [name for name, one in parameters.items() if "lora_" in name and one.requires_grad]
    if adapted and qlora_proof.expert_counts(shape):
        if any(re.search(r"\b(gate|router)\.lora_", name) for name in adapted):
            message = "A router has an adapter, which moves its choice. Write lora_target_modules without it."
            yield Finding(message, stops=False)
        wanted = set(args.lora_target_modules or ["gate_proj"]) & {"gate_proj", "up_proj", "down_proj", "experts"}
        if wanted and not any("expert" in name for name in adapted):
            yield Finding(
                f"No expert has an adapter, though lora_target_modules names {', '.join(sorted(wanted))}: most of the "
                "model would stay as it is. Write load_in_4bit: true, or name attention layers only."
            )
