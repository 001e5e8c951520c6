"""Distillation (v1, section 2.4; v2, B.4.3): fine-tuning of a smaller base on what the big model wrote, no RL.

It starts from a small base. Data: the teacher's answers or the mixture of the second SFT stage, by a key of
`data_prep`. Trainer: SFT with LoRA by default; `use_peft: false` trains full weights, as in the paper. `token_budget`
limits the completion tokens with a gradient, so the run is comparable with RL on the same base (v1, section 4.1).
"""

from dataclasses import dataclass

from recipes.commandline import launch
from recipes.config import PolicyArguments, SFTConfig


@dataclass
class DistillArguments(PolicyArguments):
    use_peft: bool = True


SETTINGS = DistillArguments, SFTConfig


def main(args: DistillArguments, config: SFTConfig) -> None:
    from recipes import data, loading, training  # slow to import, so after the settings are read

    run = training.start(args, config)
    policy, tokenizer = loading.load_policy(run)
    run.train(training.sft_trainer(run, policy, tokenizer, data.load_sft_rows(run, tokenizer)))


if __name__ == "__main__":
    launch(main, *SETTINGS)
