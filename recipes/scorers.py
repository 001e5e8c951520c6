"""What the stage of the two reward models is made of: pairs and labelled responses, scorers, and their trainers."""

from dataclasses import replace

import rewards
from recipes import data, training
from recipes.config import LoraArguments
from recipes.trl_configs import RewardConfig

import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, set_seed


class PairwiseTrainer(training.Resumable, trl.RewardTrainer):
    """Bradley-Terry loss on a chosen and a rejected summary."""

    def accuracy(self) -> float:
        return self.evaluate()["eval_accuracy"]


class PointwiseTrainer(training.Resumable, Trainer):
    """Binary cross-entropy on one response."""

    def accuracy(self) -> float:
        scores, labels, _ = self.predict(self.eval_dataset)
        return float(((scores > 0) == labels).mean())


def load_pairs(source: str) -> Dataset:
    """Chat messages of each pair, summaries only."""
    rows = data.read_records(source, "helpfulness_dataset", "prompt", "chosen", "rejected")
    for row in rows:
        row["prompt"] = data.as_messages("user", row["prompt"])
        for side in ("chosen", "rejected"):
            row[side] = data.as_messages("assistant", rewards.parse(row[side]).summary)
    return Dataset.from_list(rows)


def load_labels(source: str, tokenizer, max_length: int) -> Dataset:
    """Tokens of each whole response, if they fit, with its label: 1.0 is safe."""
    rows = []
    for row in data.read_records(source, "harmlessness_dataset", "prompt", "response", "label"):
        messages = data.as_messages("user", row["prompt"]) + data.as_messages("assistant", row["response"])
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        rows.append({"labels": [float(row["label"])]} | tokenizer(text, add_special_tokens=False))
    return Dataset.from_list(rows).filter(lambda row: len(row["input_ids"]) <= max_length)


def load_scorer(args: LoraArguments, config: RewardConfig):
    """Dev3 with a new scalar head, and its tokenizer."""
    tokenizer = training.load_tokenizer(training.require_checkpoint(args.model_name_or_path), frozen=args.use_peft)
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
