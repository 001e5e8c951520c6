"""What the stages share: loading policy and rows, going on after a kill, and the record of the run."""

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import trl
import yaml
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from data_prep import runs
from data_prep.rows import Row, load_rows
from data_prep.runs import ConfigError
from recipes import checkpoints
from recipes.config import SFTConfig, StageArguments
from recipes.tools.merge import merge

logger = logging.getLogger(__name__)
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PAD, END = "<|pad|>", "<|end|>"


# Loading


def require_checkpoint(name_or_path: str | None, key: str = "model_name_or_path") -> str:
    """The checkpoint's name. Raises ConfigError where a directory is meant that holds no checkpoint."""
    if not name_or_path:
        raise ConfigError(f"{key} is missing: write the directory or the Hub id of the checkpoint to start from.")
    looks_local = name_or_path.startswith(("outputs/", ".", "/")) or name_or_path.count("/") > 1
    if (looks_local or Path(name_or_path).exists()) and not (Path(name_or_path) / "config.json").is_file():
        raise ConfigError(
            f"{key}: {name_or_path} holds no checkpoint (no config.json). "
            "Run the stage that writes it first, or name another."
        )
    return name_or_path


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer with our chat template, if it has our end token; else with its own."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if END in tokenizer.get_vocab():
        tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
        tokenizer.eos_token = END
    return tokenizer


