"""Access to weights in all layouts: full on every process (DDP, ZeRO-2), sharded by ZeRO-3, or FSDP2's DTensors.

Only this file knows these layouts. Every process has to call the gathering functions, for the same tensors in the same
order. In addition to its own part, a process holds one tensor at a time, or one file of at most 5 GB when it writes,
because 671 B parameters do not fit into one machine.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data_prep.runs import ConfigError, write_json

import torch
import torch.distributed.checkpoint as distributed
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations import is_fsdp_enabled
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

LARGEST = 5 * 10**9  # bytes of a file of weights
FSDP_1 = "FSDP 1 flattens weights into pieces without names, from which no adapter, reference or model is saved here"


def is_fsdp_1(environment: Mapping[str, str]) -> bool:
    return environment.get("ACCELERATE_USE_FSDP", "").lower() == "true" and environment.get("FSDP_VERSION", "1") == "1"


def refuse_fsdp_1() -> None:
    """Raises ConfigError under FSDP 1, whose parameters cannot be read here."""
    if is_fsdp_1(os.environ):
        raise ConfigError(f"fsdp_version: {FSDP_1}. Write fsdp_version: 2 in the accelerate config.")


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """Models that are created or loaded inside have full weights on this process, even if the policy is sharded."""
    config, fsdp = hf_deepspeed._hf_deepspeed_config_weak_ref, os.environ.get("ACCELERATE_USE_FSDP")
    hf_deepspeed.unset_hf_deepspeed_config()
    os.environ["ACCELERATE_USE_FSDP"] = "false"  # if true, transformers loads weights in one process only
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config
        del os.environ["ACCELERATE_USE_FSDP"]
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp


@torch.no_grad()
def share_buffers(model: PreTrainedModel) -> None:
    """Broadcast the buffers of a checkpoint, such as the bias of DeepSeek-V3's routers, which one process has read.
    accelerate 1.15 broadcasts parameters and fails at a buffer, so these buffers are then marked as not persistent.
    `save` still writes them."""
    if not is_fsdp_enabled():
        return
    saved, device = model.state_dict().keys(), PartialState().device
    model.saved_buffers = [name for name, _ in model.named_buffers() if name in saved]
    for name in model.saved_buffers:
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        value = getattr(module, own).to(device)
        torch.distributed.broadcast(value, src=0)
        getattr(module, own).copy_(value)
        module._non_persistent_buffers_set.add(own)


# One tensor


def shape(tensor: torch.Tensor) -> torch.Size:
    """The shape of the full tensor."""
    return getattr(tensor, "ds_shape", tensor.shape)


def nbytes(tensor: torch.Tensor) -> int:
    """The bytes of the full tensor, over all processes."""
    return shape(tensor).numel() * tensor.element_size()


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on every process. A parameter that is not sharded is not copied."""
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    with _gathered(tensor):
        return tensor.detach().clone() if _is_zero3(tensor) else tensor.detach()


@torch.no_grad()
def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Set a tensor to `value`, which every process has in full."""
    if isinstance(tensor, DTensor):
        value = value.to(tensor.device)  # each process takes its part of its own copy
        tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None))
    else:
        with _gathered(tensor, write=True):
            tensor.copy_(value)


@torch.no_grad()
def mix(target: torch.Tensor, source: torch.Tensor, alpha: float) -> None:
    """target <- (1 - alpha) target + alpha source, for tensors with the same layout."""
    with _gathered(source), _gathered(target, write=True):  # FSDP2 mixes each part locally
        if alpha == 1.0 or not target.is_floating_point():
            target.copy_(source)
        else:
            target.lerp_(source.to(target.dtype), alpha)


def _is_zero3(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _gathered(tensor: torch.Tensor, write: bool = False) -> contextlib.AbstractContextManager:
    if not _is_zero3(tensor):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if write else None)


# Many


@torch.no_grad()
def broken(named: Mapping[str, nn.Parameter], device: torch.device) -> list[str]:
    """Names of tensors that are not finite, or that have two or more dimensions and are all zero. Each process checks
    its own part."""
    named = {name: one for name, one in named.items() if one.is_floating_point() and nbytes(one)}
    seen = torch.ones(2, len(named), dtype=torch.int32, device=device)  # is it finite, is any value nonzero
    for number, one in enumerate(named.values()):
        part = one.to_local() if isinstance(one, DTensor) else getattr(one, "ds_tensor", one)
        if _is_empty(one):
            seen[1, number] = 0
        else:
            seen[0, number], seen[1, number] = torch.isfinite(part).all(), part.any()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(seen[0], torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(seen[1], torch.distributed.ReduceOp.MAX)
    finite, any_ = seen.tolist()
    found = zip(named.items(), finite, any_, strict=True)
    return [name for (name, one), sound, filled in found if not (sound and (filled or len(shape(one)) < 2))]


def _is_empty(tensor: torch.Tensor) -> bool:
    """Whether the values are still to be broadcast by FSDP2. With `fsdp_cpu_ram_efficient_loading`, only one process of
    a machine reads them."""
    return is_fsdp_enabled() and not isinstance(tensor, DTensor) and os.environ.get("LOCAL_RANK", "0") != "0"


def gather(model: nn.Module, part_of_name: str) -> dict[str, torch.Tensor]:
    """The full parameters whose names contain `part_of_name`."""
    return {name: whole(one) for name, one in model.named_parameters() if part_of_name in name}


def store(named: Mapping[str, nn.Parameter], folder: Path, writes: bool) -> None:
    """Write tensors for `restore`. Under FSDP2 each process writes its own parts, else only the one with `writes`."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(isinstance(one, DTensor) for one in named.values()):
        distributed.save({name: one.detach() for name, one in named.items()}, checkpoint_id=folder)
    else:
        _write({name: [name] for name in named}, named, folder, writes, lambda tensors: tensors)


