"""What a training stage needs: memory of its GPUs and machines, disk and GPU-hours, computed from its settings.

No file is read and no weights are loaded here. `plan.py` makes a `Stage` from the YAMLs and prints the figures, and
`benchmarks/plan.py` compares the memory with that of real processes.
"""

import json
from dataclasses import dataclass
from functools import cache

GB = 1e9
# GB of a GPU -> its dense bf16 operations/s: 4090, L40S, H100, H200, B200.
PEAK = {24: 165e12, 48: 362e12, 80: 989e12, 141: 989e12, 180: 2250e12}
# GB of a GPU -> bytes/s from it to others of its machine, as published: PCIe 4 (4090, L40S), NVLink (H100, H200, B200).
LINK = {24: 32e9, 48: 32e9, 80: 450e9, 141: 450e9, 180: 900e9}
TRAINING, VLLM, TRANSFORMERS = 0.35, 0.05, 0.005  # assumed shares of PEAK
# Operations/s of a toy on one core; of 135M parameters on two, and with AVX512-BF16.
CPU, CPU_LARGE, CPU_BF16 = 2e10, 1.2e11, 3e11
ROWS = 5  # assumed copies of the rows that are exchanged, of one layer: two for its backward pass, three on their way
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
    experts: int  # parameters of stacked experts
    chosen: int  # experts of a layer that a token uses
    routed: int  # layers with experts
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
def shape(text: str) -> Shape:
    """The shape of the model whose config is this JSON text. The model is built without weights."""
    import torch  # --help and errors do not need it
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads(text)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = []
    for path, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear) and not path.endswith("mlp.gate"):
            found.append((path.rpartition(".")[2], module.in_features, module.out_features, 1))
    for path, weight in model.model.layers.named_parameters():
        if weight.ndim == 3:  # stacked experts
            count, outputs, inputs = weight.shape
            halves = 2 if "gate_up" in path else 1  # two matrices in one
            found.append(("expert", inputs, outputs // halves, halves * count))
    experts = sum(inputs * outputs * count for name, inputs, outputs, count in found if name == "expert")
    total = sum(p.numel() for p in model.parameters())

    def of(name: str, default: int | None = None):  # families have different keys
        return getattr(config, name, default)

    chosen = of("num_experts_per_tok") or 0
    share = chosen / (of("n_routed_experts") or of("num_experts") or 1)
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
        active=int(total - experts * (1 - share)),
        experts=experts,
        chosen=chosen if experts else 0,
        routed=sum("gate_up" in path for path, weight in model.model.layers.named_parameters() if weight.ndim == 3),
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
    sharing: int = 1  # processes that share the experts of each layer
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
    def frozen(self) -> float:
        """Bytes of the weights as one process loads them."""
        linear = sum(inputs * outputs * count for _, inputs, outputs, count in self.shape.linear) if self.nf4 else 0
        elsewhere = self.shape.experts * (1 - 1 / self.sharing)
        return NF4 * (linear - elsewhere) + self.dtype * (self.parameters - linear)

    @property
    def parameters(self) -> int:
        return self.shape.parameters - (self.shape.head - self.shape.hidden if self.scalar_head else 0)

    @property
    def trained(self) -> int:
        """The number of trained parameters: all, or those of the adapter."""
        return self._adapted() if self.rank else self.parameters

    @property
    def trained_on_experts(self) -> int:
        """Those of the routed experts' adapters."""
        return self._adapted("expert") if self.rank else 0

    def _adapted(self, only: str = "") -> int:
        chosen = [one for one in self.shape.linear if not self.targets or _targeted(one[0], self.targets)]
        found = [one for one in chosen if not only or one[0] == only]
        return sum(self.rank * (inputs + outputs) * count for _, inputs, outputs, count in found)

    @property
    def tokens(self) -> float:
        """Tokens of all its steps."""
        return self.batch * self.steps * self.length * FILL

    @property
    def exchanged(self) -> float:
        """Bytes that leave one GPU in a step for experts on others, if tokens choose all experts equally often: the
        rows of each token there and back, in the forward and the backward pass, and once more with checkpointing."""
        row = self.shape.hidden * (2 if self.bf16 else self.dtype)
        passes = 2 * (2 + self.checkpointing)
        away = self.shape.chosen * self.shape.routed * (1 - 1 / self.sharing)
        return passes * away * row * self.batch * self.length * FILL / self.processes


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
    trained -= stage.trained_on_experts * (1 - 1 / stage.sharing)  # those of other processes
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
        shared = stage.trained_on_experts if stage.sharing > 1 else 0
        gathered = 4 * (stage.trained - shared)  # DDP's buckets, without experts that processes share
    if not stage.rank and not zero and compute < stage.dtype and not shards:
        gathered += compute * total  # the casts that autocast keeps for a forward pass
    made = 0.0  # the 16-bit weights of one of a layer's three stacks of experts, during its matmul
    if stage.nf4:
        stacks = [inputs * outputs * count for name, inputs, outputs, count in s.linear if name == "expert"]
        made = compute * min(stacks, default=0) / stage.sharing
    tokens = stage.sequences * stage.length
    stream = 2 if zero or (shards and stage.bf16) else stage.dtype  # both compute with a copy in bfloat16
    a_layer = _a_layer(s, stream, compute) * tokens
    activations = (stream * s.hidden * tokens * s.layers + a_layer) if stage.checkpointing else a_layer * s.layers
    activations += made
    if stage.sharing > 1:
        activations += ROWS * s.chosen * s.hidden * compute * tokens
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
        loaded = stage.together * 2 * stage.shape.experts
    elif stage.spread == "fsdp2":
        raised = 0 if stage.rank or stage.dtype == 4 else stage.together * 4 * stage.parameters
        loaded = max(models * stage.frozen, raised)
    return stage.together * IMPORTED + max(loaded, stage.together * stage.reward, SHARD)


def fits(stage: Stage, gpu: float) -> bool:
    """Whether a stage fits GPUs of `gpu` bytes."""
    return memory(stage, gpu).peak <= ROOM * gpu


def loads(stage: Stage, machine: float) -> bool:
    """Whether loading a stage fits machines of `machine` bytes. On a CPU there is only one memory: see `fits`."""
    return stage.cpu or host(stage) <= ROOM * machine


def vllm_tokens(stage: Stage, gpu: float) -> float:
    """Tokens that fit into vLLM's cache on one GPU, in addition to its 16-bit weights and 2 GB of its own."""
    room = stage.vllm_share * gpu - 2 * stage.parameters / stage.vllm_processes - 2 * GB
    return room / (2 * stage.shape.cached_vllm / stage.vllm_processes)


def disk(stage: Stage) -> float:
    """Bytes of the checkpoints that exist at once, and of the final model."""
    master = stage.spread in ("zero2", "zero3") and not stage.rank  # DeepSpeed's master is always in float32
    model = (4 if master else stage.dtype) * stage.parameters
    copies = 4 if stage.reference else 3  # the weights, Adam's two moments, the reference
    if stage.rank:
        adapter = 4 * stage.trained
        return stage.checkpoints * copies * adapter + model + adapter
    return (stage.checkpoints * copies + 1) * model


def gpu_hours(stage: Stage, gpu: float) -> float:
    """GPU-hours of training and sampling, from the operations and the assumed speeds. On a CPU, these are CPU hours."""
    cpu = (CPU_BF16 if stage.bf16 else CPU_LARGE if stage.parameters > 5e7 else CPU) if stage.cpu else None
    forward = stage.tokens * _forward(stage.shape, stage.length * FILL)
    passes = (2 if stage.rank else 3) + stage.checkpointing + stage.reference + stage.old_policy
    seconds = passes * forward / (cpu or _peak(gpu) * TRAINING)
    if stage.rl:
        share = VLLM if stage.generation != "transformers" else TRANSFORMERS / (5 if stage.nf4 else 1)
        seconds += forward / (cpu or _peak(gpu) * share)
    return (seconds + stage.processes * stage.steps * exchange_seconds(stage, gpu)) / 3600


def exchange_seconds(stage: Stage, gpu: float) -> float:
    """Seconds in which the rows of a step travel between GPUs at the published rate, while nothing else is done."""
    return 0.0 if stage.cpu else stage.exchanged / _of(LINK, gpu)


def sampling_hours(shape: Shape, samples: int, longest: int, gpu: float, cpu: bool) -> float:
    """GPU-hours of a data job's sampling with vLLM, computed like those of RL in `gpu_hours`; on a CPU, in bf16."""
    speed, length = CPU_BF16 if cpu else _peak(gpu) * VLLM, longest * FILL
    return samples * length * _forward(shape, length) / speed / 3600


def _forward(shape: Shape, length: float) -> float:
    """Operations per token for sequences of this length."""
    return 2 * shape.active + 2 * shape.layers * shape.heads * length


def _peak(gpu: float) -> float:
    """Operations per second of a GPU."""
    return _of(PEAK, gpu)


def _of(table: dict[int, float], gpu: float) -> float:
    """What a table says of the largest known GPU with at most this many bytes."""
    return table[max((size for size in table if size * GB <= gpu), default=min(table))]
