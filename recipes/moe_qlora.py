"""QLoRA for mixtures of experts: NF4 weights are streamed from a 16-bit checkpoint, and the result is verified.

Transformers 5 holds a layer's experts in two stacked tensors. Its `load_in_4bit` silently leaves them, over 90% of the
model, in 16 bits. Here every expert becomes three linear layers before loading, so bitsandbytes quantises each tensor
as it is read (QLoRA, arXiv 2305.14314: NF4, double quantisation) and PEFT adapts it like any other layer. `qlora_proof`
verifies the result before training, and `checks.gradients` in its first steps.
"""

import inspect
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from data_prep.runs import ConfigError, memory
from recipes import expert_parallel, qlora_proof
from recipes.config import world_size
from recipes.experts import Expert, Experts, Uneven
from recipes.parent import SCALES, Parent, expert_names, module_names, published_apart, skeleton
from recipes.qlora_proof import ROUTED, routers

import bitsandbytes as bnb
import peft.utils.transformers_weight_conversion as peft_conversion
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, MergeModulelist, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationMethod

METHOD = "nf4_experts"
ADAPTER, PREFIX = "adapter_model.safetensors", "base_model.model."
# Attention excludes DeepSeek-V3.2's indexer, which chooses its tokens: like a router's, its choice has no gradient.
WORDS = {"attention": r"^(?!.*\bindexer\b).*(attn|attention)", "experts": r"expert|mlp|moe|feed_forward|ffn"}


def unfuse(model: PreTrainedModel, processes: int = 1) -> None:
    """Replace stacked experts with `Experts` on the meta device, which `processes` share. Raises ConfigError for
    experts of another form, or of a number that they cannot share."""
    names = expert_names(model)
    for path, module in list(model.named_modules()):
        stacked = [name for name, one in module.named_parameters(recurse=False) if sum(n > 1 for n in one.shape) > 2]
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
        del module.down_proj, module.gate_up_proj  # the rest of the module applies the gate
        with torch.device("meta"):
            held = expert_parallel.held(count, processes)
            experts = {number: Expert(names, hidden, inner, module._apply_gate) for number in held}
        model.set_submodule(path, Experts(experts, count, processes).to(dtype))


# Loading


