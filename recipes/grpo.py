"""What the reinforcement learning stages share: prompts, rewards, and TRL's GRPO with a reference that is refreshed."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

import rewards
from data_prep import prompts
from data_prep.runs import ConfigError
from recipes import reference
from recipes.config import GRPOConfig, RLArguments
from recipes.training import Resumable, as_messages, read_rows, short_enough


def load_prompts(args: RLArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows as GRPO reads them: `prompt` in the stage's style, every other column for the rewards."""
    rows = read_rows(args)
    for row in rows:
        user = row["prompt"]
        row["prompt"] = prompts.r1_zero(user) if args.completion_style == "r1_zero" else as_messages("user", user)
    return short_enough(rows, args, tokenizer)


def load_rewards(args: RLArguments) -> list[Callable]:
    """The callables that `reward_funcs` names, in its order: members of `rewards`, or dotted paths.

    A class is made with its `reward_kwargs`; one that has a `style` gets the stage's completion style, unless told
    otherwise.
    """
    settings = dict(args.reward_kwargs or {})
    found = []
    for name in args.reward_funcs:
        module, _, member = name.rpartition(".")
        try:
            reward = getattr(importlib.import_module(module) if module else rewards, member)
        except (ImportError, AttributeError):
            known = ", ".join(sorted(one for one in dir(rewards) if one.lower().endswith("reward")))
            raise ConfigError(
                f"reward_funcs: there is no reward '{name}'. Write one of {known}, or a dotted path."
            ) from None
        kwargs = settings.pop(name, {})
        if inspect.isclass(reward):
            if "style" in inspect.signature(reward).parameters:
                kwargs.setdefault("style", args.completion_style)
            reward = reward(**kwargs)
        elif kwargs:
            raise ConfigError(f"reward_kwargs: '{name}' is a function and takes none; remove the entry.")
        found.append(reward)
    if settings:
        raise ConfigError(
            f"reward_kwargs: {', '.join(settings)} is not among reward_funcs ({', '.join(args.reward_funcs)})."
        )
    return found


class GRPOTrainer(Resumable, trl.GRPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.count(inputs["completion_mask"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def save_more(self, checkpoint: Path) -> None:
        reference.save(self, checkpoint)

    def restore_more(self, checkpoint: Path) -> None:
        reference.restore(self, checkpoint)


def make_trainer(args: RLArguments, config: GRPOConfig, model, tokenizer, rows: Dataset) -> GRPOTrainer:
    """TRL's GRPOTrainer with the stage's rewards and a reference that is refreshed, also with LoRA."""
    if config.beta == 0.0 and config.sync_ref_model:
        raise ConfigError("sync_ref_model: with beta 0 there is no reference; set sync_ref_model: false.")
    refresh, config.sync_ref_model = config.sync_ref_model, False  # TRL's own refuses LoRA
    trainer = GRPOTrainer(
        model, reward_funcs=load_rewards(args), args=config, train_dataset=rows, processing_class=tokenizer
    )
    config.sync_ref_model = refresh
    if refresh:
        trainer.add_callback(
            reference.ReferenceRefresh(trainer, config.ref_model_sync_steps, config.ref_model_mixup_alpha)
        )
    return trainer
