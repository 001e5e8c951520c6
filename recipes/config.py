"""The settings of a stage: the paper's values as defaults, a YAML that overrides them, and errors that name the key.

Defaults are DeepSeek-R1's (arXiv 2501.12948v2). A value that the paper does not print is marked `chosen:` with its
reason. Scripts read their YAML with `parse`. The command line overrides it: `--seed 3` repeats a run with another seed.
This module does not import TRL or torch, so --help and errors appear at once.
"""

import argparse
import contextlib
import difflib
import errno
import importlib.metadata
import inspect
import itertools
import json
import logging
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import rewards
from data_prep import commands, publishing
from data_prep.identity import NUMBER
from data_prep.runs import ConfigError, Stopped, load_config
from recipes import trl_keys

import yaml

# These arguments allow reading the YAML of a GPU on a machine without one.
WITHOUT_GPU = ("--use_cpu", "true", "--bf16", "false")
FLAGS = ("--debug", "--redo")  # options of a command that are not settings
GENERATION = ("transformers", "vllm_colocate", "vllm_server")
ENGINE_SEQUENCES = 4096  # TRL's `max_num_batched_tokens` of a colocated engine, which limits vLLM's sequences
NO_SPACE = r"No space left|os error 28|file write failed"
# Entries of TRL's `generation_kwargs` that would silently override a key.
GENERATION_KEYS = {key: key for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
GENERATION_KEYS |= dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "max_completion_length")
# Keys of TRL that our own keys replace.
REPLACED = {
    "gradient_accumulation_steps": "follows from the batch of a step; leave it out",
    "use_vllm": f"is part of `generation`; write generation: {', '.join(GENERATION[:-1])} or {GENERATION[-1]}",
    "vllm_mode": f"is part of `generation`; write generation: {', '.join(GENERATION[:-1])} or {GENERATION[-1]}",
}


_planned: ContextVar[int | None] = ContextVar("processes that are planned", default=None)


def world_size() -> int:
    """Number of processes that `accelerate launch` or torchrun started, or that are planned."""
    return _planned.get() or int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def planned(processes: int) -> Iterator[None]:
    """Inside, settings are read as if this number of processes had been started."""
    token = _planned.set(processes)
    try:
        yield
    finally:
        _planned.reset(token)


@dataclass
class StageArguments:
    """The settings of every training stage in addition to those of its trainer."""

    dtype: str | None = field(
        default=None,  # chosen: the paper's rate is too small for bfloat16 weights; autocast computes in bfloat16
        metadata={"help": "float32 (default), or bfloat16 under a LoRA adapter (default of what is not in 4 bits)."},
    )
    # The suffixes of the stage's models after `hub_model_id` on the Hub.
    models: ClassVar[tuple[str, ...]] = ("",)
    attn_implementation: str = field(default="sdpa", metadata={"help": "sdpa, eager or flash_attention_2."})
    accelerate_config: str = field(
        default="accelerate_configs/cpu.yaml",
        metadata={"help": "How a pipeline starts its processes; a stage ignores it."},
    )
    script: str = field(default="", metadata={"help": argparse.SUPPRESS})  # for the pipeline: the recipe of this YAML
    threads: int = field(default=1, metadata={"help": "OMP_NUM_THREADS in a pipeline on CPUs."})
    doctor: bool = field(default=True, metadata={"help": "Look for faults before training, and watch it."})

    def __post_init__(self):
        self.dtype = self.dtype or "float32"
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; write float32 or bfloat16.")
        for key in ("threads", "lora_r", "token_budget", "max_position_embeddings", "max_prompt_length"):
            value = getattr(self, key, None)  # not every stage has all keys
            if value is not None and value < 1:
                raise ConfigError(f"{key} is {value}; write 1 or more.")


@dataclass
class LoraArguments(StageArguments):
    """The settings of a stage that can train an adapter instead of all weights."""

    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter and merge it at the end."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: the frozen weights, experts too, are held in NF4; implies use_peft."}
    )
    lora_r: int = field(default=32, metadata={"help": "Rank."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale: alpha / r."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers that get an adapter; in 4 bits also the words attention, experts. All, if none."
        },
    )

    def __post_init__(self):
        if self.load_in_4bit:
            self.use_peft, self.dtype = True, self.dtype or "bfloat16"
        super().__post_init__()


