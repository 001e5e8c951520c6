"""What a scale needs, before it runs: `python -m recipes.tools.plan --scale S [--gpus N --gpu-memory G]`.

The plan uses only the YAMLs and the configs of the named models (`models.yaml`), without network or weights. It shows
for each stage the parameters, memory of one GPU and of its machine (`host`), tokens, optimiser steps, disk and
GPU-hours, and whether the stage fits. If it does not, it names the first change that helps. Memory is for a micro batch
of sequences with the maximum length. `needs.py` computes all this.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from pathlib import Path
from typing import Any

from data_prep import runs
from data_prep.runs import commands
from recipes import base
from recipes import config as settings_of
from recipes.tools import check, needs
from recipes.tools.needs import FILL, GB, HOST, ROOM, Memory, Shape, Stage
from recipes.tools.steps import Step, load_steps, scale_folder

import psutil
import yaml

MODELS = Path(__file__).with_name("models.yaml")
# GB of one GPU; or --gpu-memory
MEMORY = {"gpu-24gb": 24, "node-8x80gb": 80, "moe-qlora": 80, "deepseek-v3": 141, "deepseek-v3-qlora": 80}
HEADS = ("stage", "parameters", "trained", *(field.name for field in fields(Memory)), "peak", "host", "fits", "tokens")
HEADS += ("steps", "disk")


# From YAMLs


def stages(steps: list[Step], gpus: int | None = None) -> Iterator[Stage]:
    """The training stages among the steps of a scale. `gpus` replaces the YAMLs' number of processes."""
    made = {str(step.output_dir): step for step in steps}
    for step in steps:
        if step.trains:
            yield _stage(step, made, gpus)


