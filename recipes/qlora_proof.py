"""Verifies how a QLoRA run holds its weights before it trains, and counts the tokens that each expert gets."""

import logging
import re
from collections import Counter

from data_prep.runs import ConfigError

import torch
from accelerate.utils import reduce
from torch import nn

logger = logging.getLogger(__name__)
ROUTED = re.compile(r"(.*\bexperts)\.(\d+)\.")
NOT_SHARDED = (
    "FSDP and ZeRO-3 gather a layer's weights when that layer is called, but experts are multiplied as one 4-bit "
    "stack, without a call of theirs; dense models in 4-bit shards have not been run either"
)
COUNTS = re.compile(r"^(moe_)?(num|n)_(local_|routed_)?experts$")


def expert_counts(config) -> list[str]:
    """The config keys that show that a model is a mixture of experts; [] for a dense model."""
    found = []
    for key, value in (config if isinstance(config, dict) else config.to_dict()).items():
        if isinstance(value, dict):  # DBRX has them in its ffn_config
            found += [f"{key}.{one}" for one in expert_counts(value)]
        elif COUNTS.search(str(key)) and isinstance(value, int) and value > 1:
            found.append(key)
    return found


def routers(model: nn.Module) -> list[str]:
    """Names of the modules that choose among experts or weight the shared one."""
    found = []
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and isinstance(module, nn.ModuleList):
            block = path.rpartition(".")[0]
            for name, _ in model.get_submodule(block).named_children():
                if re.search(r"gate|router", name) and name not in ("gate_proj", "gate_up_proj"):
                    found.append(f"{block}.{name}")
    return found


def kind_of(name: str, chosen_by: list[str]) -> str:
    """The row of the table that a parameter belongs to."""
    if ".lora_" in name:
        return "LoRA, " + kind_of(re.sub(r"\.lora_.*|^base_model\.model\.", "", name), chosen_by)
    if any(name.startswith(f"{path}.") for path in chosen_by):
        return "router"
    kinds = {
        "routed experts": ROUTED.pattern,
        "shared experts": "shared_expert|shared_mlp",
        "norms": "norm",
        "attention": "attn|attention",
        "embeddings": "embed|wte",
        "head": "lm_head|score",
    }
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, name + ".")), "dense layers")


def size_of(parameter: nn.Parameter) -> tuple[int, str, int]:
    """(numbers, dtype, bytes). A 4-bit parameter includes its scales and code tables."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.numel(), str(parameter.dtype).removeprefix("torch."), parameter.nbytes
    tensors = [parameter.data, *(one for one in state.as_dict().values() if isinstance(one, torch.Tensor))]
    return state.shape.numel(), state.quant_type, sum(one.nbytes for one in tensors)


def table(model: nn.Module) -> dict[tuple[str, str], Counter]:
    """The numbers, bytes and trainable numbers by kind and dtype."""
    chosen_by, rows = routers(getattr(model, "get_base_model", lambda: model)()), {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        numbers, dtype, size = size_of(parameter)
        row = rows.setdefault((kind_of(name, chosen_by), dtype), Counter())
        row.update(tensors=1, numbers=numbers, bytes=size, trained=numbers * parameter.requires_grad)
    return rows


def check(model: nn.Module) -> None:
    """Log the table. Raises ConfigError if it is not QLoRA: an expert in 16 bits, a trainable router, no adapter."""
    rows = table(model)
    lines = [f"{'':32}{'dtype':>10}{'tensors':>9}{'numbers':>16}{'bytes':>16}{'trained':>14}"]
    for (kind, dtype), row in sorted(rows.items()):
        lines.append(f"{kind:32}{dtype:>10}" + "{tensors:9,}{numbers:16,}{bytes:16,}{trained:14,}".format(**row))
    logger.info("\n".join(lines))
    for (kind, dtype), row in rows.items():
        if kind in ("routed experts", "shared experts") and dtype != "nf4":
            raise ConfigError(
                f"load_in_4bit: {row['tensors']} tensors of {kind} are {dtype}, not NF4, and take several times the "
                "memory. Write load_in_4bit: false for this model."
            )
        if "router" in kind and row["trained"]:
            raise ConfigError("load_in_4bit: a router is trainable, but it must stay frozen. Leave its adapter out.")
    if not any(row["trained"] for (kind, _), row in rows.items() if kind.startswith("LoRA")):
        raise ConfigError("load_in_4bit: nothing is trainable. Write lora_target_modules that name linear layers.")
    many = expert_counts(model.config)
    if many and ("routed experts", "nf4") not in rows:
        raise ConfigError(
            f"load_in_4bit: by its {', '.join(many)} this is a mixture of experts, but none of them is in NF4. Write "
            "load_in_4bit: false for this model."
        )


def routed(model: nn.Module) -> list[list[int]]:
    """The number of tokens that each 4-bit expert of each layer got in training, over all processes."""
    found = experts(model).values()
    return [reduce(one.routed.to(next(one.parameters()).device), "sum").tolist() for one in found]


def unused_experts(model: nn.Module) -> dict[str, int]:
    """The number of experts, and of those that never got a token, for run.json."""
    counts = [tokens for layer in routed(model) for tokens in layer]
    figures = {"experts": len(counts), "experts_never_routed_to": counts.count(0)}
    logger.info("%(experts_never_routed_to)d of %(experts)d experts never got a token", figures)
    return figures


def go_on_counting(model: nn.Module, counts: list[list[int]]) -> None:
    """Continue counting from an earlier result of `routed`."""
    for module, row in zip(experts(model).values(), counts, strict=True):
        module.routed = torch.tensor(row)


def experts(model: nn.Module) -> dict[str, nn.Module]:
    """The routed experts of each layer, by their path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "routed")}