@dataclass
class PolicyArguments(LoraArguments):
    """The settings of a stage that trains a policy on rows."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or Hub id to start from."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Parquet file, or Hub data set id, with the rows."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    max_position_embeddings: int | None = field(
        default=None, metadata={"help": "What the checkpoint's config says from here on, for a base of short context."}
    )
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Completion tokens with a gradient that end a run, unless another bound does before."},
    )


@dataclass
class RLArguments(PolicyArguments):
    """The settings of a reinforcement learning stage in addition to those of its trainer."""

    completion_style: str = field(
        default="think", metadata={"help": "r1_zero: the paper's template as plain text; think: chat messages."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Rows with a longer prompt, in tokens, are left out and counted."}
    )
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Names in `rewards`, or dotted paths to your own."}
    )
    reward_kwargs: dict | None = field(default=None, metadata={"help": "Settings of rewards, by name in reward_funcs."})
    stop_when_all_wrong: int = field(
        default=5,  # chosen: 40,960 of the paper's completions without a correct one, or 2,560 if a step is a rollout
        metadata={"help": "Rollouts in a row without one right answer that end the run; 0: never."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.completion_style not in ("r1_zero", "think"):
            raise ConfigError(f"completion_style is {self.completion_style!r}; write r1_zero or think.")
        for name, kwargs in (self.reward_kwargs or {}).items():
            if name in rewards.__all__ and name.lower().endswith("reward") and isinstance(kwargs, dict):
                reward = getattr(rewards, name)  # our rewards are checked before any work; others are custom
                given = {key: value for key, value in kwargs.items() if key != "serve"}
                make_reward(reward if isinstance(reward, type) else type(reward), name, given)


@dataclass
class GRPOConfig:
    """TRL's GRPO settings with DeepSeek-R1's values (sections 2.1 and 3.2.1) as defaults.

    One optimiser step has `prompts_per_step` x `num_generations` completions. `gradient_accumulation_steps` follows
    from this, the micro batch and the number of processes, so the YAML never sets it.
    """

    prompts_per_step: int = field(default=32, metadata={"help": "Unique questions per optimiser step (section 2.1)."})
    generation: str = field(
        default="transformers",
        metadata={"help": "What samples: transformers; vllm_colocate, on the same GPUs; vllm_server, a `vllm serve`."},
    )
    num_generations: int = 16
    generation_batch_size: int | None = 8192
    num_iterations: int = 1
    learning_rate: float = 3e-6
    lr_scheduler_type: str = "constant"  # chosen: only one rate is printed, no decay
    beta: float = 0.001
    use_bias_correction_kl: bool = False  # the k3 estimator as printed (equation 2), not multiplied by the ratio
    epsilon: float = 0.2  # chosen: not printed for R1-Zero; PPO's and TRL's usual value. Section 3.2.1 prints 10
    loss_type: str = "grpo"  # mean over each completion's tokens, then over completions (equation 1)
    scale_rewards: str = "group"  # (r - mean) / std within the group (equation 3)
    temperature: float = 1.0
    top_p: float = 1.0  # chosen: not printed; 1 samples the policy's own distribution
    max_completion_length: int | None = 32768  # section 2.1: 65,536 after step 8,200, as a second run
    max_steps: int = field(default=10400, metadata={"help": "Or token_budget, if sooner."})
    sync_ref_model: bool = True
    ref_model_sync_steps: int = 400
    ref_model_mixup_alpha: float = 1.0  # replaced, not mixed
    max_grad_norm: float = 1.0  # chosen: not printed; TRL's default
    per_device_train_batch_size: int = 16  # chosen: not printed; one group of 16 in a micro batch
    logging_steps: float = 1  # chosen: one row of log.jsonl a step
    save_steps: float = 400  # chosen: as often as the reference is replaced, a multiple of the 16-step rollout window
    save_strategy: str = field(default="steps", metadata={"help": argparse.SUPPRESS})  # TRL's; checked below
    save_total_limit: int | None = 2  # chosen: the last, and the one before while the last is being written
    seed: int = 0  # chosen: the seed of the data jobs, so one number repeats a whole run
    log_completions: bool = True  # chosen: completions are the best check of a reward
    num_completions_to_print: int | None = 0  # chosen: they are in completions/*.parquet; the console stays readable

    def __post_init__(self):
        _require_positive(self, "prompts_per_step", "num_generations", "generation_batch_size")
        completions = self.prompts_per_step * self.num_generations
        micro = self.per_device_train_batch_size * world_size()
        if completions % micro:
            raise ConfigError(
                f"prompts_per_step x num_generations = {self.prompts_per_step} x {self.num_generations} = "
                f"{completions} completions a step do not divide into micro batches of per_device_train_batch_size x "
                f"processes = {self.per_device_train_batch_size} x {world_size()} = {micro}. "
                f"Set per_device_train_batch_size to a divisor of {completions // world_size() or completions}."
            )
        if self.generation_batch_size % completions:
            raise ConfigError(
                f"generation_batch_size {self.generation_batch_size} (completions sampled at once) is not a multiple "
                f"of the {completions} completions of a step (prompts_per_step x num_generations = "
                f"{self.prompts_per_step} x {self.num_generations}). Set it to {completions}, "
                f"or to {completions} times the steps per rollout."
            )
        if self.save_strategy == "best":
            raise ConfigError("save_strategy: best would save amid a rollout, which cannot be resumed; write steps.")
        if self.generation not in GENERATION:
            raise ConfigError(f"generation is {self.generation!r}; write one of {', '.join(GENERATION)}.")
        self.use_vllm = self.generation != "transformers"
        self.vllm_mode = self.generation.removeprefix("vllm_") if self.use_vllm else "colocate"
        self.gradient_accumulation_steps = completions // micro

    @property
    def equation(self) -> str:
        """The batch arithmetic, for people."""
        return (
            f"{self.prompts_per_step} prompts x {self.num_generations} completions = "
            f"{self.prompts_per_step * self.num_generations} a step = {_parts(self)}; "
            f"{self.generation_batch_size} are sampled at once, which makes {self.rollout_window} steps"
        )

    def require_whole_groups(self, reward: str) -> None:
        """Raises ConfigError if a process scores only a part of a group, for a reward that compares within groups."""
        share = self.generation_batch_size / world_size()
        if share % self.num_generations:
            raise ConfigError(
                f"reward_funcs: {reward} compares the {self.num_generations} completions of a prompt, but each of "
                f"{world_size()} processes gets {share:g} of the generation_batch_size of {self.generation_batch_size}"
                f", which splits groups. Set it to a multiple of {self.num_generations * world_size()}, or use fewer "
                "processes."
            )

    @property
    def rollout_window(self) -> int:
        """Number of optimiser steps that share one rollout. TRL resumes exactly only at multiples of it."""
        return self.generation_batch_size * self.num_iterations // (self.prompts_per_step * self.num_generations)


@dataclass
class _SequenceBatch:
    """Common settings of fine-tuning and reward models. One optimiser step has `batch_size` sequences, which determine
    `gradient_accumulation_steps`."""

    logging_steps: float = 10  # chosen: TRL's default
    save_steps: float = 500  # chosen: TRL's default
    save_total_limit: int | None = 2  # chosen: the last, and the one before while the last is being written
    seed: int = 0  # chosen: the seed of the data jobs, so one number repeats a whole run
    rollout_window = 1  # nothing is sampled: every step can be resumed exactly

    def __post_init__(self):
        _require_positive(self, "batch_size")
        self.gradient_accumulation_steps = _micro_batches(self.batch_size, self.per_device_train_batch_size)

    @property
    def equation(self) -> str:
        """The batch arithmetic, for people."""
        return f"{self.batch_size} sequences a step = {_parts(self)}"


@dataclass
class SFTConfig(_SequenceBatch):
    """TRL's SFT settings with DeepSeek-R1's values (appendix B.4.2) as defaults."""

    batch_size: int = field(default=128, metadata={"help": "Sequences per optimiser step (appendix B.4.2)."})
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.1})  # to 5e-6
    num_train_epochs: float = field(  # printed: 2 to 3; v1 section 2.3.3: two
        default=2,
        metadata={"help": "Or max_steps, or token_budget: the first ends a run; this one's default gives way."},
    )
    max_length: int | None = 32768
    warmup_steps: float = 0  # chosen: not printed
    packing: bool = False  # chosen: not printed
    per_device_train_batch_size: int = 1  # chosen: not printed; one sequence of 32,768 tokens in a micro batch

    def __post_init__(self):
        super().__post_init__()
        for key in ("assistant_only_loss", "chat_template_path", "eos_token"):
            if getattr(self, key, None):
                raise ConfigError(
                    f"{key}: rows are tokenized before TRL's trainer sees them, with loss on the completion. Leave it "
                    "out; template and end token are those of the checkpoint's folder (chat_template.jinja, "
                    "tokenizer_config.json)."
                )
        if (getattr(self, "dataset_num_proc", None) or 0) < 0:
            raise ConfigError(
                f"dataset_num_proc is {self.dataset_num_proc}; write a number of processes, or leave it out."
            )
        if self.packing and self.max_length is None:
            raise ConfigError("max_length is none, but packing: true fills sequences of that length; write a number.")


@dataclass
class RewardConfig(_SequenceBatch):
    """TRL's reward model settings with DeepSeek-R1's values (section 3.1) as defaults, for both reward models."""

    batch_size: int = field(default=256, metadata={"help": "Pairs, or responses, per optimiser step (section 3.1)."})
    learning_rate: float = 6e-6
    lr_scheduler_type: str = "constant"  # chosen: only one rate is printed
    num_train_epochs: float = field(
        default=1, metadata={"help": "Or max_steps: the first to be reached ends a run; this one's default gives way."}
    )
    max_length: int | None = 8192
    per_device_train_batch_size: int = 8  # chosen: not printed


def _micro_batches(batch: int, per_device: int) -> int:
    """Number of micro batches of each process in one optimiser step."""
    if batch % (per_device * world_size()):
        raise ConfigError(
            f"batch_size {batch} does not divide into micro batches of per_device_train_batch_size x processes = "
            f"{per_device} x {world_size()}. Set per_device_train_batch_size to a divisor of {batch // world_size()}."
        )
    return batch // (per_device * world_size())


def _parts(config) -> str:
    """The factors of an optimiser step's batch."""
    return (
        f"{config.per_device_train_batch_size} in a micro batch x {world_size()} processes x "
        f"{config.gradient_accumulation_steps} accumulated"
    )


