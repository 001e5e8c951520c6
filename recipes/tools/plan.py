"""What a scale needs, before it runs: `python -m recipes.tools.plan --scale S [--gpus N --gpu-memory G]`.

The plan uses only the YAMLs and the configs of the named models (`models.yaml`), without network or weights. It shows
for each stage the parameters, memory of one GPU and of its machine (`host`), tokens, optimiser steps, disk and
GPU-hours, and whether the stage fits. If it does not, it names the first change that helps. Memory is for a micro batch
of sequences with the maximum length. `benchmarks/plan.py` compares it with real processes.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data_prep import commands, runs
from recipes import commandline
from recipes import config as settings_of
from recipes.tools import check
from recipes.tools.steps import Step, load_steps, scale_folder

import yaml

GB = 1e9
MODELS = Path(__file__).with_name("models.yaml")
MEMORY = {"gpu-24gb": 24, "node-8x80gb": 80, "moe-qlora": 80, "deepseek-v3": 141}  # GB of one GPU; or --gpu-memory
PEAK = {
    24: 165e12,
    48: 362e12,
    80: 989e12,
    141: 989e12,
    180: 2250e12,
}  # dense bf16 operations/s: 4090, L40S, H100, H200, B200
TRAINING, VLLM, TRANSFORMERS = 0.35, 0.05, 0.005  # assumed shares of PEAK
CPU, CPU_BF16 = 2e10, 3e11  # operations/s of a toy on one core, and of 135M parameters on two with AVX512-BF16
FILL = 0.5  # assumed mean length of a text, as a share of the maximum
NF4 = 0.516  # bytes a number: 4 bits, and a doubly quantised scale for each 64
CONTEXT = 1.0 * GB  # CUDA, its libraries and NCCL
TILE = 4096, 32768  # tokens and vocabulary that TRL's fused head computes at once
ROOM = 0.95  # usable share of the memory of a GPU or a machine
# GB of host memory for each GB of GPU memory. Machines with eight GPUs have 1.9 (1,152 GiB with eight A100 of 80 GB,
# 2 TiB with eight H200) to 3.4, so this is below the least. Desktops with a card of 24 GB have 1.3 and more.
HOST = 1.6
IMPORTED = 3 * GB  # assumed host memory of each process: Python, PyTorch for CUDA, vLLM
SHARD = 5 * GB  # of host memory while a model is written, shard by shard


@dataclass(frozen=True)
class Shape:
    """The relevant sizes of an architecture. They count numbers instead of bytes."""

    parameters: int
    active: int  # parameters that a token uses
    linear: tuple[tuple[str, int, int, int], ...]  # name, inputs, outputs, how many, in decoder layers
    layer: int  # parameters of the largest decoder layer
    layers: int
    hidden: int
    heads: int  # outputs of q_proj
    kv: int  # outputs of k_proj
    inner: int  # of the dense layer, or of all experts that a token uses
    vocabulary: int
    head: int  # parameters of the language model's head, if it is not tied to the embedding
    longest: int  # tokens of a sequence
    cached: int  # numbers a token in the cache of transformers
    cached_vllm: int


@cache
def shape(name: str, text: str) -> Shape:
    """The shape of a model whose config is the JSON text. The model is built without weights."""
    import torch  # --help and errors do not need it
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(text)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found, experts = [], 0
    for path, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear) and not path.endswith("mlp.gate"):
            found.append((path.rpartition(".")[2], module.in_features, module.out_features, 1))
    for path, weight in model.model.layers.named_parameters():
        if weight.ndim == 3:  # stacked experts
            count, outputs, inputs = weight.shape
            experts += weight.numel()
            if "gate_up" in path:
                found += [("expert", inputs, outputs // 2, 2 * count)]
            else:
                found += [("expert", inputs, outputs, count)]
    total = sum(p.numel() for p in model.parameters())

    def of(name: str, default: int | None = None):  # families have different keys
        return getattr(config, name, default)

    chosen = of("num_experts_per_tok", 0) / (of("n_routed_experts") or of("num_experts") or 1)
    d = of("head_dim") or config.hidden_size // config.num_attention_heads
    heads, kv, latent = config.num_attention_heads * d, config.num_key_value_heads * d, of("kv_lora_rank")
    if latent:
        d = config.qk_nope_head_dim + config.qk_rope_head_dim
        heads = kv = config.num_attention_heads * d
    inner = config.intermediate_size
    if experts:
        inner = config.moe_intermediate_size * (config.num_experts_per_tok + (of("n_shared_experts") or 0))
    return Shape(
        parameters=total,
        active=int(total - experts * (1 - chosen)),
        linear=tuple(found),
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in model.model.layers),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv=kv,
        inner=inner,
        vocabulary=config.vocab_size,
        longest=config.max_position_embeddings,
        head=0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size,
        cached=2 * kv * config.num_hidden_layers,
        cached_vllm=(latent + config.qk_rope_head_dim if latent else 2 * kv) * config.num_hidden_layers,
    )


@dataclass(frozen=True)
class Stage:
    """The properties of a training stage that determine its needs. Lengths are in tokens."""

    name: str
    model: str
    shape: Shape
    processes: int
    spread: str  # no, ddp, zero2, zero3, fsdp2
    cpu: bool
    bf16: bool
    dtype: int  # bytes of a weight that is not in 4 bits
    together: int = 1  # processes of one machine
    rank: int = 0  # of an adapter; 0: all weights are trained
    targets: tuple[str, ...] = ()  # of the adapter; empty: all
    nf4: bool = False
    checkpointing: bool = True
    sequences: int = 1  # sequences of a micro batch
    length: int = 0  # length of the longest sequence
    batch: int = 1  # sequences of a step
    steps: int = 0
    rl: bool = False
    reference: bool = False
    generation: str = "transformers"
    at_once: int = 0  # completions that all processes sample at once
    old_policy: bool = False  # whether a rollout is scored before training on it
    vllm_share: float = 0.0
    vllm_processes: int = 1  # processes that share one copy of vLLM's weights
    rewards: int = 0  # bytes of reward models in each process
    reward: int = 0  # bytes of the largest of them
    scalar_head: bool = False
    checkpoints: int = 3

    @property
    def adapter(self) -> int:
        chosen = [one for one in self.shape.linear if not self.targets or _targeted(one[0], self.targets)]
        return sum(self.rank * (inputs + outputs) * count for _, inputs, outputs, count in chosen)

    @property
    def experts(self) -> int:
        """Parameters of stacked experts."""
        return sum(inputs * outputs * count for name, inputs, outputs, count in self.shape.linear if name == "expert")

    @property
    def frozen(self) -> float:
        """Bytes of the weights as they are loaded."""
        linear = sum(inputs * outputs * count for _, inputs, outputs, count in self.shape.linear) if self.nf4 else 0
        return NF4 * linear + self.dtype * (self.parameters - linear)

    @property
    def parameters(self) -> int:
        return self.shape.parameters - (self.shape.head - self.shape.hidden if self.scalar_head else 0)

    @property
    def trained(self) -> int:
        return self.adapter if self.rank else self.parameters


def _targeted(name: str, targets: tuple[str, ...]) -> bool:
    attention = name not in ("expert", "gate_proj", "up_proj", "down_proj")
    return name in targets or ("attention" if attention else "experts") in targets


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU (on a CPU, of one process). `gathered`: copies of weights for computation."""

    weights: float
    gradients: float
    optimiser: float
    reference: float
    gathered: float
    activations: float
    logits: float
    cache: float  # of transformers, or all memory of vLLM during sampling
    other: float  # reward models, CUDA

    @property
    def kept(self) -> float:
        return self.weights + self.optimiser + self.reference + self.other

    @property
    def peak(self) -> float:
        """The larger of training and sampling."""
        return self.kept + max(self.gradients + self.gathered + self.activations + self.logits, self.cache)


