"""Shared code of the reinforcement learning stages: prompts, rewards, and TRL's GRPO with a refreshed reference."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import rewards
from data_prep import prompts
from data_prep.runs import ConfigError
from data_prep.sampling import Decoding, decode
from recipes import checks, engine, reference, sharded
from recipes.config import RLArguments, make_reward
from recipes.data import as_messages, keep_short, read_rows
from recipes.loading import require_checkpoint
from recipes.training import Resumable, Run

import torch
import trl
from accelerate import DistributedType
from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler


def load_prompts(run: Run, tokenizer: PreTrainedTokenizerBase, source: str | None = None) -> Dataset:
    """The rows of `source`, or of `dataset`, for GRPO: `prompt` in the stage's style, and all other columns for the
    rewards. Rows whose prompt is longer than `max_prompt_length`, or leaves no room for a completion, are left out and
    counted."""
    plain = run.args.completion_style == "r1_zero"
    asked = [
        row | {"prompt": prompts.r1_zero(row["prompt"]) if plain else as_messages("user", row["prompt"])}
        for row in read_rows(run.args, source)
    ]
    most, key = checks.limit(run, run.args.max_prompt_length, "max_prompt_length")
    lengths = [0] * len(asked)
    if most is not None:
        texts = [checks.opening(tokenizer, row["prompt"]) for row in asked]
        lengths = list(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return keep_short(run, Dataset.from_list(asked), lengths, most, key)


def load_rewards(args: RLArguments) -> list[Callable]:
    """The callables that `reward_funcs` names, in this order: members of `rewards`, or dotted paths.

    A reward with settings is created again with its `reward_kwargs`. If it has a `style`, the default is the stage's
    completion style, so `format_reward` asks for the same form as the prompt.
    """
    settings = {name: dict(kwargs) for name, kwargs in (args.reward_kwargs or {}).items()}
    for kwargs in settings.values():
        kwargs.pop("serve", None)  # read by the pipeline, which starts a judge
    if unused := sorted(settings.keys() - set(args.reward_funcs)):
        raise ConfigError(
            f"reward_kwargs: {', '.join(unused)} is not among reward_funcs: {', '.join(args.reward_funcs)}."
        )
    found = [_reward(name, settings.get(name, {}), args.completion_style) for name in args.reward_funcs]
    for name, reward in zip(args.reward_funcs, found, strict=True):
        if not callable(reward):
            raise ConfigError(f"reward_funcs: '{name}' is {reward!r:.60}, which cannot be called with completions.")
    return found


def _reward(name: str, kwargs: dict, style: str) -> Callable:
    module, _, member = name.rpartition(".")
    if os.getcwd() not in sys.path:  # it has the script's folder, but not the working directory
        sys.path.append(os.getcwd())
    try:
        reward = getattr(importlib.import_module(module) if module else rewards, member)
    except (ImportError, AttributeError) as error:
        known = ", ".join(sorted(one for one in rewards.__all__ if one.lower().endswith("reward")))
        raise ConfigError(
            f"reward_funcs: there is no '{name}' ({error}). Write one of {known}, or a dotted path to one that is "
            f"installed or lies in {os.getcwd()}."
        ) from None
    except Exception as error:
        where = checks.line_of(error)
        raise ConfigError(f"reward_funcs: {module} fails: {where}: {type(error).__name__}: {error}") from error
    kind = reward if inspect.isclass(reward) else type(reward)
    if kwargs and kind.__module__ in ("builtins", "functools"):
        raise ConfigError(f"reward_kwargs: '{name}' is a function and takes no settings; remove its entry.")
    if reward is not kind and not kwargs and not dataclasses.is_dataclass(kind):
        return reward
    if "model" in kwargs and issubclass(kind, rewards.HelpfulnessReward | rewards.HarmlessnessReward):
        require_checkpoint(kwargs["model"], f"reward_kwargs: {name}: model")
    if "style" in inspect.signature(kind).parameters:
        kwargs.setdefault("style", style)
    if reward is not kind and dataclasses.is_dataclass(kind):  # keep its other settings
        kwargs = {one.name: getattr(reward, one.name) for one in dataclasses.fields(kind) if one.init} | kwargs
    return make_reward(kind, name, kwargs)


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends only on seed and epoch. TRL's generator is not in a checkpoint, so a run
    resumed in its second epoch would repeat the order of the first one."""

    def __init__(self, state: Callable[[], TrainerState], **settings):
        super().__init__(**settings)
        self.state = state

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + int(self.state().epoch or 0))
        return super().__iter__()


