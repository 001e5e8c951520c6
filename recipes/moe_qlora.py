"""QLoRA on mixtures of experts: NF4 weights streamed from a 16-bit checkpoint, and proof of what was done.

Transformers 5 holds a layer's experts in two stacked tensors, which its own `load_in_4bit` leaves in 16 bits without a
word: over 90% of the model. Here every expert becomes three linear layers again before anything is read, so that
bitsandbytes quantises each tensor as it comes from the disk (QLoRA, arXiv 2305.14314: NF4, double quantisation), and
PEFT adapts it like any other. `begin` prints what is held how, and refuses to train what is not as promised;
`GradientCheck` does so in the first steps.
"""

import inspect
import logging
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

from data_prep.runs import ConfigError
from recipes.tools import merge

import bitsandbytes as bnb
import peft.utils.transformers_weight_conversion as peft_conversion
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TrainerCallback
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

logger = logging.getLogger(__name__)
METHOD = "nf4_experts"
WORDS = ("attention", "experts")
ROUTED = re.compile(r"(.*\bexperts)\.(\d+)\.")


# Experts as linear layers


class Expert(nn.Module):
    """One expert; its layers bear the names that the published checkpoint gives them."""

    def __init__(self, names: tuple[str, str, str], hidden: int, inner: int, apply_gate):
        super().__init__()
        self.names, self.apply_gate = names, apply_gate
        for name, size in zip(names, ((hidden, inner), (hidden, inner), (inner, hidden)), strict=True):
            self.add_module(name, nn.Linear(*size, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.apply_gate(torch.cat((gate(x), up(x)), dim=-1)))


class Experts(nn.ModuleList):
    """The routed experts of one layer; `routed` counts the tokens that each got while training."""

    def __init__(self, experts: list[Expert]):
        super().__init__(experts)
        self.num_experts, self.routed = len(experts), [0] * len(experts)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum of the chosen experts' outputs. hidden: (tokens, size); chosen, weights: (tokens, experts per token)."""
        order = chosen.flatten().argsort(stable=True)
        tokens = order // chosen.shape[1]
        counts = torch.bincount(chosen.flatten(), minlength=len(self)).tolist()
        if self.training and torch.is_grad_enabled():
            self.routed = [before + now for before, now in zip(self.routed, counts, strict=True)]
        parts = hidden[tokens].split(counts)
        done = torch.cat([expert(part) for expert, part in zip(self, parts, strict=True) if len(part)])
        done = (done * weights.flatten()[order, None]).to(hidden.dtype)
        return torch.zeros_like(hidden).index_add(0, tokens, done)


def unfuse(model: PreTrainedModel) -> None:
    """Replace stacked experts by `Experts`, on the meta device. Raises ConfigError for experts of another form."""
    names = merge.expert_names(model)
    for path, module in list(model.named_modules()):
        stacked = [name for name, one in module.named_parameters(recurse=False) if one.ndim > 2]
        if not stacked or isinstance(module, nn.modules.conv._ConvNd):
            continue
        usual = getattr(module, "is_concatenated", False) and not module.is_transposed and not module.has_bias
        if sorted(stacked) != ["down_proj", "gate_up_proj"] or not usual:
            raise ConfigError(
                f"load_in_4bit: {path} ({type(module).__name__}) holds {', '.join(stacked)} in another form than "
                "gate_up_proj (experts, 2 x inner, hidden) and down_proj (experts, hidden, inner) without biases; "
                f"{model.config.model_type} would stay in 16 bits. Train another base, or set load_in_4bit: false."
            )
        count, hidden, inner = module.down_proj.shape
        dtype = module.down_proj.dtype
        del module.down_proj, module.gate_up_proj  # what is left applies the gate
        with torch.device("meta"):
            made = Experts([Expert(names, hidden, inner, module._apply_gate) for _ in range(count)])
        model.set_submodule(path, made.to(dtype))


def routers(model: nn.Module) -> list[str]:
    """Names of the modules that choose among experts, or weigh the shared one."""
    found = []
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and isinstance(module, nn.ModuleList):
            block = path.rpartition(".")[0]
            for name, _ in model.get_submodule(block).named_children():
                if re.search(r"gate|router", name) and name not in ("gate_proj", "gate_up_proj"):
                    found.append(f"{block}.{name}")
    return found


# Loading


class Split(ConversionOps):
    """Stacked experts of a checkpoint, taken apart: the targets are every expert's parts in turn."""

    def convert(self, input_dict: dict, source_patterns: list[str], target_patterns: list[str], **kwargs) -> dict:
        tensor = next(iter(input_dict.values()))
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        parts = len(target_patterns) // len(tensor)
        return dict(zip(target_patterns, (one for expert in tensor for one in expert.chunk(parts)), strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("A 4-bit model is not saved: its adapter is, and merged into the 16-bit base.")


@register_quantizer(METHOD)
class Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer, for experts too."""

    def _process_model_before_weight_loading(self, model, device_map, **kwargs):
        self.names = merge.expert_names(model)
        unfuse(model)
        self.experts = max((len(one) for one in model.modules() if isinstance(one, Experts)), default=0)
        chosen = [name for path in routers(model) for name, _ in model.get_submodule(path).named_modules(prefix=path)]
        kept = get_keys_to_not_convert(model) + chosen
        self.quantization_config.llm_int8_skip_modules = [re.escape(name) + "$" for name in kept]
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        model.experts_are_unfused = True

    def update_weight_conversions(self, weight_conversions):
        """A checkpoint's experts stay apart, or are taken apart where it holds them stacked."""
        kept = [one for one in super().update_weight_conversions(weight_conversions) if not _stacks(one)]
        gate, up, down = ([f"experts.{e}.{name}.weight" for e in range(self.experts)] for name in self.names)
        if self.experts:
            both = [name for pair in zip(gate, up, strict=True) for name in pair]
            kept += [WeightConverter(r"experts\.gate_up_proj$", both, [Split()])]
            kept += [WeightConverter(r"experts\.down_proj$", down, [Split()])]
        return kept

    def _process_model_after_weight_loading(self, model, **kwargs):
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                # On CPUs with AVX512-BF16, a forward pass in eval mode repacks the weight for inference, for good; the
                # gradients of later steps are wrong. No issue is known for it.
                module.support_avx512bf16_for_cpu = False
        return model


def _stacks(conversion) -> bool:
    """Whether a conversion makes one tensor of a layer's experts."""
    merges = isinstance(conversion, WeightConverter) and any(
        isinstance(o, MergeModulelist) for o in conversion.operations
    )
    return merges and "experts" in conversion.target_patterns[0]


class Nf4Config(BitsAndBytesConfig):
    """NF4 with double quantisation, by our quantizer."""

    def __init__(self, dtype: torch.dtype):
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        self.quant_method = METHOD


def load(kind: type, name: str, config, dtype: torch.dtype, **settings) -> PreTrainedModel:
    """`kind.from_pretrained(name)` with every linear layer in NF4, save routers and heads.

    `config` is the trainer's. Raises ConfigError for what cannot be trained so.
    """
    deepspeed = getattr(config, "deepspeed_plugin", None)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or getattr(deepspeed, "zero_stage", 0) == 3:
        raise ConfigError(
            "load_in_4bit: FSDP and ZeRO-3 gather a layer where every process runs it, but each process runs the "
            "experts that its own tokens chose, and waits for the others forever. Use DDP or ZeRO-2."
        )
    if getattr(config, "use_vllm", False):
        raise ConfigError(
            "use_vllm: with load_in_4bit, TRL merges the adapter into the 4-bit base for every sync, which quantises "
            "it anew each time (trl#4973): what samples is not what trains. Remove use_vllm; transformers samples."
        )
    if getattr(config, "router_aux_loss_coef", None):
        raise ConfigError("router_aux_loss_coef: with load_in_4bit the router is frozen; remove the key, or write 0.")
    if hasattr(config, "router_aux_loss_coef"):
        config.router_aux_loss_coef = 0.0  # left out, it would be the model's own
    merge.refuse_quantized(name, "load_in_4bit")
    model = kind.from_pretrained(name, quantization_config=Nf4Config(dtype), dtype=dtype, **settings)
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # by it the libraries know how to move it
    return model


# The adapter


def _unless_unfused(convert, model_argument: str, result):
    """PEFT's own rewriting for MoE models, but not for ours: it takes `gate_proj` to mean stacked experts, whatever
    layer is named so, and leaves out those that are linear layers (peft#3711)."""

    def wrapped(*args, **kwargs):
        call = inspect.signature(convert).bind(*args, **kwargs).arguments
        return result(call) if getattr(call[model_argument], "experts_are_unfused", False) else convert(*args, **kwargs)

    return wrapped


peft_conversion.convert_peft_config_for_transformers = _unless_unfused(
    peft_conversion.convert_peft_config_for_transformers, "model", lambda call: None
)
peft_conversion.convert_peft_adapter_state_dict_for_transformers = _unless_unfused(
    peft_conversion.convert_peft_adapter_state_dict_for_transformers, "model", lambda call: call["adapter_state_dict"]
)


def adapt(model: PreTrainedModel, config: LoraConfig, targets: list[str] | None) -> PeftModel:
    """The model with a LoRA pair on each 4-bit layer that `targets` names: by the end of its name, or by the words
    `attention` and `experts` (routed, shared and dense). None: both words. Raises ConfigError where one finds nothing.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    found = {target: [name for name in layers if _is(name, target)] for target in targets or WORDS}
    for target, names in found.items():
        if not names:
            router = any(_is(name, target) for name in routers(model))
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigError(
                f"lora_target_modules: '{target}' {'is a router, which stays frozen' if router else 'finds nothing'}. "
                f"Write attention, experts, or some of {', '.join(known)}."
            )
    chosen = set().union(*found.values())
    # As one expression: a list of thousands of names would be compared with each of thousands of modules.
    alike = {re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in chosen}
    config.target_modules = "|".join(sorted(alike))
    return get_peft_model(model, config)


def _is(name: str, target: str) -> bool:
    attention = re.search(r"attn|attention", name) is not None
    if target in WORDS:
        return attention == (target == "attention")
    return name == target or name.endswith(f".{target}")


def save_adapter(model: PeftModel, folder: Path, parent: str) -> None:
    """Save the adapter under the published checkpoint's names, with a config by which plain PEFT puts it on the 16-bit
    base: stacked experts as parameters, and what else is named like an expert's layer as a parameter too (peft#3711).
    """
    model.save_pretrained(folder, selected_adapters=["default"])
    source, skeleton = merge.Parent(parent), merge.skeleton(parent)
    rename = merge.module_names(skeleton)
    published = {rename(key).removesuffix(".weight"): key.removesuffix(".weight") for key in source.keys}
    file = folder / "adapter_model.safetensors"
    prefix, tensors, modules = "base_model.model.", {}, set()
    for key, tensor in load_file(file).items():
        module, pair, rest = key.removeprefix(prefix).partition(".lora_")
        tensors[prefix + published.get(module, module) + pair + rest] = tensor
        modules |= {module} if pair else set()
    save_file(tensors, file, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(folder)
    leaves = merge.expert_names(skeleton)
    linear = {module for module in modules if module.rpartition(".")[2] not in leaves}
    routed = {module for module in modules if ROUTED.match(module)}
    parameters = {".".join(module.split(".")[-2:]) + ".weight" for module in modules - linear - routed}
    if any(module.endswith(leaves[:2]) for module in routed):
        parameters |= {"experts.gate_up_proj"}
        config.rank_pattern = {r".*\.gate_up_proj": 2 * config.r}  # PEFT puts the pairs of gate and up into one
        config.alpha_pattern = {r".*\.gate_up_proj": 2 * config.lora_alpha}
    if any(module.endswith(leaves[2]) for module in routed):
        parameters |= {"experts.down_proj"}
    config.target_modules = sorted({module.rpartition(".")[2] for module in linear})
    config.target_parameters = sorted(parameters)
    config.save_pretrained(folder)


# Proof


def kind_of(name: str, chosen_by: list[str]) -> str:
    """What a parameter belongs to, in the table's words."""
    if ".lora_" in name:
        return "LoRA, " + kind_of(re.sub(r"\.lora_.*|^base_model\.model\.", "", name), chosen_by)
    if any(name.startswith(f"{path}.") for path in chosen_by):
        return "router"
    kinds = {
        "routed experts": ROUTED.pattern,
        "shared experts": "shared_expert",
        "norms": "norm",
        "attention": "attn|attention",
        "embeddings": "embed|wte",
        "head": "lm_head|score",
    }
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, name + ".")), "dense layers")