def make_reward(kind: type, name: str, kwargs: dict) -> Callable:
    """A reward with these settings. Raises ConfigError if it does not accept them."""
    try:
        return kind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"reward_kwargs: {name}: {error}. Its settings are {inspect.signature(kind)}.") from None
    except ValueError as error:
        raise ConfigError(f"reward_kwargs: {name}: {error}.") from None


def _require_positive(config, *keys: str) -> None:
    for key in (*keys, "per_device_train_batch_size"):
        if (getattr(config, key) or 0) < 1:
            raise ConfigError(f"{key} is {getattr(config, key)}; write at least 1.")


def _fits(value: object, kind: object) -> bool:
    """Whether a YAML value is valid for a field annotated `kind`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list or kind is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value if inner)
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind is float:
        if isinstance(value, str):  # YAML reads 1e-4, without a point, as a string
            return NUMBER.fullmatch(value) is not None
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    return True  # the trainer itself checks enums and similar types


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(f"command line: {message}")


def _files(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the files of --config and --override, the remaining settings of a command line)."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--override", type=Path)
    return parser.parse_known_args([_underscored(word) for word in argv if word not in FLAGS])


def _underscored(word: str) -> str:
    """Convert `--max-steps=4` to `--max_steps=4`."""
    key, is_whole, value = word.partition("=")
    return f"--{key[2:].replace('-', '_')}{is_whole}{value}" if word.startswith("--") else word


def given(argv: list[str]) -> tuple[str, dict]:
    """(the file of --config, or "command line"; the settings in that file and on the command line)."""
    files, words = _files(argv)
    settings = load_config(files.config, files.override) if files.config else {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            key, is_whole, value = word.removeprefix("--").partition("=")
            values = itertools.takewhile(lambda other: not other.startswith("--"), words[at + 1 :])
            read = [_read(one) for one in ([value] if is_whole else values)]
            if not read:  # a switch
                key, read = (key.removeprefix("no_"), [False]) if key.startswith("no_") else (key, [True])
            settings[key] = read if len(read) > 1 else read[0]
    return str(files.config or "command line"), settings


def _read(word: str) -> Any:
    """A word of the command line, parsed as YAML if possible."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _require_known(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise ConfigError(f"{where}: unknown key '{key}'. The nearest known key is '{near[0]}'.")
        if key in REPLACED:
            raise ConfigError(f"{where}: {key} {REPLACED[key]}.")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser(arguments: type, trainer: type, kinds: dict[str, object]) -> _Parser:
    """A parser with all keys as options. Its help shows keys with our own defaults, and where to find the others."""
    name = trainer.__name__
    parser = _Parser(
        allow_abbrev=False,
        formatter_class=_Formatter,
        usage="%(prog)s --config FILE [--override FILE] [--KEY VALUE ...] [--redo] [--debug]\n"
        f"--override: {commands.OVERRIDE}; --debug: {commands.DEBUG}\n--redo: {commands.REDO}",
        description=f"{sys.modules['__main__'].__doc__}\nEach option is a key of the YAML, too; here it wins.",
        epilog=f"All others are TRL's: https://huggingface.co/docs/trl/v{importlib.metadata.version('trl')}/en/"
        f"{name.removesuffix('Config').lower()}_trainer#trl.{name}",
    )
    usual = commands.defaults(trainer) | commands.defaults(arguments)
    for key, kind in kinds.items():
        hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        settings = {"default": usual[key], "help": _explained(key, arguments, trainer)} if key in usual else hidden
        parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        one = bool if bool in parts else str if str in parts else parts[0]
        if one is bool:
            parser.add_argument(f"--{key}", type=_truth, nargs="?", const=True, **settings)
            parser.add_argument(f"--no_{key}", dest=key, action="store_false", **hidden)
        elif typing.get_origin(one) is list:
            parser.add_argument(f"--{key}", type=typing.get_args(one)[0], nargs="+", **settings)
        else:
            optional = type(None) in parts and one is not str
            parser.add_argument(f"--{key}", type=_or_none(one) if optional else one, **settings)
    return parser


