"""The two reward models of general data (section 3.1): what is helpful, and what is harmless.

Both start from Dev3 with a scalar head. Data: preference pairs for helpfulness, of which only the summary is scored;
single responses labelled safe or unsafe for harmlessness, scored whole, reasoning included. Trainers: TRL's
RewardTrainer (pairwise), and a plain Trainer (pointwise), for which TRL has none. A score is read at the end token of
the response in chat format, as `rewards.preference` reads it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import rewards
from recipes import training
from recipes.config import LoraArguments, RewardConfig, parse

import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, set_seed


@dataclass
class RewardModelArguments(LoraArguments):
    models: ClassVar[tuple[str, ...]] = ("-harmlessness", "-helpfulness")
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from: Dev3."})
    helpfulness_dataset: str = field(default="", metadata={"help": "Parquet file with prompt, chosen, rejected."})
    harmlessness_dataset: str = field(
        default="", metadata={"help": "Parquet file with prompt, response, label 1: safe."}
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of each set that only measures accuracy."})


class PairwiseTrainer(training.Resumable, trl.RewardTrainer):
    """Bradley-Terry loss on a chosen and a rejected summary."""

    def accuracy(self) -> float:
        return self.evaluate()["eval_accuracy"]


class PointwiseTrainer(training.Resumable, Trainer):
    """Binary cross-entropy on one response."""

    def accuracy(self) -> float:
        scores, labels, _ = self.predict(self.eval_dataset)
        return float(((scores > 0) == labels).mean())


def load_pairs(args: RewardModelArguments) -> Dataset:
    """Chat messages of each pair, summaries only."""
    rows = training.read_records(args.helpfulness_dataset, "helpfulness_dataset", "prompt", "chosen", "rejected")
    for row in rows:
        row["prompt"] = training.as_messages("user", row["prompt"])
        for side in ("chosen", "rejected"):
            row[side] = training.as_messages("assistant", rewards.parse(row[side]).summary)
    return Dataset.from_list(rows)


def load_labels(args: RewardModelArguments, tokenizer, max_length: int) -> Dataset:
    """Tokens of each whole response, if they fit, with its label: 1.0 is safe."""
    rows = []
    for row in training.read_records(args.harmlessness_dataset, "harmlessness_dataset", "prompt", "response", "label"):
        messages = training.as_messages("user", row["prompt"]) + training.as_messages("assistant", row["response"])
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        rows.append({"labels": [float(row["label"])]} | tokenizer(text, add_special_tokens=False))
    return Dataset.from_list(rows).filter(lambda row: len(row["input_ids"]) <= max_length)


def load_scorer(args: RewardModelArguments, config: RewardConfig):
    """Dev3 with a new scalar head, and its tokenizer."""
    tokenizer = training.load_tokenizer(training.require_checkpoint(args.model_name_or_path))
    set_seed(config.seed)  # of the head
    as_scorer = {"num_labels": 1, "problem_type": "multi_label_classification"}  # binary cross-entropy
    kind, name = AutoModelForSequenceClassification, args.model_name_or_path
    return training.load_model(kind, name, tokenizer, args, config, **as_scorer), tokenizer


def train(run: training.Run, name: str, kind: type, rows: Dataset) -> None:
    """One model in `<output_dir>/<name>`, and its accuracy on what was held out."""
    config = replace(run.config, output_dir=f"{run.output_dir}/{name}")
    scorer, tokenizer = load_scorer(run.args, config)
    parts = rows.train_test_split(run.args.held_out, seed=config.seed)
    trainer = kind(
        scorer, args=config, train_dataset=parts["train"], eval_dataset=parts["test"], processing_class=tokenizer
    )
    run.fit(trainer)
    run.figures[f"{name}_accuracy"] = trainer.accuracy()


def main() -> None:
    run = training.start(*parse(RewardModelArguments, RewardConfig))
    tokenizer = training.load_tokenizer(training.require_checkpoint(run.args.model_name_or_path))
    pairs, labelled = load_pairs(run.args), load_labels(run.args, tokenizer, run.config.max_length)
    train(run, "helpfulness", PairwiseTrainer, pairs)
    train(run, "harmlessness", PointwiseTrainer, labelled)
    run.finish()


if __name__ == "__main__":
    training.launch(main)
