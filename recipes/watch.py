"""Watches a run while it trains: it takes a small sample before the first step and then logs each red flag once.

A run without a correct answer in `stop_when_all_wrong` successive rollouts is ended, because it has nothing to learn
from. A run whose groups are all correct has nothing left to learn, but continues.
"""

import contextlib
import copy
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterator

from data_prep.runs import ConfigError, Stopped
from recipes import checks
from recipes.checks import Finding
from recipes.qlora_proof import unreached

import numpy
import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
SAMPLES, SAMPLE_TOKENS = 32, 1024  # completions before the first step and their maximum length; it takes seconds
ENOUGH = 128  # wrong answers in a row that are a red flag; fewer may be chance
FIRST = 3  # successive steps until a red flag is logged; optimiser steps whose gradients are checked
LOST = "The weights are lost with it. Write a lower learning_rate, and go on from an earlier checkpoint."
# chosen: far beyond the values of a run that learns. (metric, whether it is a red flag, its meaning and what to do)
FLAGS = (
    ("completions/clipped_ratio", lambda x: x > 0.9, "Completions are cut off before they answer. Write a longer "
     "max_completion_length, or start from a policy that ends its answers; completions/*.parquet has them."),
    ("entropy", lambda x: x < 1e-3, "The policy always says the same, and explores nothing. Write a lower "
     "learning_rate or a higher temperature."),
    ("kl", lambda x: abs(x) > 5, "The policy has left its reference, where text falls apart. Write a lower "
     "learning_rate or a higher beta."),
    ("grad_norm", lambda x: not math.isfinite(x), LOST),
    ("sampling/importance_sampling_ratio/min", lambda x: x == 0, "vLLM and the policy differ so much on a completion "
     "that TRL leaves it out of the gradient. Write shorter completions, or vllm_importance_sampling_mode: "
     "token_truncate."),
)  # fmt: skip


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restores the random generators of Python, NumPy and torch on all devices at the end of the block."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])