def load_policy(args: StageArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy to train, with a LoRA adapter if asked for, and its tokenizer."""
    name = require_checkpoint(args.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=getattr(torch, args.dtype), attn_implementation=args.attn_implementation
    )
    tokenizer = load_tokenizer(name)
    align_generation(model, tokenizer)
    if args.use_peft:
        model = get_peft_model(
            model,
            LoraConfig(
                r=args.lora_r,
                lora_alpha=args.lora_alpha,
                lora_dropout=0.0,
                target_modules=args.lora_target_modules,
                task_type="CAUSAL_LM",
            ),
        )
    return model, tokenizer


def align_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Generation stops at the tokenizer's end token and pads with its pad token, here and after saving."""
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id


def load_sftread_rows(args: StageArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows as SFTTrainer reads them: chat prompt and completion. Rows too long to be trained whole are left out."""
    rows = [
        {"prompt": as_messages("user", row["prompt"]), "completion": as_messages("assistant", row["completion"])}
        for row in read_rows(args, sft=True)
    ]
    return short_enough(rows, args, tokenizer)


def as_messages(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def read_rows(args: StageArguments, sft: bool = False) -> list[Row]:
    if not args.dataset:
        raise ConfigError("dataset is missing: write the Parquet file, or the Hub id, of the rows to train on.")
    try:
        return load_rows(args.dataset, split=args.dataset_split, sft=sft)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"dataset: {error}") from error


def short_enough(rows: list[dict], args: StageArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    if args.max_prompt_length is not None:
        kept = [row for row in rows if _prompt_tokens(row["prompt"], tokenizer) <= args.max_prompt_length]
        logger.info(
            "%d of %d rows have a prompt of at most %d tokens; the others are left out",
            len(kept), len(rows), args.max_prompt_length,
        )  # fmt: skip
        rows = kept
    if not rows:
        raise ConfigError(f"{args.dataset}: no rows are left to train on; raise max_prompt_length.")
    return Dataset.from_list(rows)


def _prompt_tokens(prompt: str | list[dict], tokenizer: PreTrainedTokenizerBase) -> int:
    if isinstance(prompt, list):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


# Trainers


class Resumable:
    """What our trainers add to TRL's: complete checkpoints, and the count of completion tokens that had a gradient."""

    completion_tokens_trained = 0
    _local_tokens = 0

    def count(self, mask: torch.Tensor) -> None:
        if self.model.training:
            self._local_tokens += mask.sum()

    def save_more(self, checkpoint: Path) -> None:
        """Write what else a checkpoint of this trainer needs."""

    def restore_more(self, checkpoint: Path) -> None:
        """Read back what `save_more` wrote."""

    def _save_checkpoint(self, model, trial):
        # Older checkpoints may go only after the new one is complete, so TRL's own rotation is held back here.
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = keep
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.save_more(folder)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.mark_complete(
                folder,
                keep,
                completion_tokens_trained=self.completion_tokens_trained,
                total_train_tokens=self._total_train_tokens,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        record = checkpoints.record_of(Path(resume_from_checkpoint))
        self.completion_tokens_trained = record["completion_tokens_trained"]
        self._total_train_tokens = record["total_train_tokens"]
        self.restore_more(Path(resume_from_checkpoint))


class SFTTrainer(Resumable, trl.SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.count(inputs["labels"][..., 1:] != -100)  # a first token is predicted by nothing
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def make_sft_trainer(config: SFTConfig, model, tokenizer, rows: Dataset) -> SFTTrainer:
    return SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


class _TokenBudget(TrainerCallback):
    """Adds up the trained completion tokens of all processes, and ends training when the budget is spent."""

    def __init__(self, trainer, budget: int | None):
        self.trainer, self.budget = trainer, budget

    def on_step_end(self, args, state, control, **kwargs):
        local = torch.as_tensor(self.trainer._local_tokens, device=args.device)
        self.trainer.completion_tokens_trained += int(self.trainer.accelerator.reduce(local, "sum"))
        self.trainer._local_tokens = 0
        if self.budget is not None and self.trainer.completion_tokens_trained >= self.budget:
            control.should_training_stop = True
        return control


class _Log(TrainerCallback):
    """log.jsonl: one row a log step, under TRL's metric names."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the rows of steps that are now trained again."""
        if state.is_world_process_zero:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(self.path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and "loss" in logs:
            row = {"step": state.global_step, "max_steps": state.max_steps} | logs
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


# The run


def launch(stage: Callable[[], None]) -> None:
    """Run a stage's `main`. What is wrong with its settings or inputs is one line on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        stage()
    except (ConfigError, runs.MissingRunError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


class Run:
    """One stage's run: decides between done, resume and fresh, trains, and leaves a plain checkpoint and run.json."""

    def __init__(self, args: StageArguments, config):
        self.args, self.config = args, config
        self.output_dir = Path(config.output_dir)
        self.script = Path(sys.argv[0])
        path, self.overrides = _command_line(sys.argv[1:])
        self.inputs = runs.inputs(runs.load_config(path) | self.overrides) if path else []
        state = [None]
        if config.distributed_state.is_main_process:
            self.fingerprint = runs.fingerprint(self.script, path or {}, self.overrides)
            state = [runs.begin(self.output_dir, self.fingerprint)]
        if config.world_size > 1:
            broadcast_object_list(state)
        self.state = state[0]
        self.begun = time.time()

    @property
    def done(self) -> bool:
        if self.state == "done":
            logger.info("%s is done; delete it to run it again", self.output_dir)
        return self.state == "done"

    def train(self, trainer, **record) -> None:
        """Train to the end, from the last complete checkpoint if there is one; save; write run.json."""
        config, checkpoint = self.config, checkpoints.latest(self.output_dir)
        require_disk(trainer, self.output_dir)
        if self.args.token_budget is not None and isinstance(trainer, SFTTrainer):
            config.max_steps = steps_for_budget(trainer, self.args.token_budget)
        trainer.add_callback(_TokenBudget(trainer, self.args.token_budget))
        trainer.add_callback(
            checkpoints.ExactSaves(checkpoints.resumable_interval(config.rollout_window, int(config.logging_steps)))
        )
        trainer.add_callback(_Log(self.output_dir / "log.jsonl"))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        save(trainer, self.args, self.output_dir)
        self.finish(
            steps=trainer.state.global_step, completion_tokens_trained=trainer.completion_tokens_trained, **record
        )

    def finish(self, **record) -> None:
        """Write run.json, after which the stage counts as done."""
        if self.config.distributed_state.is_main_process:
            runs.finish(
                self.output_dir,
                self.fingerprint,
                parent=self.args.model_name_or_path,
                inputs=[str(one) for one in self.inputs],
                config=asdict(self.args) | self.config.to_dict(),
                seed=self.config.seed,
                **record,
            )


def _command_line(argv: list[str]) -> tuple[Path | None, dict]:
    """(the file that --config names, the values that the command line adds to it)."""
    path, overrides = None, {}
    for position, word in enumerate(argv):
        if word.startswith("--"):
            key, _, value = word.removeprefix("--").partition("=")
            following = (
                argv[position + 1] if position + 1 < len(argv) and not argv[position + 1].startswith("--") else "true"
            )
            if key == "config":
                path = Path(value or following)
            else:
                overrides[key.replace("-", "_")] = yaml.safe_load(value or following)
    return path, overrides


def steps_for_budget(trainer: SFTTrainer, budget: int) -> int:
    """Optimiser steps in which `budget` completion tokens have had a gradient, so that the schedule ends there too."""
    labels = trainer.train_dataset["labels"]
    tokens = sum(sum(token != -100 for token in row[1:]) for row in labels)
    return max(1, math.ceil(budget / (tokens / len(labels) * trainer.args.batch_size)))


def require_disk(trainer, output_dir: Path) -> None:
    """Raises ConfigError when the disk cannot hold the checkpoints of this run."""
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    adam = 2 * sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    reference_weights = weights if getattr(trainer, "ref_model", None) is not None else 0
    kept = (trainer.args.save_total_limit or 1) + 1  # one more while the next is being written
    needed, free = kept * (weights + adam + reference_weights) + weights, shutil.disk_usage(output_dir).free
    if needed > free:
        raise ConfigError(
            f"{output_dir}: the disk has {free / 2**30:.1f} GB free, but this run writes up to {needed / 2**30:.1f} GB "
            f"of checkpoints. Free some, lower save_total_limit, or set another output_dir."
        )


def save(trainer, args: StageArguments, output_dir: Path) -> None:
    """Leave a plain checkpoint in `output_dir`; a LoRA stage keeps its adapter in `adapter/` and merges it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    align_generation(model, trainer.processing_class)
    if args.use_peft:
        if trainer.args.should_save:
            model.save_pretrained(output_dir / "adapter", selected_adapters=["default"])
            merge(args.model_name_or_path, output_dir / "adapter", output_dir, dtype=args.dtype)
    else:
        trainer.save_model(str(output_dir))
    if trainer.args.should_save:
        trainer.processing_class.save_pretrained(output_dir)
        (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle that repeats run.json
    trainer.accelerator.wait_for_everyone()