class Split(ConversionOps):
    """Splits stacked experts of a checkpoint. The targets are the parts of each of the `held` experts in turn."""

    def __init__(self, held: range):
        self.held = slice(held.start, held.stop)

    def convert(self, input_dict: dict, source_patterns: list[str], target_patterns: list[str], **kwargs) -> dict:
        tensor = next(iter(input_dict.values()))
        tensor = (tensor[0] if isinstance(tensor, list) else tensor)[self.held]
        parts = len(target_patterns) // len(tensor)
        return dict(zip(target_patterns, (one for expert in tensor for one in expert.chunk(parts)), strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        raise NotImplementedError("A 4-bit model is not saved: its adapter is, and merged into the 16-bit base.")


class Quantize(Bnb4bitQuantize):
    """bitsandbytes' quantisation, also of FP8 in blocks, which returns the freed memory of 16-bit tensors to the
    system."""

    def convert(self, input_dict: dict, source_patterns: list[str], **kwargs) -> dict:
        (key, *_), source = source_patterns, self.hf_quantizer.source
        if key in self.hf_quantizer.scaled:  # FP8's numbers, unscaled, are exact in 16 bits
            ((name, value),) = input_dict.items()
            value = value[0] if isinstance(value, list) else value
            value = (value.float() * source.scales(key, value.shape, value.device)).to(value.dtype)
            input_dict = {name: value}
            self.hf_quantizer.scaled.remove(key)
        elif source.fp8 and key in source.file_of:
            source.read(key)  # raises ConfigError for FP8 whose scales are missing
        made = super().convert(input_dict, **kwargs)
        memory.give_back(next(self.hf_quantizer.converted))
        return made


@register_quantizer(METHOD)
class Quantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer, extended to experts."""

    def _process_model_before_weight_loading(self, model, device_map, checkpoint_files=(), **kwargs):
        self.names, self.converted = expert_names(model), itertools.count(1)
        self.source = Parent(Path(checkpoint_files[0]).parent)
        self.scaled = {key for key in self.source.keys if self.source.is_scaled(key)}  # and not read yet
        processes = self.quantization_config.processes
        unfuse(model, processes)
        count = max((one.num_experts for one in model.modules() if isinstance(one, Experts)), default=0)
        self.held = expert_parallel.held(count, processes)
        skipped = model._keys_to_ignore_on_load_unexpected  # without being read
        skipped.add(re.escape(SCALES) + "$")
        if others := sorted(set(range(count)) - set(self.held)):
            skipped.add(rf"\.experts\.({'|'.join(map(str, others))})\.")
        chosen = [name for path in routers(model) for name, _ in model.get_submodule(path).named_modules(prefix=path)]
        kept = get_keys_to_not_convert(model) + chosen
        self.quantization_config.llm_int8_skip_modules = [re.escape(name) + "$" for name in kept]
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        model.experts_are_unfused = True

    def get_quantize_ops(self):
        return Quantize(self)

    def update_weight_conversions(self, weight_conversions):
        """Keep the experts of a checkpoint separate, or split them if it holds them stacked."""
        kept = [one for one in super().update_weight_conversions(weight_conversions) if not _stacks(one)]
        gate, up, down = ([f"experts.{e}.{name}.weight" for e in self.held] for name in self.names)
        if self.held:
            both = [name for pair in zip(gate, up, strict=True) for name in pair]
            kept += [WeightConverter(r"experts\.gate_up_proj$", both, [Split(self.held)])]
            kept += [WeightConverter(r"experts\.down_proj$", down, [Split(self.held)])]
        return kept

    def _process_model_after_weight_loading(self, model, **kwargs):
        model = super()._process_model_after_weight_loading(model, **kwargs)
        skipped = re.compile("|".join(model._keys_to_ignore_on_load_unexpected))
        if left := [key for key in self.scaled if not skipped.search(key)]:
            raise ConfigError(
                f"model_name_or_path: {left[0]} is in FP8, but is not held in 4 bits as one matrix. Convert the "
                f"checkpoint once: python -m recipes.tools.merge --parent {self.source.folder} --output BF16_FOLDER"
            )
        for name, module in model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                if getattr(module.weight, "quant_state", None) is None:
                    raise ConfigError(f"model_name_or_path: the checkpoint has no {name}.weight; copy it again.")
                # On CPUs with AVX512-BF16, a forward pass in eval mode permanently repacks the weight for inference,
                # which makes later gradients wrong. No issue is known for it.
                module.support_avx512bf16_for_cpu = False
                if module.in_features % module.weight.quant_state.blocksize:
                    module.__class__ = Uneven
        for module in model.modules():
            if isinstance(module, Experts):
                for name in module.first.names:
                    module.stack(name)
        return model


def _stacks(conversion) -> bool:
    """Whether a conversion stacks a layer's experts into one tensor."""
    merges = isinstance(conversion, WeightConverter) and any(
        isinstance(o, MergeModulelist) for o in conversion.operations
    )
    return merges and "experts" in conversion.target_patterns[0]


class Nf4Config(BitsAndBytesConfig):
    """NF4 with double quantisation and our quantizer, for a model whose experts `processes` share."""

    def __init__(self, dtype: torch.dtype, processes: int):
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        self.quant_method, self.processes = METHOD, processes


def load(
    kind: type, name: str, config, dtype: torch.dtype, processes: int = 1, **settings
) -> tuple[PreTrainedModel, dict]:
    """`kind.from_pretrained(name)` with every linear layer in NF4 except routers and heads, and its loading info.

    `config` is the trainer's. `processes` share the experts of each layer: each loads its part. Raises ConfigError if
    the model cannot be trained this way.
    """
    deepspeed = getattr(config, "deepspeed_plugin", None)
    if fault := expert_parallel.fault(processes, world_size(), deepspeed is None):
        raise ConfigError(fault)
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
        config.router_aux_loss_coef = 0.0  # without this, the model's own value would be used
    unfuse(empty := skeleton(name), processes)  # raises errors before any weights are read
    if processes > 1 and not qlora_proof.experts(empty):
        raise ConfigError(f"expert_parallel: {name} has no experts to share. Write expert_parallel: 1.")
    if Parent(name).fp8:  # which is read here: transformers would hold it in FP8
        shape, settings = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **settings)
        del shape.quantization_config
        settings["config"] = shape
    settings |= {"quantization_config": Nf4Config(dtype, processes), "dtype": dtype}
    model, info = kind.from_pretrained(name, output_loading_info=True, **settings)
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES  # the libraries need it to move the model
    return model, info


# The adapter


def _unless_unfused(convert, model_argument: str, result):
    """PEFT's conversion for MoE models, skipped for unfused ones. It treats any layer named `gate_proj` as stacked
    experts and leaves out those that are linear layers (peft#3711)."""

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
    """The model with a LoRA pair on each 4-bit layer that `targets` names. A target is the end of a layer's name, or
    the word `attention` or `experts` (routed, shared, dense). None means both words. Raises ConfigError if a target
    matches nothing.
    """
    with expert_parallel.all_experts(model):
        return _adapt(model, config, targets)


def _adapt(model: PreTrainedModel, config: LoraConfig, targets: list[str] | None) -> PeftModel:
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
    config.target_modules = _expression(set().union(*found.values()), layers)
    return get_peft_model(model, config)


def _expression(chosen: set[str], layers: list[str]) -> str:
    """One regular expression for the chosen layers, because PEFT would compare thousands of names with thousands of
    modules. It matches all or none of the routed experts, which are computed together."""
    alike, units = {}, {_of_any_expert(name) for name in chosen}
    for name in layers:
        alike.setdefault(re.sub(r"\.\d+(?=\.)", r".N", name), set()).add(_of_any_expert(name))
    found = {pattern if members <= units else unit for pattern, members in alike.items() for unit in members & units}
    return "|".join(sorted(re.sub(r"\\\.N(?=\\\.)", r"\\.\\d+", re.escape(one)) for one in found))


def _of_any_expert(name: str) -> str:
    return ROUTED.sub(r"\1.N.", name)


def _is(name: str, target: str) -> bool:
    if pattern := WORDS.get(target):
        return re.search(pattern, name) is not None
    return name == target or name.endswith(f".{target}")


def save_adapter(
    model: PeftModel, folder: Path, parent: str, experts: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> None:
    """Save the adapter under the published checkpoint's names, with a config that lets plain PEFT load it on the 16-bit
    base. Stacked experts, and other layers named like an expert's layer, become target parameters (peft#3711).
    `experts`: what `expert_parallel.gather` has found.
    """
    model.save_pretrained(folder, selected_adapters=["default"])
    source, unloaded = Parent(parent), skeleton(parent)
    rename, leaves = module_names(unloaded), expert_names(unloaded)
    published = {rename(key).removesuffix(".weight"): key.removesuffix(".weight") for key in source.keys}
    tensors, modules = {}, set()
    for key, tensor in _whole(load_file(folder / ADAPTER) | experts, leaves).items():
        module, pair, rest = key.removeprefix(PREFIX).partition(".lora_")
        tensors[PREFIX + published.get(module, module) + pair + rest] = tensor
        modules |= {module} if pair else set()
    if not published_apart(unloaded):
        tensors = _stack(tensors, leaves)
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config = LoraConfig.from_pretrained(folder)
    routed = {module for module in modules if ROUTED.match(module)}
    alike = {module for module in modules - routed if module.rpartition(".")[2] in leaves}
    parameters = {".".join(module.split(".")[-2:]) + ".weight" for module in alike}
    if any(module.endswith(leaves[:2]) for module in routed):
        parameters |= {"experts.gate_up_proj"}
        config.rank_pattern = {r".*\.gate_up_proj": 2 * config.r}  # PEFT combines the pairs of gate and up
        config.alpha_pattern = {r".*\.gate_up_proj": 2 * config.lora_alpha}
    if any(module.endswith(leaves[2]) for module in routed):
        parameters |= {"experts.down_proj"}
    config.target_modules = sorted({module.rpartition(".")[2] for module in modules - routed - alike})
    config.target_parameters = sorted(parameters)
    config.save_pretrained(folder)


def _whole(tensors: dict[str, torch.Tensor], leaves: tuple[str, str, str]) -> dict[str, torch.Tensor]:
    """The tensors with zeros for missing layers of an expert's adapter. If it has gate or up, PEFT needs all three."""
    gate, up, down = leaves
    whole = dict(tensors)
    for key, a in tensors.items():
        expert, _, leaf = key.partition(".lora_A.")[0].rpartition(".")
        if ROUTED.match(key) and ".lora_A." in key and leaf in (gate, up):
            b = tensors[f"{expert}.{leaf}.lora_B.weight"]
            for other, first, second in ((gate, a, b), (up, a, b), (down, b.T, a.T)):
                whole.setdefault(f"{expert}.{other}.lora_A.weight", torch.zeros(first.shape))
                whole.setdefault(f"{expert}.{other}.lora_B.weight", torch.zeros(second.shape))
    return whole


def _stack(tensors: dict[str, torch.Tensor], leaves: tuple[str, str, str]) -> dict[str, torch.Tensor]:
    """The pairs of a layer's experts in PEFT's form for stacked parameters, for families that are published stacked."""
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


def begin(trainer) -> None:
    """Check the model just before training, and prepare it for experts that processes share."""
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts them to bf16, where most updates at the paper's learning rates are rounded away.
            parameter.data = parameter.data.float()
    qlora_proof.check(trainer.accelerator.unwrap_model(trainer.model))
    expert_parallel.begin(trainer)
