"""Checks of the settings of a stage, and of the model that they name, before anything is loaded."""

import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep import runs
from data_prep.sampling import positions
from recipes import expert_parallel, qlora_proof, sharded
from recipes.checks.finding import Finding

import torch
from transformers import AutoConfig

NO_GPU = Finding(
    "No GPU is visible, so that everything would run on the CPU. Write use_cpu: true, or train on a GPU.", False
)


def versions() -> Iterator[Finding]:
    """Compares the pins of requirements.txt with the installed versions."""
    lock, other = runs.ROOT / "requirements.txt", []
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []:
        name, pinned, version = line.split("#")[0].strip().partition("==")
        try:
            here = importlib.metadata.version(name) if pinned else version
        except importlib.metadata.PackageNotFoundError:
            here = "missing"
        if here.partition("+")[0] != version:
            other.append(f"{name} {here} instead of {version}")
    if other:
        yield Finding(
            f"The installed versions are not those of requirements.txt: {', '.join(other)}. This project was not "
            "tested with them. Run pip install -r requirements.txt.",
            stops=False,
        )


def of_device(args: Any, config: Any, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Checks whether this machine has what the settings ask for."""
    compiler = environment.get("CXX", "g++")
    if args.compile_layers and config.use_cpu and not shutil.which(compiler):
        yield Finding(
            f"compile_layers: there is no {compiler} on this machine. Install a C++ compiler, or write "
            "compile_layers: false."
        )
    if not config.use_cpu and not torch.cuda.is_available():
        yield NO_GPU
    if config.use_cpu and config.bf16 and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        yield Finding(
            "bf16 is on, but this CPU has no bfloat16 matrix multiplication, so each takes tens of times as long. "
            "Write bf16: false.",
            stops=False,
        )


def of_learning(args: Any, config: Any) -> Iterator[Finding]:
    """Checks for valid values with which nothing can be learned."""
    if not 0 < config.learning_rate < 1:
        yield Finding(
            f"With learning_rate: {config.learning_rate} the model learns nothing, or loses what it knows. Leave the "
            "key out for the paper's value."
        )
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        yield Finding("max_steps and num_train_epochs are 0, so that no step is trained. Write a positive number.")
    if getattr(config, "packing", False) and config.packing_strategy == "wrapped" and hasattr(args, "use_peft"):
        yield Finding(
            "packing_strategy: wrapped cuts conversations anywhere and lets one attend to the next, so that answers "
            "are learnt without their questions. Write packing_strategy: bfd."
        )


def of_rewarding(args: Any, config: Any) -> Iterator[Finding]:
    """Checks for valid values with which reinforcement learning has nothing to learn from."""
    if not hasattr(args, "reward_funcs"):
        return
    weights, number = config.reward_weights, len(args.reward_funcs)
    if not number or (weights and (len(weights) != number or not any(weights) or not all(map(math.isfinite, weights)))):
        yield Finding(
            f"reward_weights: {weights} does not fit reward_funcs: {args.reward_funcs}. Without one finite weight for "
            "each reward, or with weights of 0 only, nothing is rewarded. Write one weight for each reward, or leave "
            "reward_weights out."
        )
    if config.temperature < 0.1 or config.top_k == 1 or not 0.1 < config.top_p <= 1:
        yield Finding(
            f"With temperature: {config.temperature}, top_k: {config.top_k} and top_p: {config.top_p} the completions "
            "of a group come out alike, so that no advantage is left. Write temperature: 1.0, and leave the others out."
        )
    if config.use_transformers_continuous_batching and config.bf16:
        yield Finding(
            "With use_transformers_continuous_batching and bf16, TRL casts the weights to bfloat16 for good, where "
            "small updates are rounded away. Write false for one of them."
        )
    for name, kwargs in (args.reward_kwargs or {}).items():
        folder = Path(str(kwargs.get("model", "")))
        if (folder / "config.json").is_file():
            kind = AutoConfig.from_pretrained(folder)
            if kind.num_labels != 1 or not any("SequenceClass" in one for one in kind.architectures or []):
                yield Finding(
                    f"reward_kwargs: {name}: {folder} is no reward model ({kind.architectures}). Its head would be new "
                    "and its scores random. Name a folder that recipes/reward_models.py has made."
                )


def launched(path: Path) -> dict[str, str]:
    """The environment variables that `accelerate launch` sets for its config, limited to those read here."""
    config = runs.load_config(path)
    deepspeed = config.get("deepspeed_config") or {}
    return {
        "WORLD_SIZE": str(config.get("num_processes", 1)),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(deepspeed.get("zero_stage", 0)),
        "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": deepspeed.get("deepspeed_moe_layer_cls_names") or "",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": deepspeed.get("deepspeed_config_file") or "",
        "ACCELERATE_USE_FSDP": str(config.get("distributed_type") == "FSDP"),
        "FSDP_VERSION": str((config.get("fsdp_config") or {}).get("fsdp_version", 1)),
    }


def of_sharding(args: Any, shape: Any, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Checks how the weights are sharded over processes. `shape` is the model's config, or None if it is not known."""
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}) if file else {}
    zero3 = "3" in (environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"), str(zero.get("stage")))
    fsdp = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    leaves = environment.get("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES") or zero.get("leaf_module")
    if sharded.is_fsdp_1(environment):
        yield Finding(f"{sharded.FSDP_1}. Write fsdp_version: 2 in the accelerate config.")
    if getattr(args, "load_in_4bit", False) and (zero3 or fsdp):
        yield Finding(
            f"load_in_4bit with ZeRO-3 or FSDP does not work: {qlora_proof.NOT_SHARDED}. Use an accelerate config of "
            "DDP or ZeRO-2."
        )
    elif shape is not None and zero3 and not leaves and qlora_proof.expert_counts(shape):
        yield Finding(
            f"The model is a mixture of experts ({shape.model_type}), and ZeRO-3 has no leaf modules. Processes would "
            "wait for each other for ever as soon as their tokens choose different experts. Write "
            "deepspeed_moe_layer_cls_names: <class of its MoE block> in the accelerate config."
        )
    any_zero = str(zero.get("stage", environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))) != "0"
    started = int(environment.get("WORLD_SIZE", "1"))
    if fault := expert_parallel.fault(getattr(args, "expert_parallel", 1), started, not any_zero):
        yield Finding(fault)
    if not (any_zero or fsdp) and args.dtype == "bfloat16" and not getattr(args, "use_peft", False):
        yield Finding(
            "All weights are trained with dtype: bfloat16. At the paper's learning rates most updates are smaller than "
            "bfloat16 can add to a weight. Write dtype: float32, and bf16: true.",
            stops=False,
        )


