"""The doctor's checks: what would waste a run, found at the first moment at which it can be known.

A check is a function that yields a `Finding` for each fault. `CHECKS` lists all of them by their moments. A stage calls
`tell` where a moment's subject is loaded. `python -m recipes.tools.doctor` calls `look` for what can be loaded without
weights. To add a check, write the function and name it at its moment. Its parameters are any of the names in the
comment there. An error that a library or our own settings raise by themselves needs no check.

While a stage trains, two callbacks log red flags: `checks.gradients` in the first steps, and `recipes.watch` until the
end.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from data_prep.runs import ConfigError
from recipes.checks import model, rows, settings, template
from recipes.checks.finding import Finding, same_random_numbers, warn
from recipes.checks.reward_functions import RewardError, guarded, line_of, of_rewards
from recipes.checks.sample import of_sample
from recipes.checks.settings import NO_GPU, launched, limit, shape_of
from recipes.checks.template import faithful, opening

__all__ = [
    "CHECKS", "NO_GPU", "Finding", "RewardError", "faithful", "guarded", "launched", "limit", "line_of", "look",
    "opening", "shape_of", "tell", "warn",
]  # fmt: skip
CHECKS = {
    # Before anything is loaded: args, config, environment, and shape, the model's config or None.
    "start": (
        settings.versions,
        settings.of_device,
        settings.of_learning,
        settings.of_rewarding,
        settings.of_sharding,
        settings.of_room,
    ),
    # The tokenizer is loaded: tokenizer, args.
    "tokenizer": (template.of_tokens, template.of_template),
    # The weights are read: info of from_pretrained, model, tokenizer, and whether the embeddings are frozen.
    "weights": (model.of_loading, model.of_the_end_token),
    # Rows of fine-tuning are loaded: rows, tokenizer.
    "SFT rows": (rows.of_completions,),
    # Rows are counted in tokens: lengths, limit, key.
    "lengths": (rows.of_lengths,),
    # Rows of reinforcement learning and their rewards are loaded: rows, reward_funcs, tokenizer, args, config.
    "RL rows": (rows.of_rollouts, rows.of_questions, of_rewards),
    # The trainer is ready: trainer, args.
    "trainer": (model.of_weights, model.of_experts, rows.of_trained),
    # The first step of reinforcement learning is about to begin: trainer.
    "first step": (of_sample,),
}


def look(moment: str, **subject: Any) -> Iterator[Finding]:
    """All findings of a moment. `subject` has the names that `CHECKS` gives for it."""
    for check in CHECKS[moment]:
        yield from check(**{name: subject[name] for name in inspect.signature(check).parameters})


def tell(moment: str, **subject: Any) -> None:
    """Log the findings of a moment that are only warnings. Raises ConfigError with all others. The run's random numbers
    stay what they would be without the checks."""
    with same_random_numbers():
        findings = list(look(moment, **subject))
    for finding in findings:
        if not finding.stops:
            warn(f"doctor: {finding}")
    if stops := [str(finding) for finding in findings if finding.stops]:
        raise ConfigError("\n".join([*stops, "(The key doctor: false leaves this check out.)"]))
