"""Patches of transformers and TRL before training: loading under FSDP2, the vocabulary projection on a CPU, and layers.

With these patches, loading under FSDP2 needs no full copy of the model in each process of a machine. With
`fsdp_cpu_ram_efficient_loading: true`, accelerate broadcasts the weights of the first process and discards those of the
others. Yet transformers 5.17 reads the checkpoint in all of them, and in all but the first of a machine it also writes
zeros, so the peak is two copies. Here these processes read only names and get untouched memory, for which Linux
allocates no pages.
"""

import functools

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, modeling_utils
from transformers.utils.loading_report import LoadStateDictInfo
from trl.trainer import utils

TILE = 2048  # tokens of the vocabulary: the logits of a micro batch for them fit a core's cache


def project_labels_alone(vocabulary: int) -> None:
    """Make TRL on a CPU project only positions with a label to a large vocabulary, as on a GPU, and in smaller tiles.
    Otherwise TRL also projects prompts and padding, for accelerators that would recompile for each shape."""
    if vocabulary > TILE:
        utils._use_triton = lambda device: True  # it is used only for this choice
        utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the forward and backward pass of each decoder layer, in place, for all batch sizes and lengths. Layers of
    a class share the compiled code. The whole model as one graph, `torch_compile`, compiles for minutes."""
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()):
            module.compile(dynamic=True)


def spare_host_memory() -> None:
    """Patch `from_pretrained` in this process once, for the policy and TRL's reference."""
    if not hasattr(PreTrainedModel._load_pretrained_model, "__wrapped__"):
        PreTrainedModel._load_pretrained_model = staticmethod(_reading(PreTrainedModel._load_pretrained_model))
        name = "_move_missing_keys_from_meta_to_device"
        setattr(PreTrainedModel, name, _filling(getattr(PreTrainedModel, name)))


def _receives(quantized: bool) -> bool:
    """Whether this process gets its weights from another process, as transformers decides it."""
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
            lacking = set(model.all_tied_weights_keys) - there  # weights that the file lacks are tied
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