def of_room(args: Any, config: Any, shape: Any) -> Iterator[Finding]:
    """Checks that prompts and completions of reinforcement learning fit the model's maximum length."""
    room = _room(args, shape)
    if not room or not hasattr(args, "reward_funcs"):
        return
    prompt, completion = args.max_prompt_length or 1, config.max_completion_length or 0
    if prompt + completion > room:
        asked = f"max_prompt_length: {prompt} and " if args.max_prompt_length else ""
        yield Finding(
            f"There is no room in a model of {room} positions for {asked}max_completion_length: {completion}. The "
            "model has never seen a token beyond its positions. Write shorter lengths, or "
            f"max_position_embeddings: {prompt + completion} for a model that is to learn them."
        )


def limit(run: Any, most: int | None, key: str) -> tuple[int | None, str]:
    """(maximum tokens of a row or None, the setting that limits it). It is the smallest of `most`, which `key` sets,
    the model's positions and vLLM's limit. For RL, the length of a completion is subtracted from the last two."""
    shape = shape_of(getattr(run.args, "model_name_or_path", None))
    room, found = _room(run.args, shape), {key: most}
    if room and hasattr(run.args, "reward_funcs"):
        completion, engine = run.config.max_completion_length or 0, run.config.vllm_max_model_length
        found["max_position_embeddings - max_completion_length"] = room - completion
        if run.config.use_vllm and engine:
            found["vllm_max_model_length - max_completion_length"] = engine - completion
    elif room:
        found["max_position_embeddings"] = room
    return min(((value, name) for name, value in found.items() if value is not None), default=(None, key))


def _room(args: Any, shape: Any) -> int | None:
    """Maximum tokens of a stage's model: its key `max_position_embeddings`, or the value in the checkpoint's config."""
    return getattr(args, "max_position_embeddings", None) or (shape and positions(shape))


def shape_of(name: str | None, offline: bool = False) -> Any:
    """The config of a checkpoint, or None if it is not available."""
    try:
        return AutoConfig.from_pretrained(name, local_files_only=offline) if name else None
    except (OSError, ValueError):
        return None