@torch.no_grad()
def restore(named: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Read back what `store` wrote, in place."""
    if any(isinstance(one, DTensor) for one in named.values()):
        distributed.load({name: one.detach() for name, one in named.items()}, checkpoint_id=folder)
        return
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
    for name, one in named.items():
        with safe_open(folder / files.get(name, SAFE_WEIGHTS_NAME), "pt") as file:
            put(one, file.get_tensor(name))


def save(model: PreTrainedModel, folder: Path, writes: bool) -> None:
    """Write weights and configs like `save_pretrained`, under the published checkpoint's names. Only the process with
    `writes` writes. Files are written atomically, the config last."""
    held = _held(model)
    _write(_published(model, held), held, folder, writes, lambda tensors: revert_weight_conversion(model, tensors))
    if writes:
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        model.config.save_pretrained(folder)


def published(model: PreTrainedModel, gather: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[dict]:
    """The content of `save` as mappings of published names to tensors, group by group. Every process gets all groups.
    `gather` returns the full tensor for a name in the model and the part that this process holds."""
    held = _held(model)
    for names in _published(model, held).values():
        yield revert_weight_conversion(model, {name: gather(name, held[name]) for name in names})


def _held(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of the model's checkpoint by their names in the model. Adapter weights are left out, and adapted
    layers have their original names."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name.replace(".base_layer.", "."): one for name, one in named.items() if ".lora_" not in name}
    tied = [one for one, other in model.all_tied_weights_keys.items() if parameters.get(one) is parameters.get(other)]
    buffers = {*model.state_dict().keys() - named.keys(), *getattr(model, "saved_buffers", ())}
    held = parameters | {name: one for name, one in model.named_buffers() if name in buffers}
    return {name: held[name] for name in held.keys() - {*tied, *(model._keys_to_ignore_on_save or ())}}


def _published(model: PreTrainedModel, names: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of the tensors that `revert_weight_conversion` needs together, by the first name that it creates."""
    reverse = [one.reverse_transform() for one in reversed(getattr(model, "_weight_conversions", None) or [])]
    renamings = [one for one in reverse if isinstance(one, WeightRenaming)]
    converters = [one for one in reverse if isinstance(one, WeightConverter)]
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(rename_source_key(name, renamings, converters, reverse=True)[0], []).append(name)
    return found


def _write(groups: Mapping[str, list[str]], held: Mapping, folder: Path, writes: bool, convert) -> None:
    """Gather group by group, and write the converted tensors into files of at most LARGEST bytes, or of one group."""
    files, size = [[]], 0
    for names in groups.values():
        size += (more := sum(nbytes(held[name]) for name in names))
        if size > LARGEST and files[-1]:
            files.append([])
            size = more
        files[-1].append(names)
    weight_map, total = {}, sum(nbytes(held[name]) for names in groups.values() for name in names)
    for number, several in enumerate(files, 1):
        tensors: dict[str, torch.Tensor] = {}
        for names in several:
            for name in names:
                one = whole(held[name])
                if writes:
                    tensors[name] = one.cpu().contiguous()
                del one
        if writes:
            file = SAFE_WEIGHTS_NAME
            if len(files) > 1:
                file = file.replace(".safetensors", f"-{number:05}-of-{len(files):05}.safetensors")
            tensors = {name: one.contiguous() for name, one in convert(tensors).items()}
            weight_map |= dict.fromkeys(tensors, file)
            save_file(tensors, folder / f".{file}", metadata={"format": "pt"})
            (folder / f".{file}").replace(folder / file)
    if writes and len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)
