"""How weights are held, which only this file knows: whole on every process (DDP, ZeRO-2), in parts that ZeRO-3 gathers,
or as FSDP2's DTensors.

What gathers has to be called by every process, for the same tensors in the same order. It holds one tensor at a time
beyond a process's own part, and one file's of at most 5 GB where it writes: 671 B parameters fit into no machine.
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
    """Raises ConfigError under the first FSDP, whose parameters nothing here can read."""
    if is_fsdp_1(os.environ):
        raise ConfigError(f"fsdp_version: {FSDP_1}. Write fsdp_version: 2 in the accelerate config.")


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """A model that is made or loaded inside has all its weights on this process, whatever the policy's are."""
    config, fsdp = hf_deepspeed._hf_deepspeed_config_weak_ref, os.environ.get("ACCELERATE_USE_FSDP")
    hf_deepspeed.unset_hf_deepspeed_config()
    os.environ["ACCELERATE_USE_FSDP"] = "false"  # by it transformers leaves weights on all but one process empty
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = config
        del os.environ["ACCELERATE_USE_FSDP"]
        if fsdp is not None:
            os.environ["ACCELERATE_USE_FSDP"] = fsdp


@torch.no_grad()
def share_buffers(model: PreTrainedModel) -> None:
    """Give every process what one has read of buffers that are part of a checkpoint, such as the bias by which
    DeepSeek-V3's routers choose. accelerate 1.15 sends parameters round and fails at a buffer, so that these count as
    computed ones from here on; `save` writes them all the same."""
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
    """Of all of it."""
    return getattr(tensor, "ds_shape", tensor.shape)


def nbytes(tensor: torch.Tensor) -> int:
    """Of all of it, on all processes together."""
    return shape(tensor).numel() * tensor.element_size()


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, on every process; a parameter that is whole already is not copied."""
    if isinstance(tensor, DTensor):
        return tensor.detach().full_tensor()
    with _gathered(tensor):
        return tensor.detach().clone() if _is_zero3(tensor) else tensor.detach()


@torch.no_grad()
def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Set it to `value`, which every process has whole."""
    if isinstance(tensor, DTensor):
        value = value.to(tensor.device)  # each process takes its part of its own copy
        tensor.copy_(distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None))
    else:
        with _gathered(tensor, write=True):
            tensor.copy_(value)


@torch.no_grad()
def mix(target: torch.Tensor, source: torch.Tensor, alpha: float) -> None:
    """target <- (1 - alpha) target + alpha source, of tensors that are held alike."""
    with _gathered(source), _gathered(target, write=True):  # FSDP2: part by part
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
    """Names of what is not finite, or, of two dimensions and more, all zero. Each process looks at its own part."""
    named = {name: one for name, one in named.items() if one.is_floating_point() and nbytes(one)}
    seen = torch.ones(2, len(named), dtype=torch.int32, device=device)  # is it finite, has it anything but zero
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
    """Whether FSDP2 has yet to bring its values, with `fsdp_cpu_ram_efficient_loading`: one process of a machine has
    read them."""
    return is_fsdp_enabled() and not isinstance(tensor, DTensor) and os.environ.get("LOCAL_RANK", "0") != "0"


def gather(model: nn.Module, part_of_name: str) -> dict[str, torch.Tensor]:
    """The whole parameters in whose names that occurs."""
    return {name: whole(one) for name, one in model.named_parameters() if part_of_name in name}


def store(named: Mapping[str, nn.Parameter], folder: Path, writes: bool) -> None:
    """Write them for `restore`: of FSDP2 each process its own parts, of all else the process that `writes`."""
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
    """Write weights and configs as `save_pretrained` does, under the published checkpoint's names. The process that
    `writes` does so; a file is there whole or not at all, the config last."""
    held = _held(model)
    _write(_published(model, held), held, folder, writes, lambda tensors: revert_weight_conversion(model, tensors))
    if writes:
        model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        model.config.save_pretrained(folder)


def published(model: PreTrainedModel, gather: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[dict]:
    """What `save` would write, as mappings of published names to tensors: group by group, of which every process gets
    all. `gather` makes the whole of one from its name in the model and what this process holds."""
    held = _held(model)
    for names in _published(model, held).values():
        yield revert_weight_conversion(model, {name: gather(name, held[name]) for name in names})


def _held(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint of the model holds, by their names in the model. An adapter's are left out, and
    what it is added to has its own name."""
    named = dict(model.named_parameters(remove_duplicate=False))
    parameters = {name.replace(".base_layer.", "."): one for name, one in named.items() if ".lora_" not in name}
    tied = [one for one, other in model.all_tied_weights_keys.items() if parameters.get(one) is parameters.get(other)]
    buffers = {*model.state_dict().keys() - named.keys(), *getattr(model, "saved_buffers", ())}
    held = parameters | {name: one for name, one in model.named_buffers() if name in buffers}
    return {name: held[name] for name in held.keys() - {*tied, *(model._keys_to_ignore_on_save or ())}}


def _published(model: PreTrainedModel, names: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of the tensors that `revert_weight_conversion` needs at once, by the first that it makes of them."""
    reverse = [one.reverse_transform() for one in reversed(getattr(model, "_weight_conversions", None) or [])]
    renamings = [one for one in reverse if isinstance(one, WeightRenaming)]
    converters = [one for one in reverse if isinstance(one, WeightConverter)]
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(rename_source_key(name, renamings, converters, reverse=True)[0], []).append(name)
    return found


def _write(groups: Mapping[str, list[str]], held: Mapping, folder: Path, writes: bool, convert) -> None:
    """Gather group by group; write what `convert` makes of each into files of at most LARGEST, or of one group."""
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