def sample(trainer) -> Iterator[Finding]:
    """Findings on the policy's completions of a few prompts, with the trainer's own generation and rewards. Every
    process has to call it. The trainer is not changed."""
    size = trainer.num_generations
    prompts = max(1, SAMPLES // size // trainer.accelerator.num_processes)
    data = trainer.train_dataset
    if "kind" in data.column_names:  # general rows would load reward models too early
        data = data.select([n for n, kind in enumerate(data["kind"]) if kind == "reasoning"] or range(len(data)))
    number, count = trainer.accelerator.process_index, trainer.accelerator.num_processes
    rows = checks.spread(data, prompts * count)
    rows = rows[number::count][: len(rows) // count] or rows[:1]  # equal counts, which TRL's gather assumes
    rows = [row for row in rows for _ in range(size)]
    mode = "train" if trainer.model.training else "eval"
    limit = min(SAMPLE_TOKENS, trainer.max_completion_length)
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    key = "max_completion_length" if trainer.use_vllm else "max_new_tokens"
    before = copy.deepcopy(trainer._metrics), trainer.state.num_input_tokens_seen, getattr(sampler, key)
    setattr(sampler, key, limit)
    try:
        with same_random_numbers():
            asked = [row["prompt"] for row in rows]
            _, tokens, _, said, *_ = trainer._generate(asked)
            scored = trainer._calculate_rewards(rows, asked, said, tokens)
    finally:
        clipped = trainer._metrics[mode]["completions/clipped_ratio"][-1:]
        trainer._metrics, trainer.state.num_input_tokens_seen = before[:2]
        setattr(sampler, key, before[2])
        trainer._pending_metrics.clear()
        trainer._pending_extra_logs.clear()
    rewards = (scored * trainer.reward_weights.to(scored.device)).nansum(1).view(-1, size)
    dead = (rewards.std(1) < 1e-6).float().mean().item()
    if trainer.accelerator.is_main_process:
        text = "sample of %d completions: mean reward %.3f, %.0f%% cut off at %d tokens, %.0f%% of the groups all alike"
        logger.info(text, rewards.numel(), rewards.mean(), 100 * clipped[0], limit, 100 * dead)
    if clipped[0] > 0.95 and limit == trainer.max_completion_length:
        yield Finding(
            f"{clipped[0]:.0%} of a sample's completions are cut off at max_completion_length: {limit}. They have "
            "neither answer nor format, so that the reward stays 0. Write a longer one, or start from a policy that "
            "ends its answers.",
            stops=False,
        )


class Watch(TrainerCallback):
    """The callback of one trainer. It is added last, so it sees the effects of the others."""

    def __init__(self, trainer, args):
        self.trainer, self.limit = trainer, getattr(args, "stop_when_all_wrong", 0)
        self.names = getattr(trainer, "reward_func_names", [])
        self.wrong = self.done = 0
        self.times, self.said, self.unmoved = Counter(), set(), None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.names and state.global_step == 0:  # a resumed run was sampled when it began
            try:
                checks.tell(sample(self.trainer))
            except checks.STEPS_ERRORS as error:
                if isinstance(error, ConfigError | Stopped):
                    raise
                text = f"A sample failed ({type(error).__name__}: {error}), and so will the first rollout."
                self._say("sample", text)
            self.trainer.last_rewards = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Check in the first steps with any gradient that every tensor has a finite one."""
        if self.unmoved == set() or self.done == FIRST or self.trainer.is_deepspeed_enabled:
            return
        grads = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
        still = {name for name, grad in grads.items() if grad is None or not grad.any()}
        if broken := [name for name in grads.keys() - still if not torch.isfinite(grads[name]).all()]:
            self._say("nan", f"The gradients of {len(broken)} tensors are not finite. {LOST}")
        if len(still) == len(grads):  # in RL, all groups may be correct
            advice = "Nothing is learnt. Look at the rows and at what is trainable."
            self._flag("no gradient", not self.names, "there is no gradient", advice)
            return
        self.done += 1
        self.unmoved = still if self.unmoved is None else self.unmoved & still
        if self.done == FIRST and (never := unreached(sorted(self.unmoved), grads.keys() - self.unmoved)):
            some = ", ".join(never[:3])
            text = f"{len(never)} of {len(grads)} trainable tensors have had no gradient in {FIRST} steps ({some})"
            self._say("still", f"{text}. They stay as they are. Name targets that the forward pass uses.")

    def on_step_end(self, args, state, control, **kwargs):
        loss = getattr(self.trainer, "last_loss", None)
        if state.global_step <= FIRST and loss is not None:
            chance = math.log(self.trainer.model.config.vocab_size)
            if not math.isfinite(loss) or (not self.names and loss > chance + 1):
                text = f"The loss is {float(loss):.2f}, and chance is {chance:.2f}. Tokens mean something else to this "
                text += (
                    "model, or it has read nothing like these rows. Unless the loss soon falls, take its own tokenizer."
                )
                self._say("loss", text)
        scored = getattr(self.trainer, "last_rewards", None)
        if scored is None:
            return
        self.trainer.last_rewards = None  # a rollout that several steps share counts once
        size = self.trainer.num_generations
        rules = [i for i, name in enumerate(self.names) if "accuracy" in name or name == "code_reward"]
        total = (scored * self.trainer.reward_weights.to(scored.device)).nansum(1).view(-1, size)
        dead = (total.std(1) < 1e-6).all().item()
        answered = scored[:, rules]
        answered = answered[~answered.isnan()] if rules else total
        right = answered.numel() == 0 or answered.max().item() > 0
        self.wrong = 0 if right or not (rules or dead) else self.wrong + 1
        same = dead and total.max() == total.min() and not (rules and right)
        advice = (
            "Nothing is learnt. Take questions of which some answers are right and some wrong: pass rate 0.2 to 0.8."
        )
        self._flag("dead", same, "all completions get the same reward", advice)
        text = f"not one answer is right in {self.wrong} rollouts of {answered.numel()}"
        many = self.wrong >= FIRST and self.wrong * answered.numel() >= ENOUGH
        self._flag("wrong", many, text, f"No group teaches what is right. Take {self._advice()}.", 1)
        if self.limit and self.wrong >= self.limit:
            raise ConfigError(
                f"stop_when_all_wrong: not one answer was right in {self.wrong} rollouts, up to step "
                f"{state.global_step}. Nothing can be learnt from that. Take {self._advice()}; or write "
                "stop_when_all_wrong: 0, which never ends a run."
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name, bad, advice in FLAGS:
            value = (logs or {}).get(name)
            if value is not None:
                enough = 1 if not math.isfinite(value) or (name == "kl" and abs(value) > 100) else FIRST
                self._flag(name, bad(value), f"{name} is {value:.4g}", advice, enough)

    def _advice(self) -> str:
        return "easier questions, or a base that gets some of them right; python -m recipes.tools.doctor checks rewards"

    def _flag(self, what: str, is_bad, text: str, advice: str, enough: int = FIRST) -> None:
        """Log a flag once, after it was raised for `enough` steps in a row."""
        self.times[what] = self.times[what] + 1 if is_bad else 0
        if self.times[what] >= enough:
            self._say(what, text + (f", {enough} times in a row" if enough > 1 else "") + f". {advice}")

    def _say(self, what: str, text: str) -> None:
        if os.environ.get("RANK", "0") == "0" and what not in self.said:
            logger.warning("red flag at step %d: %s", self.trainer.state.global_step, text)
        self.said.add(what)