def memory(stage: Stage, gpu: float) -> Memory:
    """The memory of a stage on GPUs of `gpu` bytes."""
    s, n, total, trained = stage.shape, stage.processes, stage.parameters, stage.trained
    zero, shards = stage.spread in ("zero2", "zero3"), stage.spread in ("zero3", "fsdp2")
    own = n if shards else 1
    if stage.rank:
        weights, reference = (stage.frozen + 4 * trained) / own, 4 * trained if stage.reference else 0
        gradients, optimiser = 4 * trained, 8 * trained / (n if zero or shards else 1)
    else:
        each = 2 if zero else stage.dtype  # DeepSpeed keeps the trained copy in bf16 and shards its master
        weights, gradients = each * total / own, each * trained / (n if zero or shards else 1)
        optimiser = (12 if zero else 2 * stage.dtype) * trained / (n if zero or shards else 1)
        reference = weights if stage.reference else 0
    compute = 2 if stage.bf16 else stage.dtype
    gathered = 0.0
    if shards:
        gathered = 3 * 2 * s.layer  # one layer, the next, and the gradient of one
    elif stage.spread == "zero2":
        gathered = 1 * GB  # buckets
    elif stage.spread == "ddp":
        gathered = 4 * trained  # DDP's buckets
    if not stage.rank and not zero and compute < stage.dtype and not shards:
        gathered += compute * total  # the casts that autocast keeps for a forward pass
    made = 0.0  # the 16-bit weights of one of a layer's three stacks of experts, during its matmul
    if stage.nf4:
        stacks = [inputs * outputs * count for name, inputs, outputs, count in s.linear if name == "expert"]
        made = compute * min(stacks, default=0)
    tokens = stage.sequences * stage.length
    stream = 2 if zero or (shards and stage.bf16) else stage.dtype  # both compute with a copy in bfloat16
    a_layer = _a_layer(s, stream, compute) * tokens
    activations = (stream * s.hidden * tokens * s.layers + a_layer) if stage.checkpointing else a_layer * s.layers
    activations += made
    logits = 0.0
    if not stage.scalar_head:
        tile = min(tokens, TILE[0]) * min(s.vocabulary, TILE[1])
        logits = tile * (4 * 4 if stage.cpu else compute) + 4 * tokens * s.hidden
        logits += 0 if stage.rank else 4 * s.vocabulary * s.hidden
    cached = 0.0
    if stage.rl and stage.generation == "transformers":
        local = stage.at_once / n
        cached = local * stage.length * s.cached * compute + 3 * 4 * local * s.vocabulary
        cached += gathered * (stage.rank == 0) + made
    elif stage.generation == "vllm_colocate":
        cached = stage.vllm_share * gpu
    other = stage.rewards + (0 if stage.cpu else CONTEXT)
    return Memory(weights, gradients, optimiser, reference, gathered, activations, logits, cached, other)