def _stage(step: Step, made: dict[str, Step], gpus: int | None) -> Stage:
    launch = runs.load_config(Path(step.command[step.command.index("--config_file") + 1]))
    processes = gpus or launch["num_processes"]
    cpu = step.settings.get("use_cpu", False)
    with settings_of.planned(processes):
        args, config = check.check(step.target, *step.files, elsewhere=True)
    kind = launch["distributed_type"]
    zero = launch.get("deepspeed_config", {}).get("zero_stage")
    spread = {"DEEPSPEED": f"zero{zero}", "FSDP": "fsdp2"}.get(kind, "ddp" if processes > 1 else "no")
    name, text = _base(getattr(args, "model_name_or_path", None) or str(step.output_dir), made)
    lora = getattr(args, "use_peft", False)
    found = Stage(
        step.name,
        name,
        needs.shape(text),
        processes,
        spread if processes > 1 else "no",
        cpu,
        bf16=step.settings.get("bf16", not cpu),
        dtype=2 if args.dtype == "bfloat16" else 4,
        together=min(processes, max(8, launch["num_processes"] // launch["num_machines"])),
        rank=args.lora_r if lora else 0,
        targets=tuple(getattr(args, "lora_target_modules", None) or ()),
        nf4=getattr(args, "load_in_4bit", False),
        sharing=getattr(args, "expert_parallel", 1),
        checkpointing=config.gradient_checkpointing,
        sequences=config.per_device_train_batch_size,
        steps=max(0, config.max_steps),
        checkpoints=(config.save_total_limit or 1) + 1,
    )
    if isinstance(config, settings_of.GRPOConfig):
        batch, steps = config.prompts_per_step * config.num_generations, found.steps
        if args.token_budget:
            steps = min(steps, math.ceil(args.token_budget / (batch * config.max_completion_length * FILL)))
        reward_models = {str(one["model"]) for one in (args.reward_kwargs or {}).values() if "model" in one}
        sizes = [_reward_model(one, made) for one in reward_models]
        return replace(
            found,
            length=min((args.max_prompt_length or 1024) + config.max_completion_length, found.shape.longest),
            batch=batch,
            steps=steps,
            rl=True,
            reference=config.beta != 0,
            generation=config.generation,
            at_once=config.generation_batch_size,
            old_policy=config.rollout_window > 1 or config.use_vllm,
            vllm_share=config.vllm_gpu_memory_utilization if config.generation == "vllm_colocate" else 0.0,
            vllm_processes=config.vllm_tensor_parallel_size,
            rewards=sum(sizes),
            reward=max(sizes, default=0),
        )
    scorer = isinstance(config, settings_of.RewardConfig)
    files = [step.settings.get(key) for key in ("dataset", "helpfulness_dataset", "harmlessness_dataset")]
    epochs = [_rows(file, made) * config.num_train_epochs for file in files if file]
    return replace(
        found,
        steps=found.steps or sum(math.ceil(rows / config.batch_size) for rows in epochs),
        length=config.max_length,
        batch=config.batch_size * (2 if scorer else 1),
        sequences=found.sequences * (2 if scorer else 1),
        scalar_head=scorer,
    )


def _base(name: str, made: dict[str, Step]) -> tuple[str, str]:
    """(the base that a checkpoint was trained from, its config as JSON text)."""
    while name in made and "model_name_or_path" in made[name].settings:
        name = made[name].settings["model_name_or_path"]
    if name in made:
        args, _ = check.check(made[name].target, *made[name].files, elsewhere=True)
        keys = ("vocab_size", "max_position_embeddings", *base.SHAPE, *(base.EXPERTS if args.num_experts else ()))
        values = {key: getattr(args, key) for key in keys}
        values["model_type"] = "qwen3_moe" if args.num_experts else "qwen3"
        values |= {"head_dim": args.hidden_size // args.num_attention_heads, "tie_word_embeddings": True}
        return name, json.dumps(values)
    known = yaml.safe_load(MODELS.read_text(encoding="utf-8"))
    if name in known:
        return name, json.dumps(known[name]["config"])
    local = Path(name, "config.json")
    if local.is_file():
        return name, local.read_text(encoding="utf-8")
    raise runs.ConfigError(
        f"{name}: {MODELS} has no numbers of it; add them, or download its config.json and name its folder"
    )


def _maker(path: str, made: dict[str, Step]) -> Step | None:
    """The step that makes a file or a model."""
    return made.get("/".join(Path(path).parts[:3]))


def _reward_model(path: str, made: dict[str, Step]) -> int:
    """Bytes of a reward model, which every process of all_scenarios_rl holds."""
    step = _maker(path, made)
    if step is None:
        return 0
    args, _ = check.check(step.target, *step.files, elsewhere=True)
    _, text = _base(args.model_name_or_path, made)
    return (2 if args.dtype == "bfloat16" else 4) * needs.shape(text).parameters


def _rows(file: str, made: dict[str, Step]) -> int:
    """Number of rows of a file, from the YAML of the job that makes it; 0 if no job of the scale does."""
    sizes = _size(_maker(file, made), made).rows
    return next((count for part, count in sizes.items() if part in Path(file).name), 0)


def _size(step: Step | None, made: dict[str, Step]) -> Any:
    """The `jobs.Size` of a job; an empty one for any other step."""
    from data_prep import jobs  # imports datatrove, which --help does not need

    found = None if step is None or step.trains or step.evaluates else check.check(step.target, *step.files)[0]
    return found.size(lambda file: _rows(file, made)) if isinstance(found, jobs.Job) else jobs.Size()


def sampled(steps: list[Step]) -> Iterator[tuple[str, int, int, Shape]]:
    """(job, number of samples, maximum tokens, the sampled model) for each job that samples a checkpoint."""
    made = {str(step.output_dir): step for step in steps}
    for step in steps:
        size = _size(step, made)
        if size.samples:
            yield step.name, size.samples, size.max_tokens, needs.shape(_base(size.checkpoint, made)[1])


# What to change


def change(stage: Stage, gpu: float) -> str:
    """The first change after which the stage fits."""
    tries: list[tuple[str, Stage]] = []
    pair = 2 if stage.scalar_head else 1  # sequences that must stay together
    for size in (8, 4, 2, 1):
        if size * pair < stage.sequences:
            tries.append((f"per_device_train_batch_size: {size}", replace(stage, sequences=size * pair)))
    small = replace(stage, sequences=pair)
    if stage.rl and stage.generation == "transformers" and not stage.nf4:
        tries.append(("generation: vllm_server", replace(small, generation="vllm_server")))
    if stage.rl and stage.vllm_share:
        for share in (0.4, 0.3, 0.2):
            enough = needs.vllm_tokens(replace(stage, vllm_share=share), gpu) > 4 * stage.length
            if share < stage.vllm_share and enough:
                tries.append((f"vllm_gpu_memory_utilization: {share}", replace(small, vllm_share=share)))
        tries.append(("generation: vllm_server", replace(small, generation="vllm_server", vllm_share=0)))
    if stage.nf4 and stage.spread == "ddp" and stage.shape.experts and not stage.rl:
        tries.append((f"expert_parallel: {stage.processes}", replace(small, sharing=stage.processes)))
    if stage.processes > 1 and stage.spread in ("ddp", "zero2") and not stage.nf4:
        tries.append(("accelerate_config: accelerate_configs/fsdp2.yaml", replace(small, spread="fsdp2")))
    if not stage.rank:
        tries.append(("use_peft: true, dtype: bfloat16", replace(small, rank=32, dtype=2)))
    if not stage.nf4 and not (stage.rl and stage.generation != "transformers"):
        tries.append(("load_in_4bit: true", replace(small, rank=stage.rank or 32, dtype=2, nf4=True, spread="ddp")))
    if stage.spread not in ("no", "ddp"):
        for power in range(1, 6):
            more = replace(small, processes=stage.processes * 2**power)
            if stage.batch // pair % more.processes:
                break  # a step's batch cannot use more
            tries.append((f"{more.processes} GPUs instead of {stage.processes}", more))
    if stage.rewards:
        taken = f"these take {stage.rewards / GB:.0f} GB of each GPU"
        tries.append((f"smaller reward models, or a reward that asks a server: {taken}", replace(small, rewards=0)))
    for what, other in tries:
        if needs.fits(other, gpu):
            one_by_one = stage.sequences > pair and "per_device" not in what
            return ("per_device_train_batch_size: 1, and " if one_by_one else "") + what
    size = next((size for size in sorted(needs.PEAK) if needs.fits(small, size * GB)), None)
    return f"GPUs of {size} GB" if size else "a smaller model, shorter sequences, or what spreads experts or sequences"


def host_change(stage: Stage, machine: float) -> str:
    """The first change after which loading fits a machine with this many bytes."""
    tries = []
    if stage.spread == "zero2" and not stage.rank:
        # DeepSpeed casts weights to bf16 on the CPU and creates its float32 master from them.
        tries.append(("dtype: bfloat16, which DeepSpeed trains in anyway", replace(stage, dtype=2)))
    if stage.spread in ("ddp", "zero2", "fsdp2") and not stage.nf4:
        kept = replace(stage, spread="fsdp2", dtype=stage.dtype if stage.rank else 4)
        what = "accelerate_config: accelerate_configs/fsdp2.yaml"
        tries.append((what if stage.rank else f"{what}, dtype: float32", kept))
    if not stage.rank:
        tries.append(("use_peft: true, dtype: bfloat16", replace(stage, rank=32, dtype=2)))
    found = next((what for what, other in tries if needs.loads(other, machine)), None)
    return found or f"machines of {needs.host(stage) / ROOM / GB:,.0f} GB, or fewer processes on each"


# For people


def report(steps: list[Step], gpus: int | None, gpu: float, machine: float | None = None) -> Iterator[str]:
    """The lines of the plan. `machine`: bytes of host memory; None: `HOST` times the memory of its GPUs."""
    planned = list(stages(steps, gpus))
    cpu = all(one.cpu for one in planned)
    unit = "hours" if cpu else "GPU-hours"
    rows = [(*HEADS, unit), *(_row(one, gpu, machine) for one in planned)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    where = "one process" if cpu else "one GPU"
    yield f"GB of {where}, which may take {gpu / GB:.0f}; `host`: GB of a machine's own memory; GB of disk."
    training, sampling = sum(needs.gpu_hours(one, gpu) for one in planned), 0.0
    for name, count, length, model in sampled(steps):
        sampling += (hours := needs.sampling_hours(model, count, length, gpu, cpu))
        yield f"samples of {name}: {count:,} of up to {length:,} tokens, {hours:,.1f} {unit}"
    yield (
        f"{unit[0].upper() + unit[1:]}: {training + sampling:,.1f}, of which {training:,.1f} in the stages and "
        f"{sampling:,.1f} for these samples; what a judge or a writer is asked comes on top."
    )
    yield (
        f"Assumed: texts are {FILL:.0%} of the longest allowed; training runs at {needs.TRAINING:.0%} of the peak, "
        f"vLLM at {needs.VLLM:.0%}, sampling with transformers at {needs.TRANSFORMERS:.1%}, in 4 bits at a fifth of "
        "that; SFT has the rows that its YAMLs ask for."
    )
    for one in planned:
        if one.sharing > 1:
            yield (
                f"{one.name}: {one.sharing} GPUs share the experts; in a step {one.exchanged / GB:,.0f} GB leave each "
                f"for the others, which takes {needs.exchange_seconds(one, gpu):.1f} s at the link's published rate."
            )
    yield from [line for one in planned for line in _advice(one, gpu, machine)] or ["Everything fits."]


def _row(one: Stage, gpu: float, machine: float | None) -> tuple[str, ...]:
    """A stage's line of the table, as `HEADS` names its cells."""
    found = needs.memory(one, gpu)
    fits = needs.fits(one, gpu) and needs.loads(one, machine or HOST * one.together * gpu)
    return (
        one.name,
        _short(one.parameters),
        _short(one.trained),
        *(f"{size / GB:.1f}" for size in (*astuple(found), found.peak)),
        f"{needs.host(one, gpu) / GB:,.0f}",
        "yes" if fits else "NO",
        _short(one.tokens),
        f"{one.steps:,}",
        f"{needs.disk(one) / GB:,.0f}",
        f"{needs.gpu_hours(one, gpu):,.1f}",
    )


def _advice(one: Stage, gpu: float, machine: float | None) -> Iterator[str]:
    """What to change so that a stage fits; nothing if it does."""
    spread = f"{one.processes} x {one.spread}" if one.processes > 1 else "one process"
    who, has = f"{one.name} ({one.model}, {spread})", machine or HOST * one.together * gpu
    if not needs.fits(one, gpu):
        yield f"{who}: write {change(one, gpu)}"
    if not needs.loads(one, has):
        what = f"loading takes {needs.host(one) / GB:,.0f} GB of each machine's memory, of {has / GB:,.0f}"
        yield f"{who}: {what}; write {host_change(one, has)}"
    if one.vllm_share and (room := needs.vllm_tokens(one, gpu)) < one.length:
        yield f"{one.name}: vLLM's cache holds {room:,.0f} tokens, one sequence {one.length:,}"


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.plan", __doc__)
    parser.add_argument("--scale", required=True, help="a name in recipes/configs, or a path to a folder of YAMLs")
    parser.add_argument("--gpus", type=int, help="in place of the processes in the accelerate configs")
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GB",
        help="of one GPU; for a CPU, of the machine, and left out that of this one",
    )
    parser.add_argument(
        "--host-memory", type=float, metavar="GB", help=f"of one machine; left out, {HOST} times that of its GPUs"
    )
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    arguments = parser.parse_args(argv)
    folder = scale_folder(arguments.scale)
    steps = load_steps(folder, override=arguments.override)
    size = (80 if arguments.override else MEMORY.get(folder.name, 16)) * GB
    if all(step.settings.get("use_cpu") for step in steps if step.trains):
        size = psutil.virtual_memory().total
    size = arguments.gpu_memory * GB if arguments.gpu_memory else size
    for line in report(steps, arguments.gpus, size, (arguments.host_memory or 0) * GB):
        print(line)


if __name__ == "__main__":
    sys.exit(commands.run(main))