class GRPOTrainer(Resumable, trl.GRPOTrainer):
    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        sampler = super()._get_train_sampler(dataset)
        settings = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
        return EpochSampler(lambda: self.state, **{name: getattr(sampler, name) for name in settings})

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.count(inputs["completion_mask"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @property
    def _is_alone(self) -> bool:
        """Whether there is one process with full weights. Several processes have to run each forward pass together."""
        return self.accelerator.distributed_type == DistributedType.NO

    @torch.compiler.set_stance("force_eager")  # layers that were compiled for training would be compiled again
    def _generate_single_turn(self, prompt_ids, *arguments, **more):
        """Like TRL's, but if one process samples with transformers, finished completions are not computed further."""
        others = self.use_vllm or self.use_transformers_continuous_batching
        told = self.args.generation_kwargs or self.args.cache_implementation or self.min_p
        if others or told or self.repetition_penalty != 1.0 or not self._is_alone:
            return super()._generate_single_turn(prompt_ids, *arguments, **more)
        length, pad = self.generation_config.max_new_tokens, self.processing_class.pad_token_id
        decoding = Decoding(length, self.temperature, self.top_p, self.top_k or 0)
        unwrapped = unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )
        with unwrapped as model, self.accelerator.autocast():  # outer autocast: weights are cast once
            return decode.complete(model, prompt_ids, pad, self.eos_token_ids, decoding), None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **more
    ):
        """Like TRL's, but in batches of similar length and without columns that are all padding. On a CPU, a training
        micro batch is split in two parts. Several processes and a MoE's balancing loss need the whole micro batch."""
        score = super()._get_per_token_logps_and_entropies
        order = attention_mask.sum(1).argsort(descending=True)
        alone = self._is_alone and input_ids.device.type == "cpu" and not more.get("compute_aux_loss")
        size = batch_size or (-(-len(order) // 2) if alone else len(order))
        start, parts = input_ids.size(1) - logits_to_keep, []
        for rows in order.split(size):
            used = attention_mask[rows].any(0).nonzero()[:, 0].tolist()
            columns = slice(used[0], max(used[-1], start) + 1)
            logps, entropies, loss = score(
                model, input_ids[rows, columns], attention_mask[rows, columns], columns.stop - start, **more
            )
            padding = (0, input_ids.size(1) - columns.stop)
            parts.append([None if one is None else functional.pad(one, padding) for one in (logps, entropies)] + [loss])
        logps, entropies, losses = zip(*parts, strict=True)
        back = order.argsort()
        return (
            torch.cat(logps)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if losses[0] is None else torch.stack(losses).mean(),
        )

    def _calculate_rewards(self, *arguments):
        """Like TRL's: (completions of all processes, rewards). The rewards are kept for `recipes.watch`."""
        with sharded.whole_models():  # a reward may load a model, which must not be sharded
            self.last_rewards = super()._calculate_rewards(*arguments)
        return self.last_rewards

    def save_more(self, checkpoint: Path) -> None:
        reference.save(self, checkpoint)

    def restore_more(self, checkpoint: Path) -> None:
        reference.restore(self, checkpoint)


def make_trainer(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> GRPOTrainer:
    """TRL's GRPOTrainer with the stage's rewards and a refreshed reference, also with LoRA."""
    args, config = run.args, run.config
    if config.beta == 0.0 and config.sync_ref_model:
        raise ConfigError("sync_ref_model: with beta 0 there is no reference; set sync_ref_model: false.")
    refresh, config.sync_ref_model = config.sync_ref_model, False  # TRL's own refresh refuses LoRA
    funcs = load_rewards(args)
    for name, reward in zip(args.reward_funcs, funcs, strict=True):  # custom rewards; `parse` checks ours
        if getattr(reward, "whole_groups", False):
            config.require_whole_groups(name)
    if config.use_vllm:
        engine.refuse_unmerged(model)
    funcs = [checks.guarded(name, reward) for name, reward in zip(args.reward_funcs, funcs, strict=True)]
    if args.doctor:
        subject = {"rows": list(rows), "reward_funcs": funcs, "tokenizer": tokenizer}
        checks.tell("RL rows", args=args, config=config, **subject)
    trainer = GRPOTrainer(model, reward_funcs=funcs, args=config, train_dataset=rows, processing_class=tokenizer)
    config.sync_ref_model = refresh
    if config.use_vllm:
        engine.adopt(trainer)
    if config.beta:
        steps = config.ref_model_sync_steps if refresh else None
        trainer.add_callback(reference.ReferenceRefresh(trainer, steps, config.ref_model_mixup_alpha))
    return trainer
