"""Reasoning-oriented reinforcement learning, Dev1 to Dev2 (section 3.2.1).

It starts from the cold-start checkpoint. Data: reasoning questions as chat messages. Rewards: accuracy and format as
for R1-Zero, and the share of target-language words in the reasoning (equation 7), added with weight 1. Trainer: GRPO
with the clip ratio of 10 in this section (the YAML's `epsilon`). In the ablation of appendix B.6, `reward_weights` sets
the weight of the language reward to 0.
"""

from dataclasses import dataclass, field

from recipes.commandline import launch
from recipes.config import GRPOConfig, RLArguments


@dataclass
class ReasoningRLArguments(RLArguments):
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy_reward", "code_reward", "format_reward", "language_consistency_reward"]
    )


SETTINGS = ReasoningRLArguments, GRPOConfig


def main(args: ReasoningRLArguments, config: GRPOConfig) -> None:
    from recipes import grpo, loading, training  # slow to import, so after the settings are read

    run = training.start(args, config)
    policy, tokenizer = loading.load_policy(run)
    questions = grpo.load_prompts(run, tokenizer)
    run.train(grpo.make_trainer(run, policy, tokenizer, questions))


if __name__ == "__main__":
    launch(main, *SETTINGS)
