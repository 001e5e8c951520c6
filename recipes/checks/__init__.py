"""Checks of a stage before it trains: settings, tokenizer, rows, rewards, weights.

`recipes.training` runs each check where its subject is loaded. `python -m recipes.tools.doctor` checks all stages of a
scale at once. A `Finding` states in whole sentences what is wrong, why it matters and what to write. A finding that
would certainly waste the run stops it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.checks.finding import Finding, spread, tell
from recipes.checks.model import of_loading, of_model
from recipes.checks.reward_functions import RewardError, guarded, line_of, of_rewards
from recipes.checks.rows import of_completions, of_lengths, of_questions, of_trained
from recipes.checks.settings import NO_GPU, launched, limit, of_room, of_settings, of_sharding, shape_of, versions
from recipes.checks.template import faithful, of_tokenizer, opening

__all__ = [
    "NO_GPU", "Finding", "RewardError", "faithful", "guarded", "launched", "limit", "line_of", "of_completions",
    "of_lengths", "of_loading", "of_questions", "of_rewards", "of_sharding", "of_start", "of_tokenizer", "of_trainer",
    "opening", "shape_of", "spread", "tell", "versions",
]  # fmt: skip
STEPS_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def of_start(args: Any, config: Any, environment: Mapping[str, str], offline: bool = False) -> Iterator[Finding]:
    """The checks before anything is loaded."""
    yield from versions()
    yield from of_settings(args, config)
    shape = shape_of(getattr(args, "model_name_or_path", None), offline)
    yield from of_sharding(args, shape, environment)
    yield from of_room(args, config, shape)


def of_trainer(trainer: Any, args: Any) -> Iterator[Finding]:
    """The checks after everything is loaded."""
    tokenizer = trainer.processing_class
    yield from of_model(trainer, args)
    if hasattr(args, "reward_funcs"):
        rows, need = list(trainer.train_dataset), trainer.args.generation_batch_size // trainer.args.num_generations
        if len(rows) < need:
            yield Finding(
                f"There are {len(rows)} rows, and a rollout takes {need} (generation_batch_size / num_generations). "
                "TRL would train no step and say that it is done. Write a smaller generation_batch_size."
            )
        yield from of_questions(rows, trainer.reward_funcs)
        yield from of_rewards(trainer.reward_funcs, rows, tokenizer, args, trainer.args)
    else:
        yield from of_trained(trainer, tokenizer)