def _kinds(one: type) -> dict[str, object]:
    """The type of each key of a dataclass."""
    hints = typing.get_type_hints(one)
    return {field.name: hints[field.name] for field in fields(one)}


def _explained(key: str, arguments: type, trainer: type) -> str:
    """Our help for a key, or else TRL's."""
    fields = (getattr(one, "__dataclass_fields__", {}).get(key) for one in (*arguments.__mro__, *trainer.__mro__))
    ours = next((one.metadata["help"] for one in fields if one and one.metadata), None)
    theirs = trl_keys.read(trainer.__name__)
    return ours or (theirs[key].help if key in theirs else " ")


def _or_none(kind: type) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        return None if word.lower() in ("none", "null") else kind(word)

    read.__name__ = getattr(kind, "__name__", str(kind))  # argparse names it in errors
    return read


def _truth(word: str) -> bool:
    if word.lower() not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() in ("yes", "true", "t", "y", "1")


def read(arguments: type, trainer: type, argv: list[str] | None = None) -> tuple[Any, dict[str, Any], str]:
    """The part of `parse` without TRL: (the stage's arguments, the trainer's settings, the file they are from)."""
    argv = sys.argv[1:] if argv is None else argv
    where, said = given(argv)
    publishing.read(said, where)
    files, words = _files(argv)
    config = load_config(files.config, files.override) if files.config else {}
    theirs = {key: one.kind for key, one in trl_keys.read(trainer.__name__).items()}
    kinds = _kinds(arguments) | theirs | _kinds(trainer)
    _require_known(where, config, kinds)
    for key, value in config.items():
        if not _fits(value, kinds[key]):
            kind = getattr(kinds[key], "__name__", "") if isinstance(kinds[key], type) else str(kinds[key])
            raise ConfigError(f"{where}: '{key}' is {value!r}, but it must be of type {kind}.")
    parser = _parser(arguments, trainer, kinds)
    parser.set_defaults(**config)
    found, rest = parser.parse_known_args(words)
    settings = vars(found)
    strange = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    _require_known("command line", [*strange, *settings], kinds)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        args = arguments(**{key: settings.pop(key) for key in _kinds(arguments)})
        ours = trainer(**{key: settings[key] for key in _kinds(trainer)})
        for name in getattr(args, "reward_funcs", []):
            if getattr(getattr(rewards, name, None), "whole_groups", False):
                ours.require_whole_groups(name)
        if isinstance(ours, GRPOConfig):
            _require_one_bound(ours, said)
        if getattr(ours, "generation", "") == "vllm_colocate":
            _require_engine(args.max_prompt_length, ours, settings)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return args, settings, where


