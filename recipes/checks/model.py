"""Checks of the weights that a stage trains."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from recipes import qlora_proof, sharded
from recipes.checks.finding import Finding

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALIKE, FEW_ALIKE = 0.01, 4  # chosen: embeddings closer than this share of their norm are equal; four may be chance


def of_loading(info: Mapping, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Checks that the checkpoint has the model's weights, and an embedding for each token."""
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
            f"The tokenizer has {len(tokenizer)} tokens, but the model has {rows} embeddings. The first token beyond "
            "them would end the run. Take the tokenizer of this very checkpoint."
        )


def of_the_end_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frozen: bool) -> Iterator[Finding]:
    """Checks whether the end token's embedding was ever trained. `frozen`: whether the stage leaves embeddings as they
    are."""
    weight, end = model.get_input_embeddings().weight, tokenizer.eos_token_id
    if end is None or not weight.is_floating_point() or sharded.shape(weight) != weight.shape or end >= len(weight):
        return  # sharded or in 4 bits
    with torch.no_grad():
        apart = torch.cdist(weight[end : end + 1].float(), weight.float())[0]
        like = (apart < ALIKE * weight[end].float().norm()).nonzero()[:, 0].tolist()
    if len(like) > FEW_ALIKE:
        some = ", ".join(map(repr, tokenizer.convert_ids_to_tokens([one for one in like if one != end][:3])))
        yield Finding(
            f"The end token {tokenizer.eos_token!r} has the same embedding as {len(like) - 1} other tokens ({some}). "
            "No training has set it apart, and with frozen embeddings none will, so that answers would not end. Write "
            "an end token that the base knows into tokenizer_config.json, or train all weights.",
            stops=frozen,
        )


def of_weights(trainer: Any) -> Iterator[Finding]:
    """Checks that the weights are finite and not all zero."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    judged = {name: one for name, one in model.named_parameters() if "lora_B" not in name}  # lora_B starts at 0
    if broken := sharded.broken(judged, trainer.accelerator.device):
        yield Finding(
            f"{len(broken)} tensors are all zero or not finite: {', '.join(broken[:3])}. This checkpoint is broken. "
            "Copy it again, or take another one."
        )


def of_experts(trainer: Any, args: Any) -> Iterator[Finding]:
    """Checks that experts get an adapter if its target modules name their layers."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapted = [name for name, one in model.named_parameters() if "lora_" in name and one.requires_grad]
    if adapted and qlora_proof.expert_counts(model.config):
        wanted = set(args.lora_target_modules or ["gate_proj"]) & {"gate_proj", "up_proj", "down_proj", "experts"}
        if wanted and not any("expert" in name for name in adapted):
            yield Finding(
                f"No expert has an adapter, though lora_target_modules names {', '.join(sorted(wanted))}. Most of the "
                "model would stay as it is. Write load_in_4bit: true, or name attention layers only."
            )