def _a_layer(s: Shape, stream: int, compute: int) -> int:
    """Bytes a token of one decoder layer, kept for and added by its backward pass: norms in float32, projections,
    rotary embedding, repeated keys and values, attention's output, and the gated layer."""
    norms = 2 * (8 + stream) * s.hidden + 2 * stream * s.hidden
    attention = compute * (s.heads + 2 * s.kv) + stream * (s.heads + s.kv) + compute * 4 * s.heads
    return norms + attention + 6 * compute * s.inner


def host(stage: Stage, gpu: float = 0.0) -> float:
    """Peak bytes of one machine's host memory, which is reached during loading (transformers 5.17, TRL 1.16).

    The policy is created on the CPU of its process. With one process or DDP it moves to the GPU before TRL creates the
    reference. With DeepSpeed and FSDP2 it moves when training begins, so both are in memory. The reference of an
    adapter is a second adapter. DDP and ZeRO-2: this holds in every process. FSDP2: it holds in the first process of a
    machine, and the others touch no memory (`recipes/patches.py`); but accelerate upcasts trained 16-bit weights to 32
    bits in all of them. ZeRO-3: a mapped file that all processes share, plus stacked experts, which every process
    creates in the file's 16 bits. Reward models are loaded later, one by one, through the CPU of every process. A file
    that already has `dtype` is mapped too, but nothing is subtracted for it. Writing the model needs one shard.
    """
    if stage.cpu:
        return stage.together * memory(stage, gpu).peak
    models = 2 if stage.reference and not stage.rank and stage.spread in ("zero2", "fsdp2") else 1
    loaded = stage.together * models * stage.frozen
    if stage.spread == "zero3":
        loaded = stage.together * 2 * stage.experts
    elif stage.spread == "fsdp2":
        raised = 0 if stage.rank or stage.dtype == 4 else stage.together * 4 * stage.parameters
        loaded = max(models * stage.frozen, raised)
    return stage.together * IMPORTED + max(loaded, stage.together * stage.reward, SHARD)


def vllm_tokens(stage: Stage, gpu: float) -> float:
    """Tokens that fit into vLLM's cache on one GPU, in addition to its 16-bit weights and 2 GB of its own."""
    room = stage.vllm_share * gpu - 2 * stage.parameters / stage.vllm_processes - 2 * GB
    return room / (2 * stage.shape.cached_vllm / stage.vllm_processes)


