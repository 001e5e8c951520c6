"""Reinforcement learning for all scenarios, Dev3 to R1 (section 3.2.2).

It starts from the second SFT stage. Data: first reasoning questions with rule rewards only, then a mix of reasoning and
general prompts for the last 24% of the steps (400 of the paper's 1,700; with more, the policy exploits the reward
models, appendix B.5). Rewards: those of reasoning RL, and helpfulness or harmlessness for general prompts by their kind
(equations 8 to 10). A reward skips rows of other kinds. Rewards are summed; the key `reward_weights` sets the
walkthrough's weights. Trainer: one GRPO run, in which the order of the rows sets the phase; temperature 0.7 (paper).
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.rows import Row
from data_prep.runs import ConfigError
from recipes.commandline import launch
from recipes.config import GRPOConfig, RLArguments


@dataclass
class AllScenariosArguments(RLArguments):
    reward_funcs: list[str] = field(
        default_factory=lambda: [
            *("accuracy_reward", "code_reward", "format_reward", "language_consistency_reward"),
            *("HelpfulnessReward", "HarmlessnessReward"),
        ]
    )
    general_datasets: list[str] = field(
        default_factory=list, metadata={"help": "Rows of kind helpful and harmless; each file gets an equal share."}
    )
    mixed_phase: float = field(
        default=400 / 1700, metadata={"help": "Share of the steps, at the end, that train on the mix (section 3.2.2)."}
    )
    general_share: float = field(
        default=0.5,  # chosen: not printed; equal numbers of general and reasoning prompts
        metadata={"help": "Share of general prompts in each step of the mixed phase."},
    )


SETTINGS = AllScenariosArguments, GRPOConfig


def schedule(
    reasoning: list[Row], general: list[list[Row]], args: AllScenariosArguments, config: GRPOConfig
) -> list[Row]:
    """The rows in training order: `prompts_per_step` for each step, in whole rollouts.

    Every list is used up in random order before any of its rows is repeated. With `num_iterations` above 1, a rollout's
    steps are repeated, and its rows are listed only once.
    """
    shuffle = random.Random(config.seed)
    rules, *others = (_forever(rows, shuffle) for rows in [reasoning, *general])
    asked = itertools.cycle(others)
    mixed = round(config.prompts_per_step * args.general_share)
    first = config.max_steps - round(config.max_steps * args.mixed_phase)
    order = []
    window = config.rollout_window
    for step in range(-(-config.max_steps // window) * window):
        if step % window >= window // config.num_iterations:
            continue
        count = mixed if step >= first else 0
        order += [next(rules) for _ in range(config.prompts_per_step - count)]
        order += [next(next(asked)) for _ in range(count)]
    return order


def _forever(rows: list[Row], shuffle: random.Random) -> Iterator[Row]:
    while True:
        yield from shuffle.sample(rows, len(rows))


def main(args: AllScenariosArguments, config: GRPOConfig) -> None:
    from recipes import grpo, loading, training  # slow to import, so after the settings are read

    from datasets import Dataset

    run = training.start(args, config)
    if not run.args.general_datasets:
        raise ConfigError("general_datasets is missing: list the files with helpful and harmless rows.")
    policy, tokenizer = loading.load_policy(run)
    if run.config.max_steps < 1:
        raise ConfigError(f"max_steps is {run.config.max_steps}; write how many, of which the last are mixed.")
    found, too_long = [], 0
    for source in [None, *run.args.general_datasets]:
        found.append(list(grpo.load_prompts(run, tokenizer, source)))
        too_long += run.figures["rows_too_long"]
    questions = Dataset.from_list(schedule(found[0], found[1:], run.args, run.config))
    run.figures |= {"rows": len(questions), "rows_too_long": too_long}
    run.config.shuffle_dataset = False  # their order sets the two phases
    run.train(grpo.make_trainer(run, policy, tokenizer, questions))


if __name__ == "__main__":
    launch(main, *SETTINGS)
