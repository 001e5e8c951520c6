"""DeepSeek-R1-Zero: reinforcement learning on a base model, without any supervised fine-tuning (section 2).

It starts from a base checkpoint. Data: reasoning questions in the paper's template (Table 1), without a chat template.
Rewards: accuracy (by rule, or by running the code) and format, with equal weights (equation 4). There is no neural
reward model and no language reward. Trainer: GRPO. The small model that the paper trains with RL alone (v1, section
4.1) uses this script with another YAML.
"""

from dataclasses import dataclass, field
from typing import Literal

from recipes.commandline import launch
from recipes.config import GRPOConfig, RLArguments


@dataclass
class R1ZeroArguments(RLArguments):
    completion_style: Literal["r1_zero", "think"] = "r1_zero"
    reward_funcs: list[str] = field(default_factory=lambda: ["accuracy_reward", "code_reward", "format_reward"])


SETTINGS = R1ZeroArguments, GRPOConfig


def main(args: R1ZeroArguments, config: GRPOConfig) -> None:
    from recipes import grpo, loading, training  # slow to import, so after the settings are read

    run = training.start(args, config)
    policy, tokenizer = loading.load_policy(run)
    questions = grpo.load_prompts(run, tokenizer)
    run.train(grpo.make_trainer(run, policy, tokenizer, questions))


if __name__ == "__main__":
    launch(main, *SETTINGS)