def disk(stage: Stage) -> float:
    """Bytes of the checkpoints that exist at once, and of the final model."""
    master = stage.spread in ("zero2", "zero3") and not stage.rank  # DeepSpeed's master is always in float32
    model = (4 if master else stage.dtype) * stage.parameters
    adapters = 4 * stage.trained
    one = adapters * (4 if stage.reference else 3) if stage.rank else model * (4 if stage.reference else 3)
    return stage.checkpoints * one + model + (adapters if stage.rank else 0)


def gpu_hours(stage: Stage, gpu: float) -> tuple[float, float]:
    """(training, sampling) from the operations and the assumed shares of the peak. On a CPU, these are CPU hours."""
    peak = (CPU_BF16 if stage.bf16 else CPU) / TRAINING if stage.cpu else _peak(gpu)
    tokens, length = stage.batch * stage.steps * stage.length * FILL, stage.length * FILL
    forward = _forward(stage.shape, length)
    passes = (2 if stage.rank else 3) + stage.checkpointing + stage.reference + stage.old_policy
    train = tokens * forward * passes / (peak * TRAINING) / 3600
    share = VLLM if stage.generation != "transformers" else TRANSFORMERS / (5 if stage.nf4 else 1)
    sample = tokens * forward / (peak * (TRAINING if stage.cpu else share)) / 3600 if stage.rl else 0.0
    return train, sample


def _peak(gpu: float) -> float:
    """Operations per second of the largest known GPU with at most this many bytes."""
    return PEAK[max((size for size in PEAK if size * GB <= gpu), default=min(PEAK))]


def _forward(shape: Shape, length: float) -> float:
    """Operations per token for sequences of this length."""
    return 2 * shape.active + 2 * shape.layers * shape.heads * length


def sampling_hours(shape: Shape, samples: int, longest: int, gpu: float, cpu: bool) -> float:
    """GPU-hours of a data job's sampling with vLLM, computed like those of RL in `gpu_hours`; on a CPU, in bf16."""
    speed, length = CPU_BF16 if cpu else _peak(gpu) * VLLM, longest * FILL
    return samples * length * _forward(shape, length) / speed / 3600


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
            enough = vllm_tokens(replace(stage, vllm_share=share), gpu) > 4 * stage.length
            if share < stage.vllm_share and enough:
                tries.append((f"vllm_gpu_memory_utilization: {share}", replace(small, vllm_share=share)))
        tries.append(("generation: vllm_server", replace(small, generation="vllm_server", vllm_share=0)))
    if stage.processes > 1 and stage.spread in ("ddp", "zero2"):
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
        what = (
            f"smaller reward models, or a reward that asks a server: these take {stage.rewards / GB:.0f} GB of each GPU"
        )
        tries.append((what, replace(small, rewards=0)))
    for what, other in tries:
        if memory(other, gpu).peak <= ROOM * gpu:
            first = (
                "per_device_train_batch_size: 1, and " if stage.sequences > pair and "per_device" not in what else ""
            )
            return first + what
    size = next((size for size in sorted(PEAK) if memory(small, size * GB).peak <= ROOM * size * GB), None)
    return f"GPUs of {size} GB" if size else "a smaller model, shorter sequences, or what spreads experts or sequences"


def host_change(stage: Stage, memory: float) -> str:
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
    found = next((what for what, other in tries if host(other) <= ROOM * memory), None)
    return found or f"machines of {host(stage) / ROOM / GB:,.0f} GB, or fewer processes on each"


# From YAMLs


def stages(steps: list[Step], gpus: int | None = None) -> Iterator[Stage]:
    """The training stages among the steps of a scale. `gpus` replaces the YAMLs' number of processes."""
    by_output = {str(step.output_dir): step for step in steps}
    for step in steps:
        if step.trains:
            yield _stage(step, by_output, gpus)