def _require_one_bound(config: GRPOConfig, said: dict) -> None:
    """Raises ConfigError if two keys limit the length of a run or of a completion."""
    if "num_train_epochs" in said and config.max_steps > 0:
        raise ConfigError(
            f"num_train_epochs would not count beside max_steps: {config.max_steps}. Leave it out, and write max_steps,"
            f" in each of which {config.prompts_per_step} prompts are asked."
        )
    for key in said.get("generation_kwargs") or ():
        if key in GENERATION_KEYS:
            raise ConfigError(
                f"generation_kwargs: {key} would win over {GENERATION_KEYS[key]}; write that key instead."
            )


def _require_engine(prompt: int | None, config: GRPOConfig, settings: dict) -> None:
    """Raises ConfigError for settings that vLLM would refuse after loading the weights, or that silently truncate."""
    room, completion = settings.get("vllm_max_model_length"), config.max_completion_length or 0
    if room and room < (prompt or 0) + completion:
        raise ConfigError(
            f"vllm_max_model_length is {room} tokens, but max_prompt_length {prompt or 0} and max_completion_length "
            f"{completion} make {(prompt or 0) + completion}; write that, or shorter ones."
        )
    at_once = config.generation_batch_size // world_size() * settings.get("vllm_tensor_parallel_size", 1)
    if at_once > ENGINE_SEQUENCES:
        raise ConfigError(
            f"generation_batch_size {config.generation_batch_size} gives each engine {at_once} completions at once; "
            f"beside training vLLM takes {ENGINE_SEQUENCES}. Write a smaller one, or generation: vllm_server."
        )


