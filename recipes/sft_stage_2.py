"""The second fine-tuning, to Dev3 (section 3, B.4.2): reasoning and general data, 800,000 samples in the paper.

It starts from the base again, as in the paper. To start from Dev2, as in the walkthrough, set `model_name_or_path`.
Data: rejection-sampled reasoning, and general rows with and without reasoning. Trainer: SFT with loss only on the
completion.
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