def _stage(step: Step, by_output: dict[str, Step], gpus: int | None) -> Stage:
    launch = yaml.safe_load(Path(step.command[step.command.index("--config_file") + 1]).read_text(encoding="utf-8"))
    processes = gpus or launch["num_processes"]
    cpu = step.settings.get("use_cpu", False)
    with settings_of.planned(processes):
        args, config = check.check(step.target, *step.files, *commandline.WITHOUT_GPU)
    kind = launch["distributed_type"]
    zero = launch.get("deepspeed_config", {}).get("zero_stage")
    spread = {"DEEPSPEED": f"zero{zero}", "FSDP": "fsdp2"}.get(kind, "ddp" if processes > 1 else "no")
    name, architecture = _model(args, by_output)
    lora = getattr(args, "use_peft", False)
    found = Stage(
        step.name,
        name,
        shape(name, architecture),
        processes,
        spread if processes > 1 else "no",
        cpu,
        bf16=step.settings.get("bf16", not cpu),
        dtype=2 if args.dtype == "bfloat16" else 4,
        together=min(processes, max(8, launch["num_processes"] // launch["num_machines"])),
        rank=args.lora_r if lora else 0,
        targets=tuple(getattr(args, "lora_target_modules", None) or ()),
        nf4=getattr(args, "load_in_4bit", False),
        checkpointing=config.gradient_checkpointing,
        sequences=config.per_device_train_batch_size,
        steps=max(0, config.max_steps),
        checkpoints=(config.save_total_limit or 1) + 1,
    )
    if isinstance(config, settings_of.GRPOConfig):
        reward_models = {str(one["model"]) for one in (args.reward_kwargs or {}).values() if "model" in one}
        sizes = [_reward_model(one, by_output) for one in reward_models]
        return replace(
            found,
            length=min((args.max_prompt_length or 1024) + config.max_completion_length, found.shape.longest),
            batch=config.prompts_per_step * config.num_generations,
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
    rows = _rows(step, by_output)
    if not found.steps:
        found = replace(
            found, steps=sum(math.ceil(count * config.num_train_epochs / config.batch_size) for count in rows)
        )
    return replace(
        found,
        length=config.max_length,
        batch=config.batch_size * (2 if scorer else 1),
        sequences=found.sequences * (2 if scorer else 1),
        scalar_head=scorer,
    )


def _model(args: Any, by_output: dict[str, Step]) -> tuple[str, str]:
    """(the original base of a stage's model, its config as text)."""
    name = getattr(args, "model_name_or_path", None)
    while name in by_output and "model_name_or_path" in by_output[name].settings:
        name = by_output[name].settings["model_name_or_path"]
    if name is None or name in by_output:  # made by base.py
        given = by_output[name].settings if name else vars(args)
        keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        keys += ("num_key_value_heads", "max_position_embeddings")
        keys += ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        values = {key: given[key] for key in keys if given.get(key)} | {"tie_word_embeddings": True}
        values["vocab_size"] = values.get("vocab_size", 1024)
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        values["model_type"] = "qwen3_moe" if values.get("num_experts") else "qwen3"
        return name or "made here", json.dumps(values)
    known = yaml.safe_load(MODELS.read_text(encoding="utf-8"))
    if name in known:
        return name, json.dumps(known[name]["config"])
    local = Path(name, "config.json")
    if local.is_file():
        return name, local.read_text(encoding="utf-8")
    raise runs.ConfigError(
        f"{name}: {MODELS} has no numbers of it; add them, or download its config.json and name its folder"
    )


def _reward_model(path: str, by_output: dict[str, Step]) -> int:
    """Bytes of a reward model, which every process of all_scenarios_rl holds."""
    step = by_output.get(str(Path(*Path(path).parts[:3])))
    if step is None:
        return 0
    args, _ = check.check(step.target, *step.files, *commandline.WITHOUT_GPU)
    name, architecture = _model(args, by_output)
    return (2 if args.dtype == "bfloat16" else 4) * shape(name, architecture).parameters


def _rows(step: Step, by_output: dict[str, Step]) -> list[int]:
    """Numbers of rows that an SFT stage or the two reward models train on, from the jobs' YAMLs."""
    sources = [step.settings.get(key) for key in ("dataset", "helpfulness_dataset", "harmlessness_dataset")]
    return [_made(source, by_output) for source in sources if source]


def _made(source: str, by_output: dict[str, Step]) -> int:
    """Number of rows of a file, or 0 if no job of the scale makes it."""
    sizes = _size(by_output.get(str(Path(*Path(source).parts[:3]))), by_output).rows
    return next((count for part, count in sizes.items() if part in Path(source).name), 0)


def _size(step: Step | None, by_output: dict[str, Step]) -> Any:
    """The `jobs.Size` of a job; an empty one for any other step."""
    from data_prep import jobs  # imports datatrove, which --help does not need

    found = None if step is None or step.trains or step.evaluates else check.check(step.target, *step.files)[0]
    return found.size(lambda file: _made(file, by_output)) if isinstance(found, jobs.Job) else jobs.Size()


def sampled(steps: list[Step]) -> Iterator[tuple[str, int, int, Shape]]:
    """(job, number of samples, maximum tokens, the sampled model) for each job that samples a checkpoint."""
    by_output = {str(step.output_dir): step for step in steps}
    for step in steps:
        size = _size(step, by_output)
        if size.samples:
            made = SimpleNamespace(model_name_or_path=size.checkpoint)
            yield step.name, size.samples, size.max_tokens, shape(*_model(made, by_output))


# For people


def report(steps: list[Step], gpus: int | None, gpu: float, machine: float | None = None) -> Iterator[str]:
    """The lines of the plan. `machine`: bytes of host memory; None: `HOST` times the memory of its GPUs."""
    heads = ("stage", "parameters", "trained", *(field.name for field in fields(Memory)), "peak", "host", "fits")
    planned = list(stages(steps, gpus))
    cpu = all(one.cpu for one in planned)
    unit = "hours" if cpu else "GPU-hours"
    rows, advice, hours = [(*heads, "tokens", "steps", "disk", unit)], [], 0.0
    for one in planned:
        found, (train, sample), there = memory(one, gpu), gpu_hours(one, gpu), host(one, gpu)
        has = machine or HOST * one.together * gpu
        fits, loads = found.peak <= ROOM * gpu, one.cpu or there <= ROOM * has
        tokens = one.batch * one.steps * one.length * FILL
        size = (f"{b / GB:.1f}" for b in (*astuple(found), found.peak))
        numbers = (_short(one.parameters), _short(one.trained), *size, f"{there / GB:,.0f}")
        after = (_short(tokens), f"{one.steps:,}", f"{disk(one) / GB:,.0f}", f"{train + sample:,.1f}")
        rows.append((one.name, *numbers, "yes" if fits and loads else "NO", *after))
        hours += train + sample
        who = f"{one.name} ({one.model}, {one.processes} x {one.spread})"
        if not fits:
            advice.append(f"{who}: write {change(one, gpu)}")
        if not loads:
            what = f"loading takes {there / GB:,.0f} GB of each machine's memory, of {has / GB:,.0f}"
            advice.append(f"{who}: {what}; write {host_change(one, has)}")
        if one.vllm_share:
            room = vllm_tokens(one, gpu)
            if room < one.length:
                advice.append(f"{one.name}: vLLM's cache holds {room:,.0f} tokens, one sequence {one.length:,}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    yield f"GB a GPU of {gpu / GB:.0f}; `host`: GB of a machine's own memory; GB of disk."
    jobs = 0.0
    for name, count, length, sampled_model in sampled(steps):
        jobs += (more := sampling_hours(sampled_model, count, length, gpu, cpu))
        yield f"samples of {name}: {count:,} of up to {length:,} tokens, {more:,.1f} {unit}"
    yield (
        f"{unit[0].upper() + unit[1:]}: {hours + jobs:,.1f}, of which {hours:,.1f} in the stages and {jobs:,.1f} for "
        "these samples; what a judge or a writer is asked comes on top."
    )
    yield (
        f"Assumed: texts are {FILL:.0%} of the longest allowed; training runs at {TRAINING:.0%} of the peak, vLLM at "
        f"{VLLM:.0%}, sampling with transformers at {TRANSFORMERS:.1%}, in 4 bits at a fifth of that; SFT has the rows "
        "that its YAMLs ask for."
    )
    yield from advice or ["Everything fits."]


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def main(argv: list[str]) -> None:
    parser = commands.parser("recipes.tools.plan", __doc__)
    parser.add_argument("--scale", required=True, help="a name in recipes/configs, or a path to a folder of YAMLs")
    parser.add_argument("--gpus", type=int, help="in place of the processes in the accelerate configs")
    parser.add_argument("--gpu-memory", type=float, metavar="GB", help="of one GPU; of the machine, for a CPU")
    parser.add_argument(
        "--host-memory", type=float, metavar="GB", help=f"of one machine; left out, {HOST} times that of its GPUs"
    )
    parser.add_argument("--override", type=Path, metavar="FILE", help="other values, by the name of the YAML")
    arguments = parser.parse_args(argv)
    folder = scale_folder(arguments.scale)
    steps = load_steps(folder, override=arguments.override)
    size = arguments.gpu_memory or (80 if arguments.override else MEMORY.get(folder.name, 16))
    for line in report(steps, arguments.gpus, size * GB, (arguments.host_memory or 0) * GB):
        print(line)


if __name__ == "__main__":
    sys.exit(commands.run(main))
