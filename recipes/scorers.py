"""The parts of the reward models' stage: pairs and labelled responses, scorers, and their trainers."""

import logging
from dataclasses import replace

import rewards
from data_prep.runs import ConfigError
from recipes import checks, data, loading, training
from recipes.config import LoraArguments
from recipes.trl_configs import RewardConfig

import trl
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, set_seed

logger = logging.getLogger(__name__)


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
    """Chat messages of each pair, with only the summaries."""
    rows = data.read_records(source, "helpfulness_dataset", "prompt", "chosen", "rejected")
    for row in rows:
        row["prompt"] = data.as_messages("user", row["prompt"])
        for side in ("chosen", "rejected"):
            row[side] = data.as_messages("assistant", rewards.parse(row[side]).summary)
    return Dataset.from_list(rows)


def load_labels(source: str, tokenizer) -> Dataset:
    """Tokens of each whole response, with its label: 1.0 is safe."""
    rows = []
    for row in data.read_records(source, "harmlessness_dataset", "prompt", "response", "label"):
        messages = data.as_messages("user", row["prompt"]) + data.as_messages("assistant", row["response"])
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        rows.append({"labels": [float(row["label"])]} | tokenizer(text, add_special_tokens=False))
    return Dataset.from_list(rows)


def load_scorer(args: LoraArguments, config: RewardConfig):
    """Dev3 with a new scalar head, and its tokenizer."""
    tokenizer = loading.load_tokenizer(loading.require_checkpoint(args.model_name_or_path), frozen=args.use_peft)
    set_seed(config.seed)  # for the head
    as_scorer = {"num_labels": 1, "problem_type": "multi_label_classification"}  # binary cross-entropy
    kind, name = AutoModelForSequenceClassification, args.model_name_or_path
    return loading.load_model(kind, name, tokenizer, args, config, **as_scorer), tokenizer


def train(run: training.Run, name: str, kind: type, rows: Dataset) -> None:
    """Train one model in `<output_dir>/<name>` and measure its held-out accuracy. Rows that are too long are left
    out."""
    most, key = checks.limit(run, run.config.max_length, "max_length")
    config, count = replace(run.config, output_dir=f"{run.output_dir}/{name}", max_length=most), len(rows)
    if "input_ids" in rows.column_names:  # TRL filters pairs itself
        rows = rows.filter(lambda row: most is None or len(row["input_ids"]) <= most)
    if len(rows) < 2:
        raise ConfigError(f"{name}_dataset: {len(rows)} of its {count} rows are within {key}: {most}; raise it.")
    scorer, tokenizer = load_scorer(run.args, config)
    parts = rows.train_test_split(run.args.held_out, seed=config.seed)
    trainer = kind(
        scorer, args=config, train_dataset=parts["train"], eval_dataset=parts["test"], processing_class=tokenizer
    )
    left = len(trainer.train_dataset), len(trainer.eval_dataset)
    if sum(left) < count:
        logger.info("%d of %d rows are longer than %s: %s, and are left out", count - sum(left), count, key, most)
    if not all(left):
        raise ConfigError(f"{name}_dataset: {sum(left)} of its {count} rows are within {key}: {most}; raise it.")
    run.figures[f"{name}_rows_too_long"] = count - sum(left)
    run.fit(trainer)
    run.figures[f"{name}_accuracy"] = trainer.accuracy()
