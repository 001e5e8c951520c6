"""What a process changes in transformers and TRL before it trains: loading under FSDP2, and the vocabulary on a CPU.

Loading under FSDP2 without a whole copy of the model in each process of a machine.

With `fsdp_cpu_ram_efficient_loading: true` accelerate sends out the weights of the first process, and what the others
hold is thrown away. Yet transformers 5.17 reads the checkpoint in all of them, and in all but the first of a machine
then writes zeros beside it: two copies at the peak. Here these read names alone, and get memory that nobody has
touched, for which Linux takes no page.
"""

import functools

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, modeling_utils
from transformers.utils.loading_report import LoadStateDictInfo
from trl.trainer import utils

TILE = 2048  # tokens of the vocabulary: what a micro batch has to say of them fits a core's cache


def project_labels_alone(vocabulary: int) -> None:
    """On a CPU, let TRL project to a large vocabulary only the positions that have a label, as it does on a GPU, and in
    smaller tiles. It projects prompts and padding too, where an accelerator would compile each shape anew."""
    if vocabulary > TILE:
        utils._use_triton = lambda device: True  # read there for nothing else
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE


def spare_host_memory() -> None:
    """Change `from_pretrained` of the policy and of TRL's reference alike, in this process, once."""
    if not hasattr(PreTrainedModel._load_pretrained_model, "__wrapped__"):
        PreTrainedModel._load_pretrained_model = staticmethod(_reading(PreTrainedModel._load_pretrained_model))
        name = "_move_missing_keys_from_meta_to_device"
        setattr(PreTrainedModel, name, _filling(getattr(PreTrainedModel, name)))


def _receives(quantized: bool) -> bool:
    """Does this process get its weights from another, as transformers decides it?"""
    return modeling_utils.is_fsdp_enabled() and not modeling_utils.is_local_dist_rank_0() and not quantized


def _reading(load):
    @functools.wraps(load)
    def wrapped(model, state_dict, checkpoint_files, load_config, **more):
        if _receives(load_config.is_quantized):
            there = set(state_dict or ())
            for file in checkpoint_files or ():
                if file.endswith(".safetensors"):
                    with safe_open(file, framework="pt") as opened:
                        there |= set(opened.keys())
            lacking = set(model.all_tied_weights_keys) - there  # what the file lacks is tied, as in the first process
            return LoadStateDictInfo(lacking, set(), set(), [], {}, set()), None
        return load(model, state_dict, checkpoint_files, load_config, **more)

    return wrapped


def _filling(move):
    @functools.wraps(move)
    def wrapped(self, missing_keys, device_map, device_mesh, hf_quantizer):
        if not _receives(hf_quantizer is not None):
            return move(self, missing_keys, device_map, device_mesh, hf_quantizer)
        for name, parameter in list(self.named_parameters()):
            modeling_utils._load_parameter_into_model(self, name, torch.empty_like(parameter, device="cpu"))
        for name, buffer in list(self.named_buffers()):
            modeling_utils._load_parameter_into_model(self, name, torch.zeros_like(buffer, device="cpu"))

    return wrapped
