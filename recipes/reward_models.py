"""The two reward models of general data (section 3.1): what is helpful, and what is harmless.

Both start from Dev3 with a scalar head. Data: for helpfulness, preference pairs of which only the summary is scored;
for harmlessness, single responses labelled safe or unsafe, which are scored whole with their reasoning. Trainers: TRL's
RewardTrainer (pairwise), and a plain Trainer (pointwise), because TRL has none for it. The score is read at the end
token of the response in chat format, as in `rewards.preference`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from recipes.commandline import launch
from recipes.config import LoraArguments, RewardConfig


@dataclass
class RewardModelArguments(LoraArguments):
    models: ClassVar[tuple[str, ...]] = ("-harmlessness", "-helpfulness")
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from: Dev3."})
    helpfulness_dataset: str = field(default="", metadata={"help": "Parquet file with prompt, chosen, rejected."})
    harmlessness_dataset: str = field(
        default="", metadata={"help": "Parquet file with prompt, response, label 1: safe."}
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of each set that only measures accuracy."})


SETTINGS = RewardModelArguments, RewardConfig


def main(args: RewardModelArguments, config: RewardConfig) -> None:
    from recipes import loading, scorers, training  # slow to import, so after the settings are read

    run = training.start(args, config)
    name = loading.require_checkpoint(run.args.model_name_or_path)
    tokenizer = loading.load_tokenizer(name, frozen=run.args.use_peft)
    pairs = scorers.load_pairs(run.args.helpfulness_dataset)
    labelled = scorers.load_labels(run.args.harmlessness_dataset, tokenizer)
    scorers.train(run, "helpfulness", scorers.PairwiseTrainer, pairs)
    scorers.train(run, "harmlessness", scorers.PointwiseTrainer, labelled)
    run.finish()


if __name__ == "__main__":
    launch(main, *SETTINGS)