def parse(arguments: type, trainer: type, argv: list[str] | None = None) -> tuple:
    """Read `--config FILE` and the command line: (the stage's arguments, the trainer's settings with all of TRL's).

    Raises ConfigError for a missing file, an unknown key, or a wrong type or batch in less than a second, and for
    settings that TRL refuses. A stage imports slow libraries after this, so errors other than TRL's appear at once.
    """
    args, settings, where = read(arguments, trainer, argv)
    for key in ("model_name_or_path", "dataset"):
        if not getattr(args, key, key):
            named = f"--config recipes/configs/cpu/{Path(sys.argv[0]).stem}.yaml"
            raise ConfigError(f"{where}: {key} is missing. Name a YAML that has it, as {named}; or write --{key}.")
    from recipes import trl_configs  # imports TRL

    whole = getattr(trl_configs, trainer.__name__)
    for one in fields(whole):
        choices = one.metadata.get("choices")
        if choices and settings.get(one.name) not in (None, *choices):
            raise ConfigError(f"{where}: {one.name} is {settings[one.name]!r}; write one of {', '.join(choices)}.")
    try:
        return args, whole(**settings)
    except ValueError as error:
        if "use_cpu" in str(error):  # the libraries' message is about precision
            error = "no GPU is visible; train on one, or write `use_cpu: true` and `bf16: false`"
        raise ConfigError(f"{where}: {error}") from None


def launch(stage: Callable[[], None]) -> None:
    """Run a stage's `main` and end the process like every command (`data_prep.commands`)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def main(_: list[str]) -> None:
        try:
            stage()
        except Exception as error:
            _leave_for_launcher(error)
            if isinstance(error, RuntimeError) and "to be installed" in str(error):  # transformers' wording
                raise ImportError(str(error)) from error
            # torch and safetensors raise their own exceptions for a full disk, with the reason only in the message.
            if getattr(error, "errno", None) != errno.ENOSPC and not re.search(NO_SPACE, str(error)):
                raise
            raise Stopped(
                f"the disk is full ({error}). Free some space and run the same command again: "
                "training goes on from its last checkpoint."
            ) from error

    if status := commands.run(main):
        raise SystemExit(status)


def _leave_for_launcher(error: Exception) -> None:
    """Write the error to the file that torchrun, used by `accelerate launch`, shows at the end of its report."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": f"error: {error}", "timestamp": int(time.time())}
        told = {"message": {"message": f"error: {error}", "extraInfo": more}}
        Path(path).write_text(json.dumps(told), encoding="utf-8")
