"""The settings of a stage: the paper's values as defaults, a YAML that overrides them, and errors that name the key.

Defaults are DeepSeek-R1's (arXiv 2501.12948v2). A value that the paper does not print is marked `chosen:` with its
reason. `recipes.commandline` reads a YAML into them. This module does not import TRL or torch.
"""

import argparse
import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import rewards
from data_prep.runs.configs import ConfigError
from rewards.settings import Count, Positive, check

GENERATION = ("transformers", "vllm_colocate", "vllm_server")
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

    dtype: Literal["float32", "bfloat16"] | None = field(
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
    threads: Positive = field(default=1, metadata={"help": "OMP_NUM_THREADS in a pipeline on CPUs."})
    compile_layers: bool = field(default=False, metadata={"help": "Use torch.compile on each layer."})
    doctor: bool = field(default=True, metadata={"help": "Check before and while training."})

    def __post_init__(self):
        self.dtype = self.dtype or "float32"
        check(self)


@dataclass
class LoraArguments(StageArguments):
    """The settings of a stage that can train an adapter instead of all weights."""

    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter and merge it at the end."})
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: the frozen weights, experts too, are held in NF4; implies use_peft."}
    )
    lora_r: Positive = field(default=32, metadata={"help": "Rank."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale: alpha / r."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers that get an adapter; in 4 bits also the words attention, experts. All, if none."
        },
    )
    expert_parallel: Positive = field(
        default=1, metadata={"help": "Processes that share the experts of each layer, with load_in_4bit: all, or 1."}
    )

    def __post_init__(self):
        if self.load_in_4bit:
            self.use_peft, self.dtype = True, self.dtype or "bfloat16"
        super().__post_init__()
        if self.expert_parallel > 1 and not self.load_in_4bit:
            raise ConfigError("expert_parallel: only experts in 4 bits are shared; write load_in_4bit: true.")


@dataclass
class PolicyArguments(LoraArguments):
    """The settings of a stage that trains a policy on rows."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or Hub id to start from."}
    )
    dataset: str | None = field(default=None, metadata={"help": "Parquet file, or Hub data set id, with the rows."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    max_position_embeddings: Positive | None = field(
        default=None, metadata={"help": "What the checkpoint's config says from here on, for a base of short context."}
    )
    token_budget: Positive | None = field(
        default=None,
        metadata={"help": "Completion tokens with a gradient that end a run, unless another bound does before."},
    )


@dataclass
class RLArguments(PolicyArguments):
    """The settings of a reinforcement learning stage in addition to those of its trainer."""

    completion_style: Literal["r1_zero", "think"] = field(
        default="think", metadata={"help": "r1_zero: the paper's template as plain text; think: chat messages."}
    )
    max_prompt_length: Positive | None = field(
        default=None, metadata={"help": "Rows with longer prompts, in tokens, are left out."}
    )
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Names in `rewards`, or dotted paths to your own."}
    )
    reward_kwargs: dict | None = field(default=None, metadata={"help": "Settings of rewards, by name in reward_funcs."})
    stop_when_all_wrong: Count = field(
        default=5,  # chosen: 40,960 of the paper's completions without a correct one, or 2,560 if a step is a rollout
        metadata={"help": "Rollouts in a row without one right answer that end the run; 0: never."},
    )

    expert_parallel: Positive = field(default=1, metadata={"help": argparse.SUPPRESS})

    def __post_init__(self):
        if self.expert_parallel != 1:
            raise ConfigError(
                "expert_parallel: GRPO cannot share experts yet, because processes end their answers at different "
                "tokens, and one that has ended takes no part in the others' exchanges. Write expert_parallel: 1."
            )
        super().__post_init__()
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

    prompts_per_step: Positive = field(
        default=32, metadata={"help": "Unique questions per optimiser step (section 2.1)."}
    )
    generation: Literal[GENERATION] = field(
        default="transformers",
        metadata={"help": "What samples: transformers; vllm_colocate, on the same GPUs; vllm_server, a `vllm serve`."},
    )
    num_generations: Positive = 16
    generation_batch_size: Positive = 8192
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
    per_device_train_batch_size: Positive = 16  # chosen: not printed; one group of 16 in a micro batch
    logging_steps: float = 1  # chosen: one row of log.jsonl a step
    save_steps: float = 400  # chosen: as often as the reference is replaced, a multiple of the 16-step rollout window
    save_strategy: str = field(default="steps", metadata={"help": argparse.SUPPRESS})  # TRL's; checked below
    save_total_limit: int | None = 2  # chosen: the last, and the one before while the last is being written
    seed: int = 0  # chosen: the seed of the data jobs, so one number repeats a whole run
    log_completions: bool = True  # chosen: completions are the best check of a reward
    num_completions_to_print: int | None = 0  # chosen: they are in completions/*.parquet; the console stays readable

    def __post_init__(self):
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
        self.gradient_accumulation_steps = _micro_batches(self.batch_size, self.per_device_train_batch_size)

    @property
    def equation(self) -> str:
        """The batch arithmetic, for people."""
        return f"{self.batch_size} sequences a step = {_parts(self)}"


@dataclass
class SFTConfig(_SequenceBatch):
    """TRL's SFT settings with DeepSeek-R1's values (appendix B.4.2) as defaults."""

    batch_size: Positive = field(default=128, metadata={"help": "Sequences per optimiser step (appendix B.4.2)."})
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = field(default_factory=lambda: {"min_lr_rate": 0.1})  # to 5e-6
    num_train_epochs: float = field(  # printed: 2 to 3; v1 section 2.3.3: two
        default=2,
        metadata={"help": "Or max_steps, or token_budget: the first ends a run; this one's default gives way."},
    )
    max_length: int | None = 32768
    dataset_num_proc: Count | None = None
    warmup_steps: float = 0  # chosen: not printed
    packing: bool = False  # chosen: not printed
    per_device_train_batch_size: Positive = 1  # chosen: not printed; one sequence of 32,768 tokens in a micro batch

    def __post_init__(self):
        super().__post_init__()
        for key in ("assistant_only_loss", "chat_template_path", "eos_token"):
            if getattr(self, key, None):
                raise ConfigError(
                    f"{key}: rows are tokenized before TRL's trainer sees them, with loss on the completion. Leave it "
                    "out; template and end token are those of the checkpoint's folder (chat_template.jinja, "
                    "tokenizer_config.json)."
                )
        if self.packing and self.max_length is None:
            raise ConfigError("max_length is none, but packing: true fills sequences of that length; write a number.")


@dataclass
class RewardConfig(_SequenceBatch):
    """TRL's reward model settings with DeepSeek-R1's values (section 3.1) as defaults, for both reward models."""

    batch_size: Positive = field(
        default=256, metadata={"help": "Pairs, or responses, per optimiser step (section 3.1)."}
    )
    learning_rate: float = 6e-6
    lr_scheduler_type: str = "constant"  # chosen: only one rate is printed
    num_train_epochs: float = field(
        default=1, metadata={"help": "Or max_steps: the first to be reached ends a run; this one's default gives way."}
    )
    max_length: int | None = 8192
    per_device_train_batch_size: Positive = 8  # chosen: not printed


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