def size_of(parameter: nn.Parameter) -> tuple[int, str, int]:
    """(numbers, dtype, bytes); of a 4-bit parameter with its scales and code tables."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.numel(), str(parameter.dtype).removeprefix("torch."), parameter.nbytes
    tensors = [parameter.data, *(one for one in state.as_dict().values() if isinstance(one, torch.Tensor))]
    return state.shape.numel(), state.quant_type, sum(one.nbytes for one in tensors)


def table(model: nn.Module) -> dict[tuple[str, str], Counter]:
    """Numbers, bytes and trainable numbers, by kind and dtype."""
    chosen_by, rows = routers(getattr(model, "get_base_model", lambda: model)()), {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        numbers, dtype, size = size_of(parameter)
        row = rows.setdefault((kind_of(name, chosen_by), dtype), Counter())
        row.update(tensors=1, numbers=numbers, bytes=size, trained=numbers * parameter.requires_grad)
    return rows


def check(model: nn.Module) -> None:
    """Log the table. Raises ConfigError where it is not QLoRA: an expert in 16 bits, a trainable router, no adapter."""
    rows = table(model)
    lines = [f"{'':32}{'dtype':>10}{'tensors':>9}{'numbers':>16}{'bytes':>16}{'trained':>14}"]
    for (kind, dtype), row in sorted(rows.items()):
        lines.append(f"{kind:32}{dtype:>10}" + "{tensors:9,}{numbers:16,}{bytes:16,}{trained:14,}".format(**row))
    logger.info("\n".join(lines))
    for (kind, dtype), row in rows.items():
        if kind in ("routed experts", "shared experts") and dtype != "nf4":
            raise ConfigError(f"load_in_4bit: {row['tensors']} tensors of {kind} are {dtype}, not NF4.")
        if "router" in kind and row["trained"]:
            raise ConfigError("load_in_4bit: a router is trainable; it must stay frozen.")
    if not any(row["trained"] for (kind, _), row in rows.items() if kind.startswith("LoRA")):
        raise ConfigError("load_in_4bit: nothing is trainable; the adapter found no layer.")
    if getattr(model.config, "num_experts_per_tok", None) and ("routed experts", "nf4") not in rows:
        raise ConfigError("load_in_4bit: this mixture of experts has none that could be found.")


def begin(trainer, figures: dict) -> None:
    """Just before training: check the model, and have its first steps checked. `figures` end up in run.json."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts them to bfloat16, in which most updates at the paper's rates are rounded away.
            parameter.data = parameter.data.float()
    check(trainer.accelerator.unwrap_model(trainer.model))
    trainer.add_callback(GradientCheck(figures))


