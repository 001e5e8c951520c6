"""QLoRA on mixtures of experts: NF4 weights streamed from a 16-bit checkpoint, and proof of what was done.

Transformers 5 holds a layer's experts in two stacked tensors, which its own `load_in_4bit` leaves in 16 bits without a
word: over 90% of the model. Here every expert becomes three linear layers again before anything is read, so that
bitsandbytes quantises each tensor as it comes from the disk (QLoRA, arXiv 2305.14314: NF4, double quantisation), and
PEFT adapts it like any other. What came of it is proved by `qlora_proof`, before training and in its first steps.
"""

import inspect
import itertools
import os
import re
from pathlib import Path

from data_prep.runs import ConfigError
from recipes import qlora_proof
from recipes.qlora_proof import ROUTED, routers
from recipes.tools import merge

import bitsandbytes as bnb
import peft.utils.transformers_weight_conversion as peft_conversion
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

METHOD = "nf4_experts"
ADAPTER, PREFIX = "adapter_model.safetensors", "base_model.model."
WORDS = {"attention": r"attn|attention", "experts": r"expert|mlp|moe|feed_forward|ffn"}


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


class Quantize(Bnb4bitQuantize):
    """bitsandbytes' quantisation, with the memory of 16-bit tensors given back as it becomes free."""

    def convert(self, input_dict: dict, **kwargs) -> dict:
        made = super().convert(input_dict, **kwargs)
        merge.give_back_memory(next(self.hf_quantizer.converted))
        return made


@register_quantizer(METHOD)
class Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer, for experts too."""

    def _process_model_before_weight_loading(self, model, device_map, **kwargs):
        self.names, self.converted = merge.expert_names(model), itertools.count(1)
        unfuse(model)
        self.experts = max((len(one) for one in model.modules() if isinstance(one, Experts)), default=0)
        chosen = [name for path in routers(model) for name, _ in model.get_submodule(path).named_modules(prefix=path)]
        kept = get_keys_to_not_convert(model) + chosen
        self.quantization_config.llm_int8_skip_modules = [re.escape(name) + "$" for name in kept]
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        model.experts_are_unfused = True

    def get_quantize_ops(self):
        return Quantize(self)

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
        raise ConfigError(f"load_in_4bit: {qlora_proof.NOT_SHARDED}. Use DDP or ZeRO-2.")
    if getattr(config, "use_vllm", False):
        raise ConfigError(
            "generation: with load_in_4bit, TRL would merge the adapter into the 4-bit base at each sync with vLLM, "
            "which quantises it anew (trl#4973): what samples is not what trains. Write generation: transformers."
        )
    if getattr(config, "router_aux_loss_coef", None):
        raise ConfigError("router_aux_loss_coef: with load_in_4bit the router is frozen; remove the key, or write 0.")
    if hasattr(config, "router_aux_loss_coef"):
        config.router_aux_loss_coef = 0.0  # left out, it would be the model's own
    unfuse(merge.skeleton(name))  # says what cannot be, before anything is read
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
    `attention` and `experts` (routed, shared, dense); None: both words. Raises ConfigError where one finds nothing.
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
    if pattern := WORDS.get(target):
        return re.search(pattern, name) is not None
    return name == target or name.endswith(f".{target}")


def save_adapter(model: PeftModel, folder: Path, parent: str) -> None:
    """Save the adapter under the published checkpoint's names, with a config by which plain PEFT puts it on the 16-bit
    base: stacked experts as parameters, and what else is named like an expert's layer as a parameter too (peft#3711).
    """
    model.save_pretrained(folder, selected_adapters=["default"])
    source, skeleton = merge.Parent(parent), merge.skeleton(parent)
    rename, leaves = merge.module_names(skeleton), merge.expert_names(skeleton)
    published = {rename(key).removesuffix(".weight"): key.removesuffix(".weight") for key in source.keys}
    tensors, modules = {}, set()
    for key, tensor in load_file(folder / ADAPTER).items():
        module, pair, rest = key.removeprefix(PREFIX).partition(".lora_")
        tensors[PREFIX + published.get(module, module) + pair + rest] = tensor
        modules |= {module} if pair else set()
    if not merge.published_apart(skeleton):
        tensors = _stack(tensors, leaves)
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(folder)
    routed = {module for module in modules if ROUTED.match(module)}
    alike = {module for module in modules - routed if module.rpartition(".")[2] in leaves}
    parameters = {".".join(module.split(".")[-2:]) + ".weight" for module in alike}
    if any(module.endswith(leaves[:2]) for module in routed):
        parameters |= {"experts.gate_up_proj"}
        config.rank_pattern = {r".*\.gate_up_proj": 2 * config.r}  # PEFT makes the pairs of gate and up into one
        config.alpha_pattern = {r".*\.gate_up_proj": 2 * config.lora_alpha}
    if any(module.endswith(leaves[2]) for module in routed):
        parameters |= {"experts.down_proj"}
    config.target_modules = sorted({module.rpartition(".")[2] for module in modules - routed - alike})
    config.target_parameters = sorted(parameters)
    config.save_pretrained(folder)


def _stack(tensors: dict[str, torch.Tensor], leaves: tuple[str, str, str]) -> dict[str, torch.Tensor]:
    """The pairs of a layer's experts as PEFT holds those of stacked parameters, for families published stacked."""
    layers: dict[str, dict] = {}
    for key in [key for key in tensors if ROUTED.match(key)]:
        path, expert, leaf, matrix = re.fullmatch(r"(.*)\.(\d+)\.(\w+)\.lora_([AB])\.weight", key).groups()
        layers.setdefault(path, {}).setdefault((leaf, matrix), {})[int(expert)] = tensors.pop(key)
    for path, pairs in layers.items():
        for module, names in ((f"{path}.base_layer", leaves[:2]), (path, leaves[2:])):
            if all((leaf, "A") in pairs for leaf in names):
                a, b = ([[pairs[leaf, m][e] for leaf in names] for e in sorted(pairs[names[0], m])] for m in "AB")
                ranks_last = torch.stack([torch.block_diag(*one) for one in b], dim=-1)  # (out, rank, experts)
                tensors[f"{module}.lora_A.weight"] = torch.cat([torch.cat(one) for one in a])
                tensors[f"{module}.lora_B.weight"] = ranks_last.flatten(1).contiguous()
    return tensors


# Before the first step


def begin(trainer, figures: dict) -> None:
    """Just before training: check the model, and have its first steps checked. `figures` end up in run.json."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts them to bfloat16, in which most updates at the paper's rates are rounded away.
            parameter.data = parameter.data.float()
    qlora_proof.check(trainer.accelerator.unwrap_model(trainer.model))
    trainer.add_callback(qlora_proof.GradientCheck(figures))
