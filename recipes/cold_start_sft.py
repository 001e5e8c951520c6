"""Cold start, base to Dev1: fine-tuning on a few thousand long, readable chains of thought (section 3, B.3.2).

It starts from the base, not from R1-Zero. Data: chat messages from the three methods of `data_prep.cold_start`.
Trainer: SFT with loss only on the completion: its reasoning, its summary and the end token.
"""

from recipes.commandline import launch
from recipes.config import PolicyArguments, SFTConfig

SETTINGS = PolicyArguments, SFTConfig


def main(args: PolicyArguments, config: SFTConfig) -> None:
    from recipes import data, loading, training  # slow to import, so after the settings are read

    run = training.start(args, config)
    policy, tokenizer = loading.load_policy(run)
    run.train(training.sft_trainer(run, policy, tokenizer, data.load_sft_rows(run, tokenizer)))


if __name__ == "__main__":
    launch(main, *SETTINGS)