class GradientCheck(TrainerCallback):
    """Stops training where a LoRA pair learns nothing: over the first steps that have a gradient at all, wherever one
    reaches the output of an adapted layer, its B has one too, and its A once B is not zero any more.

    Experts that no token was sent to are counted, at the end too.
    """

    steps = 3

    def __init__(self, figures: dict):
        self.figures, self.seen, self.reached, self.done, self.hooks = figures, {}, set(), 0, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.layers = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLayer) and module.lora_A
        }
        for name, module in self.layers.items():
            self.hooks.append(module.register_forward_hook(partial(self._watch, name)))
            for pair in ("lora_A", "lora_B"):
                self.hooks.append(
                    getattr(module, pair)["default"].weight.register_hook(partial(self._note, name, pair))
                )

    def _watch(self, name, module, args, output):
        if output.requires_grad:
            output.register_hook(partial(self._note, name, "output"))

    def _note(self, name, what, gradient):
        self.seen[name, what] = self.seen.get((name, what), False) | gradient.any()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.hooks or not any(self.seen.values()):
            return
        now = {name for (name, what), any_ in self.seen.items() if what == "output" and any_}
        for name in sorted(now):
            needs = ["lora_B"] + ["lora_A"] * bool(self.layers[name].lora_B["default"].weight.any())
            if missing := [what for what in needs if not self.seen.get((name, what), False)]:
                raise ConfigError(f"load_in_4bit: {name} is used, but its {' and '.join(missing)} get no gradient.")
        self.reached |= now
        self.seen, self.done = {}, self.done + 1
        if self.done == self.steps:
            self._conclude()

    def _conclude(self):
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        groups = {}  # the routed experts of a layer count as one: some of them may have no tokens yet
        for name in self.layers:
            one = ROUTED.match(name)
            groups.setdefault(one[1] if one else name, []).append(name)
        for group, names in groups.items():
            if not self.reached.intersection(names):
                raise ConfigError(f"load_in_4bit: after {self.done} steps no gradient has reached {group}.")
        logger.info("%d of %d LoRA pairs have had a gradient", len(self.reached), len(self.layers))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.hooks and self.done:
            self._conclude()
        experts = [one for one in model.modules() if isinstance(one, Experts)]
        idle = sum(one.routed.count(0) for one in experts)
        self.figures |= {"experts": sum(map(len, experts)), "experts_never_routed_to": idle}
        logger.info("%(experts_never_routed_to)d of %(experts)d experts never got a token", self.figures)
