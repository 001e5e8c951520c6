"""DeepSeek-R1-Zero: reinforcement learning on a base model, without any supervised fine-tuning (section 2).

Starts from a base checkpoint. Data: reasoning questions in the paper's template (Table 1), no chat template. Rewards:
accuracy and format, with the same weight (equation 4), no neural reward model, nothing about language. Trainer: GRPO.
The student that the paper trains by RL alone (section 4.1 of v1) is this script with another YAML.
"""

from dataclasses import dataclass, field

from recipes import grpo, training
from recipes.config import GRPOConfig, RLArguments, parse


@dataclass
class R1ZeroArguments(RLArguments):
    completion_style: str = "r1_zero"
    reward_funcs: list[str] = field(default_factory=lambda: ["accuracy_reward", "FormatReward"])


def main() -> None:
    args, config = parse(R1ZeroArguments, GRPOConfig)
    run = training.Run(args, config)
    if run.done:
        return
    policy, tokenizer = training.load_policy(args)
    prompts = grpo.load_prompts(args, tokenizer)
    run.train(grpo.make_trainer(args, config, policy, tokenizer, prompts))


if __name__ == "__main__":
    training.launch(main)
