"""The second fine-tuning, to Dev3 (section 3, B.4.2): reasoning and general data, 800,000 samples in the paper.

It starts from the base again, as in the paper. To start from Dev2, as in the walkthrough, set `model_name_or_path`.
Data: rejection-sampled reasoning, and general rows with and without reasoning. Trainer: SFT with loss only on the
completion.
"""

from recipes.config import PolicyArguments, SFTConfig, launch, parse

SETTINGS = PolicyArguments, SFTConfig


def main() -> None:
    settings = parse(*SETTINGS)
    from recipes import data, training  # after the settings are checked: TRL and torch take seconds to import

    run = training.start(*settings)
    policy, tokenizer = training.load_policy(run)
    rows = data.load_sft_rows(run, tokenizer)
    run.train(training.SFTTrainer(policy, args=run.config, train_dataset=rows, processing_class=tokenizer))


if __name__ == "__main__":
    launch(main)
