"""The check of a policy before its first step: a few completions, with the trainer's own generation and rewards."""

import copy
from collections.abc import Iterator
from typing import Any

from recipes.checks.finding import Finding, logger, spread

SAMPLES, SAMPLE_TOKENS = 32, 1024  # completions before the first step and their maximum length; it takes seconds


def of_sample(trainer: Any) -> Iterator[Finding]:
    """Samples completions of a few prompts and logs their rewards. Every process has to call it. The trainer is not
    changed."""
    size = trainer.num_generations
    prompts = max(1, SAMPLES // size // trainer.accelerator.num_processes)
    data = trainer.train_dataset
    if "kind" in data.column_names:  # general rows would load reward models too early
        data = data.select([n for n, kind in enumerate(data["kind"]) if kind == "reasoning"] or range(len(data)))
    number, count = trainer.accelerator.process_index, trainer.accelerator.num_processes
    rows = spread(data, prompts * count)
    rows = rows[number::count][: len(rows) // count] or rows[:1]  # equal counts, which TRL's gather assumes
    rows = [row for row in rows for _ in range(size)]
    mode = "train" if trainer.model.training else "eval"
    limit = min(SAMPLE_TOKENS, trainer.max_completion_length)
    sampler = trainer.vllm_generation if trainer.use_vllm else trainer.generation_config
    key = "max_completion_length" if trainer.use_vllm else "max_new_tokens"
    before = copy.deepcopy(trainer._metrics), trainer.state.num_input_tokens_seen, getattr(sampler, key)
    setattr(sampler, key, limit)
    try:
        asked = [row["prompt"] for row in rows]
        _, tokens, _, said, *_ = trainer._generate(asked)
        scored = trainer._calculate_rewards(rows, asked, said, tokens)
    finally:
        clipped = trainer._metrics[mode]["completions/clipped_ratio"][-1:]
        trainer._metrics, trainer.state.num_input_tokens_seen = before[:2]
        setattr(sampler, key, before[2])
        trainer._pending_metrics.clear()
        trainer._pending_extra_logs.clear()
        trainer.last_rewards = None
    rewards = (scored * trainer.reward_weights.to(scored.device)).nansum(1).view(-1, size)
    dead = (rewards.std(1) < 1e-6).float().mean().item()
    if trainer.accelerator.is_main_process:
        text = "sample of %d completions: mean reward %.3f, %.0f%% cut off at %d tokens, %.0f%% of the groups all alike"
        logger.info(text, rewards.numel(), rewards.mean(), 100 * clipped[0], limit, 100 * dead)
    if clipped[0] > 0.95 and limit == trainer.max_completion_length:
        yield Finding(
            f"{clipped[0]:.0%} of a sample's completions are cut off at max_completion_length: {limit}. They have "
            "neither an answer nor the right format, so that the reward stays 0. Write a longer one, or start from a "
            "policy that ends its answers.",
            stops=False,
        )
