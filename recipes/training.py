"""Shared code of the stages: loading the policy and the rows, resuming after a kill, and the record of the run."""

import json
import logging
import math
import os
import platform
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep import runs
from data_prep.runs import commands, memory, publishing
from data_prep.runs.configs import ConfigError
from recipes import checkpoints, checks, expert_parallel, loading, patches, qlora_proof, sharded, watch
from recipes.checks.gradients import GradientCheck
from recipes.commandline import given
from recipes.config import StageArguments, world_size
from recipes.tools import merge

import torch
import trl
from accelerate.utils import broadcast_object_list, is_peft_model
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

logger = logging.getLogger(__name__)


# Trainers


class Resumable:
    """Adds to TRL's trainers complete checkpoints and a count of the completion tokens that had a gradient."""

    completion_tokens_trained = 0
    _local_tokens = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if getattr(self.model.config, "output_router_logits", False):
            # TRL sets it, but also passes it in each call. If it stayed in the config, sampling from the checkpoint
            # would compute a balancing loss too, which fails with a cache.
            self.model.config.output_router_logits = False

    def create_model_card(self, *_, **__) -> None:
        """Skip TRL's almost empty card at each checkpoint. Our card is written at the end of the run."""

    def count(self, mask: torch.Tensor) -> None:
        """Count the tokens of a training micro batch."""
        if self.model.training:
            self._local_tokens += mask.sum()

    def save_more(self, checkpoint: Path) -> None:
        """Write the additional files of this trainer's checkpoint. Every process calls it."""
        expert_parallel.save(self, checkpoint)

    def restore_more(self, checkpoint: Path) -> None:
        """Read back what `save_more` wrote."""
        expert_parallel.restore(self, checkpoint)

    def _save_checkpoint(self, model, trial):
        # Older checkpoints may be deleted only after the new one is complete, so TRL's own rotation is disabled here.
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = keep
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self.save_more(folder)
        routed = qlora_proof.routed(self.model)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.mark_complete(
                folder,
                keep,
                completion_tokens_trained=self.completion_tokens_trained,
                total_train_tokens=getattr(self, "_total_train_tokens", 0),
                routed=routed,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_peft_model(self.model):
            # If there are adapters in subfolders (here `ref`), transformers 5.17 reads only those and not the policy's
            # own adapter, which is in the checkpoint folder itself.
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            self.model.set_adapter("default")

    def _issue_warnings_after_load(self, load_result):
        """Do not warn about tied weights. They are in no file, but they are not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_optimizer_and_scheduler(self, checkpoint):
        if self.args.device.type == "cpu":  # several processes have "cpu:0", to which torch 2.13 cannot load
            vars(self.args)["_setup_devices"] = torch.device("cpu")
        super()._load_optimizer_and_scheduler(checkpoint)
        record = checkpoints.record_of(Path(checkpoint))  # DeepSpeed skips `_load_from_checkpoint`
        self.completion_tokens_trained = record["completion_tokens_trained"]
        self._total_train_tokens = record["total_train_tokens"]
        if self.accelerator.is_main_process:  # the sum over all processes
            qlora_proof.go_on_counting(self.model, record["routed"])
        self.restore_more(Path(checkpoint))


class SFTTrainer(Resumable, trl.SFTTrainer):
    def _prepare_dataset(self, dataset: Dataset, processing_class, args, packing: bool, *more) -> Dataset:
        """Skip rows with labels, which are already tokenized and short enough. TRL would copy all of them twice."""
        if packing or "labels" not in dataset.column_names:
            return super()._prepare_dataset(dataset, processing_class, args, packing, *more)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.count(inputs["labels"][..., 1:] != -100)  # the first token is not predicted
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.last_loss = loss[0].detach() if return_outputs else loss.detach()  # for `recipes.watch`
        return loss


def sft_trainer(run: "Run", policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> SFTTrainer:
    """TRL's SFTTrainer for a stage."""
    return SFTTrainer(policy, args=run.config, train_dataset=rows, processing_class=tokenizer)


class _Tokens(TrainerCallback):
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


class _GiveBack(TrainerCallback):
    """Returns freed memory after each step on a CPU. Batches of other lengths would not fit into its pieces."""

    def on_step_end(self, args, state, control, **kwargs):
        memory.give_back()


class _Log(TrainerCallback):
    """Writes log.jsonl: one row a log step, under TRL's metric names."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop the rows of steps that will be trained again."""
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


def callbacks(trainer, args: StageArguments, budget: int | None = None) -> list[TrainerCallback]:
    """The callbacks that every stage adds to its trainer, in this order."""
    config = trainer.args
    exact = checkpoints.ExactSaves(math.lcm(config.rollout_window, max(1, int(config.logging_steps))))
    found = [_Tokens(trainer, budget), exact, _Log(Path(config.output_dir) / "log.jsonl")]
    strict = getattr(args, "load_in_4bit", False)
    if strict or (args.doctor and not trainer.is_deepspeed_enabled):
        found.append(GradientCheck(trainer, strict))
    return [*found, watch.Watch(trainer, args)] if args.doctor else found


# The run


def start(args: StageArguments, config) -> "Run":
    """Start the stage's run in its folder. If the run is already done, the process ends, with exit code 0 once the run
    is also on the Hub if the settings ask for that."""
    where, settings = given(sys.argv[1:])
    run = Run(args, config, where, settings, publishing.read(settings, where))
    config.push_to_hub = False  # the trainers' own push loses runs and uploads a pickle of all settings
    run.hold(Path(sys.argv[0]), redo="--redo" in sys.argv)
    if run.state == "done":
        logger.info("%s is done already; --redo runs it again", run.output_dir)
        run.publish()
        raise SystemExit(0)
    sharded.refuse_fsdp_1()  # also with `doctor: false`
    if name := getattr(args, "model_name_or_path", None):
        loading.require_checkpoint(name)  # before a library asks the Hub for it
    if args.doctor:
        checks.tell("start", args=args, config=config, environment=os.environ, shape=checks.shape_of(name))
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        patches.spare_host_memory()
    if config.distributed_state.is_main_process:
        logger.info("%s", config.equation)
    return run


@dataclass
class Run:
    """One stage's run. `settings`: as given, from the file `where` and the command line. `figures`: for run.json.
    `models`: folders below output_dir that contain a model. `state`: as `runs.hold` returns it."""

    args: StageArguments
    config: Any  # of recipes.trl_configs
    where: str = ""
    settings: dict = field(default_factory=dict)
    hub: publishing.Publishing = publishing.Publishing()
    figures: dict = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    identity: runs.Identity | None = None  # of the main process only
    state: str = ""
    since: float = field(default_factory=time.time)
    is_taken: bool = False

    @property
    def output_dir(self) -> Path:
        return Path(self.config.output_dir)

    def hold(self, script: Path, redo: bool) -> None:
        """Check the Hub and lock the run's folder, in the main process. All processes learn the folder's state."""
        state = [None]
        if self.config.distributed_state.is_main_process:
            base = getattr(self.args, "model_name_or_path", None) if getattr(self.args, "use_peft", False) else None
            self.hub.check("model", self.args.models, base)
            usual = commands.defaults(type(self.args)) | commands.defaults(type(self.config))
            self.identity = runs.identify(script, self.settings, defaults=usual)
            state = [runs.hold(self.output_dir, self.identity, redo)]
        if self.config.world_size > 1:
            broadcast_object_list(state)
        self.state = state[0]

    def take(self) -> None:
        """Begin the run in its folder after all checks. An old run there is moved aside."""
        if not self.is_taken and self.config.distributed_state.is_main_process:
            runs.take(self.output_dir, self.identity, self.state, self.since)
        self.is_taken = True

    def train(self, trainer) -> None:
        """Train one model to the end, and write a plain checkpoint and run.json."""
        self.fit(trainer, getattr(self.args, "token_budget", None))
        self.figures["steps"] = trainer.state.global_step
        self.figures["completion_tokens_trained"] = trainer.completion_tokens_trained
        self.finish()

    def fit(self, trainer, budget: int | None = None) -> None:
        """Train from the last complete checkpoint, if there is one, and save the model in the trainer's output_dir."""
        folder = Path(trainer.args.output_dir)
        size = sum(weight.numel() for weight in trainer.model.parameters())
        if trainer.args.use_cpu and not memory.keep_freed(size):
            trainer.add_callback(_GiveBack())
        trainer.args.max_steps = steps(trainer, budget, self.settings)
        require_disk(trainer)
        for callback in callbacks(trainer, self.args, budget):
            trainer.add_callback(callback)
        if self.args.doctor:
            checks.tell("trainer", trainer=trainer, args=self.args)
        if getattr(self.args, "load_in_4bit", False):
            from recipes import moe_qlora

            moe_qlora.begin(trainer)
        with trainer.accelerator.main_process_first():
            self.take()
            folder.mkdir(parents=True, exist_ok=True)
            if getattr(trainer.args, "log_completions", False):  # TRL's folder was moved aside with an old run
                (folder / "completions").mkdir(exist_ok=True)
            checkpoint = checkpoints.latest(folder)
        if self.args.compile_layers:
            for model in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
                patches.compile_layers(model)
        if checkpoint:
            logger.info("resuming from %s", checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if getattr(self.args, "load_in_4bit", False):
            self.figures |= qlora_proof.unused_experts(trainer.model)
        if commit := getattr(trainer.model.config, "_commit_hash", None):  # if the parent came from the Hub
            self.figures["parent_revision"] = commit
        save(trainer, self.args)
        self.models.append("" if folder == self.output_dir else str(folder.relative_to(self.output_dir)))

    def finish(self) -> None:
        """Write run.json, which marks the stage as done. Then push the run if the settings ask for it."""
        if self.config.distributed_state.is_main_process:
            runs.finish(
                self.output_dir,
                self.models,
                parent=getattr(self.args, "model_name_or_path", None),
                inputs=[str(one) for one in runs.inputs(self.settings)],
                config=asdict(self.args) | self.config.to_dict(),
                seed=self.config.seed,
                hardware=hardware(),
                **self.figures,
            )
            self.tell()
            self.publish()

    def tell(self) -> None:
        """Write each model's card, and log the result and the next steps."""
        from data_prep.hub import run_cards  # slow to import
        from recipes.tools import steps

        for name in self.models:
            folder = self.output_dir / name
            (folder / "README.md").write_text(run_cards.model_card(folder, self.output_dir), encoding="utf-8")
        made = " and ".join(str(self.output_dir / name) for name in self.models)
        logger.info("the model is in %s; its README.md shows how to prompt it", made)
        later = steps.after(self.where, self.output_dir)
        if todo := [step for step in later if not step.evaluates]:
            logger.info("next: %s", shlex.join(todo[0].command))
        words = (
            "python",
            "-m",
            steps.EVALUATION,
            "--config",
            "recipes/configs/cpu/evaluate.yaml",
            "--checkpoint",
            str(self.output_dir),
            "--rows",
            "YOUR_ROWS.parquet",
        )
        measure = next((step.command for step in later if step.evaluates), words if "" in self.models else None)
        ways = {
            "measure": measure,
            "push": ("python", "-m", "data_prep.push", str(self.output_dir), "--hub-model-id", "OWNER/NAME"),
        }
        logger.info("; ".join(f"to {way} it: {shlex.join(command)}" for way, command in ways.items() if command))

    def publish(self) -> None:
        """Push the finished run. Ends the process with exit code 1 if the Hub does not accept it."""
        if self.config.distributed_state.is_main_process and (code := self.hub.publish(self.output_dir)):
            raise SystemExit(code)


def hardware() -> dict[str, str | int]:
    """The hardware of this process, for the model card."""
    found = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "processes": world_size(),
    }
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return found | ({"gpus of this machine": ", ".join(gpus)} if gpus else {})


def steps(trainer, budget: int | None, said: dict) -> int:
    """Optimiser steps after which a run ends. If several bounds are set, the first one that is reached ends it. The
    default of `num_train_epochs` applies only without another bound; then the result is -1."""
    config = trainer.args
    bounds = {"max_steps": config.max_steps} if config.max_steps > 0 else {}
    if budget is not None and isinstance(trainer, SFTTrainer):
        bounds["token_budget"] = steps_for_budget(trainer, budget)
    if bounds and "num_train_epochs" in said and hasattr(config, "batch_size"):
        epoch = math.ceil(len(trainer.train_dataset) / config.batch_size)
        bounds["num_train_epochs"] = math.ceil(config.num_train_epochs * epoch)
    if len(bounds) > 1:
        shown = ", ".join(f"{key}: {count}" for key, count in bounds.items())
        logger.info("the first of these bounds, in steps, ends the run: %s", shown)
    return min(bounds.values(), default=config.max_steps)


def steps_for_budget(trainer: SFTTrainer, budget: int) -> int:
    """Optimiser steps in which `budget` completion tokens have a gradient. The schedule ends there too."""
    data, tokens = trainer.train_dataset, 0
    for batch in data.with_format("arrow").iter(1000):
        labels = batch["labels"].combine_chunks()
        first = labels.offsets.to_numpy()[:-1]  # the first token is not predicted
        trained = labels.values.to_numpy() != -100
        tokens += int(trained[first[0] : labels.offsets[-1].as_py()].sum() - trained[first].sum())
    return max(1, math.ceil(budget / (tokens / len(data) * trainer.args.batch_size)))


def require_disk(trainer) -> None:
    """Raises ConfigError if the disk cannot hold the checkpoints of this run (only those of the adapter with LoRA) and
    its final plain model."""
    sizes, own = {True: 0, False: 0}, expert_parallel.owned(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        state = getattr(parameter, "quant_state", None)  # 4 bits here, 16 bits in the final model
        size = 2 * state.shape.numel() if state else sharded.nbytes(parameter)
        sizes[parameter.requires_grad] += size * (world_size() if name in own else 1)
    trained, left = sizes[True], sum(sizes.values())
    weights = trained if is_peft_model(trainer.model) else left
    has_reference = getattr(trainer, "ref_model", None) is not None or "ref" in getattr(
        trainer.model, "peft_config", ()
    )
    kept = 0 if trainer.args.save_strategy == "no" else (trainer.args.save_total_limit or 1) + 1  # one is being written
    # DeepSpeed and FSDP write their own copy of the weights too. DeepSpeed adds a float32 copy to Adam's two numbers.
    copies = 1 + has_reference + (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    numbers = sum(sharded.shape(one).numel() for one in trainer.model.parameters() if one.requires_grad)
    optimizer = 12 * numbers if trainer.is_deepspeed_enabled else 2 * trained
    needed = kept * (weights * copies + optimizer) + left
    folder = Path(trainer.args.output_dir).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if needed > free:
        raise ConfigError(
            f"{trainer.args.output_dir}: the disk has {free / 2**30:.1f} GB free, but this run writes up to "
            f"{needed / 2**30:.1f} GB of checkpoints. Free some, lower save_total_limit, or set another output_dir."
        )


def save(trainer, args: StageArguments) -> None:
    """Write a plain checkpoint to output_dir. A LoRA policy is merged, and its adapter is kept in `adapter/`."""
    model, folder = trainer.accelerator.unwrap_model(trainer.model), Path(trainer.args.output_dir)
    loading.align(model, trainer.processing_class)
    adapter = sharded.gather(model, ".default.")  # called by all processes; empty without LoRA
    experts = expert_parallel.gather(model)
    if not is_peft_model(model):
        sharded.save(model, folder, trainer.args.should_save)
    elif trainer.args.should_save:
        model.peft_config["default"].revision = getattr(model.config, "_commit_hash", None)
        if args.load_in_4bit:
            from recipes import moe_qlora

            moe_qlora.save_adapter(model, folder / "adapter", args.model_name_or_path, experts)
        else:
            model.save_pretrained(folder / "adapter", selected_adapters=["default"], state_dict=adapter)
        trainer.processing_class.save_pretrained(folder / "adapter")
        with sharded.whole_models():
            merge.merge(args.model_name_or_path, folder / "adapter", folder, args.dtype, **loading.longer(args))
    if trainer.args.should_save:
        trainer.processing_class.save_pretrained(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in words
    trainer.accelerator.wait_for_everyone()
